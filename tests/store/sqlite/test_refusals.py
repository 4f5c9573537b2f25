"""What becomes of a SQLite application when the store says no, and of a store when the application goes."""

import subprocess
import sys
from pathlib import Path

import apsw
import apsw.bestpractice
import pytest

import sustain
from sustain._native import Control, boottime_ns
from tests.store.sqlite.conftest import count, whole


@pytest.mark.parametrize("locking", ["normal", "exclusive"])
@pytest.mark.parametrize("mode", ["wal", "WAL", "off"])
def test_other_journals_are_refused(database: apsw.Connection, mode: str, locking: str) -> None:
    database.pragma("locking_mode", locking)
    with pytest.raises(sustain.ConfigError) as caught:
        database.pragma("journal_mode", mode)
    assert caught.value.hint
    assert isinstance(caught.value, apsw.SQLError)
    assert database.pragma("journal_mode") == "memory"
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert whole(database)


def test_what_is_done_to_every_connection(store: sustain.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """apsw's own recommendation asks for WAL."""
    monkeypatch.setattr(apsw, "connection_hooks", [])
    apsw.bestpractice.apply(apsw.bestpractice.recommended[1:])  # the first is about the whole process
    assert apsw.connection_hooks
    connection = store.sqlite("main.db")
    assert connection.pragma("journal_mode") == "memory"
    connection.execute("CREATE TABLE t (a)")
    with pytest.raises(sustain.ConfigError):
        connection.pragma("journal_mode", "wal")
    connection.close()


def test_a_database_many_times_a_transaction(path: Path, tmp_path: Path) -> None:
    with sustain.create(tmp_path / "large.sus", size="64MiB", log_size="2MiB", durability="memory") as store:
        connection = store.sqlite("main.db")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        for first in range(0, 2000, 50):
            with connection:
                connection.executemany(
                    "INSERT INTO t VALUES (?, randomblob(20000))",
                    ((each,) for each in range(first, first + 50)),
                )
        assert store.file("main.db").size > 19 * (2 << 20)
        with pytest.raises(sustain.LogTooSmall) as caught, connection:
            connection.execute("UPDATE t SET b = randomblob(20000)")
        assert isinstance(caught.value, apsw.FullError)
        assert caught.value.hint
        assert count(connection) == 2000
        assert whole(connection)
        connection.execute("DELETE FROM t WHERE a > 10")
        assert whole(connection)
        connection.close()


@pytest.mark.parametrize("by", ["statement", "commit", "with"])
def test_a_full_store(store: sustain.Store, database: apsw.Connection, by: str) -> None:
    with database:
        database.execute("INSERT INTO t VALUES (1000, randomblob(6000000))")
    with database:
        database.execute("INSERT INTO t VALUES (1001, randomblob(6000000))")
    insert = "INSERT INTO t SELECT a + 2000, randomblob(60000) FROM t WHERE a < 100"

    def overfill() -> None:
        if by == "with":
            with database:
                database.execute(insert)
            return
        if by == "commit":
            database.execute("BEGIN")
        database.execute(insert)
        if by == "commit":
            database.execute("COMMIT")

    with pytest.raises(sustain.StoreFull) as caught:
        overfill()
    assert isinstance(caught.value, apsw.FullError)
    assert caught.value.result == apsw.SQLITE_FULL
    assert caught.value.hint
    assert not database.in_transaction
    assert count(database) == 102
    assert whole(database)
    database.execute("DELETE FROM t WHERE a = 1001")
    database.execute(insert)
    assert count(database) == 201
    assert whole(database)


def test_a_fenced_store(path: Path, store: sustain.Store, database: apsw.Connection) -> None:
    control = Control(str(path), writable=True)
    control.set_lease(1, boottime_ns())
    with pytest.raises(sustain.StoreFenced) as caught:
        database.execute("DELETE FROM t")
    assert isinstance(caught.value, apsw.IOError)
    assert caught.value.extendedresult == apsw.SQLITE_IOERR_FSYNC
    assert caught.value.hint
    assert count(database) == 100
    with pytest.raises(sustain.StoreFenced), database:
        database.execute("DELETE FROM t")
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("main.db")
        assert count(connection) == 100
        connection.close()
    control.set_lease(1, boottime_ns() + 3_600_000_000_000)
    database.execute("DELETE FROM t")
    assert whole(database)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_commit_of_vacuum_that_fails(
    path: Path, store: sustain.Store, database: apsw.Connection, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """It has two: the content, and the end of the file."""
    database.execute("INSERT INTO t VALUES (1000, randomblob(1000000)); DELETE FROM t WHERE a = 1000")
    commit, commits = type(store).commit, iter(range(1, 100))

    def fail(self: sustain.Store) -> int:
        if next(commits) == failing:
            raise sustain.LogFull("made up by the test")
        return commit(self)

    monkeypatch.setattr(sustain.Store, "commit", fail)
    with pytest.raises(sustain.LogFull) as caught:
        database.execute("VACUUM")
    assert isinstance(caught.value, apsw.FullError)
    assert next(commits) > failing
    monkeypatch.undo()
    assert count(database) == 100
    assert whole(database)
    database.execute("VACUUM")
    assert store.file("main.db").size < 100_000
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("main.db")
        assert count(connection) == 100
        assert whole(connection)
        connection.close()


def test_a_closed_store(store: sustain.Store, database: apsw.Connection) -> None:
    store.close()
    with pytest.raises(sustain.StoreClosed) as caught:
        database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert isinstance(caught.value, apsw.IOError)
    with pytest.raises(sustain.StoreClosed):
        store.sqlite("main.db")


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "del db",
        "store.close()",
        "store.close(); db.close()",
        "db.close(force=True)",
        "raise SystemExit",
        "try:\n  store.file('main.db').pwrite(b'x', -1)\nexcept Exception: pass",
    ],
)
def test_a_program_that_ends_amid_a_transaction(path: Path, ending: str) -> None:
    program = f"""
import sustain
store = sustain.create({str(path)!r}, size="16MiB", log_size="8MiB", durability="memory")
db = store.sqlite("main.db")
db.execute("CREATE TABLE t (a, b); INSERT INTO t VALUES (1, randomblob(100000))")
db.pragma("cache_size", 2)
db.pragma("page_size", 1024)
db.execute("BEGIN; INSERT INTO t VALUES (2, randomblob(100000)); UPDATE t SET b = randomblob(200000)")
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with sustain.open(path) as store:
        connection = store.sqlite("main.db")
        assert count(connection) == 1
        assert whole(connection)
        connection.close()


def test_a_connection_that_goes_amid_a_transaction(store: sustain.Store, database: apsw.Connection) -> None:
    other = store.sqlite("main.db", timeout=0.05)
    other.pragma("cache_size", 2)
    other.execute("BEGIN; UPDATE t SET b = zeroblob(5000)")
    other.close()
    assert database.execute("SELECT b FROM t WHERE a = 5").get == "row 5"
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert whole(database)


def test_names(store: sustain.Store) -> None:
    for name in ("", ":memory:", "file:main.db", "a\0b", "\udcff", "x" * 256):
        with pytest.raises(sustain.ConfigError):
            store.sqlite(name)
    store.map("users")[b"a"] = b"b"
    with pytest.raises(sustain.NoSuchObject):
        store.sqlite("users")
    connection = store.sqlite("with space, ä?%41.db")
    connection.execute("CREATE TABLE t (a)")
    assert "with space, ä?%41.db" in [name for name, _, _ in store.objects()]
    connection.close()


def test_timeouts(store: sustain.Store) -> None:
    for timeout in (-1, float("nan"), float("inf"), 1e9):
        with pytest.raises(sustain.ConfigError):
            store.sqlite("main.db", timeout=timeout)
    store.sqlite("main.db", timeout=0).close()


def test_a_database_with_connections_is_not_deleted(store: sustain.Store, database: apsw.Connection) -> None:
    with pytest.raises(sustain.ObjectInUse) as caught:
        store.delete("main.db")
    assert caught.value.hint
    database.close()
    store.delete("main.db")
    assert store.objects() == []


def test_without_apsw(store: sustain.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("sustain.store.sqlite")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(sustain.ConfigError) as caught:
        store.sqlite("main.db")
    assert "sustain[sqlite]" in caught.value.hint
