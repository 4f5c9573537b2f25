"""SQLite on a store: what an application sees of it, and what becomes of it when the store says no."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import apsw.bestpractice
import pytest

import sustain
from sustain._native import Control, boottime_ns
from sustain.store.sqlite.databases import Database
from sustain.store.sqlite.overlay import Overlay


@pytest.fixture
def database(store: sustain.Store) -> Iterator[apsw.Connection]:
    """A connection to a database with one table of numbers 0 … 99."""
    connection = store.sqlite("main.db", timeout=0.05)
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    with connection:
        connection.executemany("INSERT INTO t VALUES (?, ?)", ((each, f"row {each}") for each in range(100)))
    yield connection
    connection.close()


def count(connection: apsw.Connection, table: str = "t") -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").get  # type: ignore[no-any-return]


def whole(connection: apsw.Connection) -> bool:
    return connection.pragma("integrity_check") == "ok"  # type: ignore[no-any-return]


def groups(store: sustain.Store) -> int:
    return store.words()["commit_seq"]


def in_threads(*works: Callable[[], None]) -> None:
    """Each in a thread of its own; raises what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


def test_a_database_is_an_ordinary_one(
    store: sustain.Store, database: apsw.Connection, tmp_path: Path
) -> None:
    assert [name for name, kind, _ in store.objects() if kind == "file"] == ["main.db"]
    file = store.file("main.db")
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.pread(file.size, 0))
    with sqlite3.connect(copy) as other:
        assert other.execute("SELECT count(*), max(b) FROM t").fetchone() == (100, "row 99")
    other.close()


def test_it_is_there_when_the_store_is_opened_again(
    path: Path, store: sustain.Store, database: apsw.Connection
) -> None:
    database.close()
    store.close()
    with sustain.open(path) as again:
        connection = again.sqlite("main.db")
        assert count(connection) == 100
        assert whole(connection)
        connection.close()


def test_nothing_is_made_before_the_first_transaction(store: sustain.Store) -> None:
    connection = store.sqlite("main.db")
    assert count(connection, "sqlite_schema") == 0
    assert store.objects() == []
    store.rollback()
    connection.execute("CREATE TABLE t (a)")
    assert [name for name, _, _ in store.objects()] == ["main.db"]
    connection.close()


def test_one_transaction_is_one_commit(store: sustain.Store, database: apsw.Connection) -> None:
    before = groups(store)
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert groups(store) == before + 1
    with database:
        database.execute("UPDATE t SET b = 'y'")
        database.execute("DELETE FROM t WHERE a > 50")
    assert groups(store) == before + 2
    assert count(database) == 51
    assert groups(store) == before + 2  # reading makes none


@pytest.mark.parametrize("synchronous", ["off", "normal", "full", "extra"])
@pytest.mark.parametrize("locking", ["normal", "exclusive"])
def test_whatever_synchronous_says(
    path: Path, store: sustain.Store, database: apsw.Connection, synchronous: str, locking: str
) -> None:
    database.pragma("synchronous", synchronous)
    database.pragma("locking_mode", locking)
    database.pragma("cache_size", 2)
    before = groups(store)
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    database.execute("BEGIN; UPDATE t SET b = zeroblob(10000); ROLLBACK")
    database.execute("INSERT INTO t VALUES (1001, 'x')")
    assert groups(store) == before + 2
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("main.db")
        assert count(connection) == 102
        assert connection.execute("SELECT b FROM t WHERE a = 5").get == "row 5"
        assert whole(connection)
        connection.close()


def test_changes_of_the_store_are_taken_along(
    path: Path, store: sustain.Store, database: apsw.Connection
) -> None:
    store.map("users")[b"ada"] = b"1815"
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    store.map("users")[b"ada"] = b"1816"
    store.rollback()
    assert store.map("users")[b"ada"] == b"1815"
    with sustain.open(path, readonly=True) as reader:
        assert reader.map("users")[b"ada"] == b"1815"


def test_the_store_s_commit_takes_no_half_transaction_along(
    path: Path, store: sustain.Store, database: apsw.Connection
) -> None:
    database.pragma("cache_size", 2)
    database.execute("BEGIN; UPDATE t SET b = zeroblob(5000)")  # spilled, most of it
    store.map("users")[b"ada"] = b"1815"
    store.commit()
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("main.db")
        assert connection.execute("SELECT b FROM t WHERE a = 5").get == "row 5"
        connection.close()
    store.rollback()
    database.execute("COMMIT")
    assert database.execute("SELECT length(b) FROM t WHERE a = 5").get == 5000
    assert whole(database)


def test_a_commit_inside_a_transaction_of_the_store(store: sustain.Store, database: apsw.Connection) -> None:
    before = groups(store)
    with store.transaction():
        store.map("users")[b"ada"] = b"1815"
        database.execute("INSERT INTO t VALUES (1000, 'x')")
        assert groups(store) == before + 1
    store.rollback()
    assert store.map("users")[b"ada"] == b"1815"


def test_it_waits_for_a_transaction_of_another_thread(
    store: sustain.Store, database: apsw.Connection
) -> None:
    begun, done = threading.Event(), threading.Event()

    def insert() -> None:
        begun.wait()
        database.execute("INSERT INTO t VALUES (1000, 'x')")
        done.set()

    def hold() -> None:
        with store.transaction():
            begun.set()
            assert not done.wait(0.1)
            store.map("users")[b"ada"] = b"1815"

    in_threads(insert, hold)
    assert done.is_set()


def test_another_thread_s_commit_waits_for_the_whole_transaction(
    path: Path, store: sustain.Store, database: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, committed = threading.Event(), threading.Event()
    put = Database.put

    def put_and_look(self: Database, overlay: Overlay, undo: list[Callable[[], object]]) -> None:
        put(self, overlay, undo)
        written.set()
        assert not committed.wait(0.1), "a commit between what SQLite wrote and its own"

    def commit() -> None:
        written.wait()
        store.map("users")[b"ada"] = b"1815"
        store.commit()
        committed.set()

    def insert() -> None:
        database.execute("INSERT INTO t VALUES (1000, 'x')")

    monkeypatch.setattr(Database, "put", put_and_look)
    in_threads(insert, commit)
    assert committed.is_set()


def test_two_connections(store: sustain.Store, database: apsw.Connection) -> None:
    other = store.sqlite("main.db", timeout=0.05)
    database.execute("BEGIN IMMEDIATE; DELETE FROM t")
    assert count(other) == 100  # what is not committed is nobody's business
    with pytest.raises(apsw.BusyError):
        other.execute("INSERT INTO t VALUES (1000, 'x')")
    database.execute("COMMIT")
    assert count(other) == 0
    other.execute("INSERT INTO t VALUES (1000, 'x')")
    cursor = other.execute("SELECT * FROM t")
    next(cursor)
    with pytest.raises(apsw.BusyError):
        database.execute("INSERT INTO t VALUES (1001, 'x')")
    cursor.close()
    database.execute("INSERT INTO t VALUES (1001, 'x')")
    assert count(other) == 2
    other.close()


def test_connections_of_many_threads(store: sustain.Store, database: apsw.Connection) -> None:
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
    database.execute("INSERT INTO account VALUES (1, 0), (2, 0)")

    def move(first: int) -> None:
        connection = store.sqlite("main.db", timeout=30)
        for each in range(40):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE account SET balance = balance - ? WHERE id = 1", (each + first,))
            connection.execute("UPDATE account SET balance = balance + ? WHERE id = 2", (each + first,))
            connection.execute("COMMIT")
            assert connection.execute("SELECT sum(balance) FROM account").get == 0
        connection.close()

    in_threads(*(lambda first=first: move(first) for first in range(4)))
    assert database.execute("SELECT balance FROM account WHERE id = 2").get == sum(
        each + first for first in range(4) for each in range(40)
    )
    assert whole(database)


def test_a_connection_that_goes_amid_a_transaction(store: sustain.Store, database: apsw.Connection) -> None:
    other = store.sqlite("main.db", timeout=0.05)
    other.pragma("cache_size", 2)
    other.execute("BEGIN; UPDATE t SET b = zeroblob(5000)")
    other.close()
    assert database.execute("SELECT b FROM t WHERE a = 5").get == "row 5"
    database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert whole(database)


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


def test_several_databases_in_one_commit(path: Path, store: sustain.Store, database: apsw.Connection) -> None:
    database.execute("ATTACH 'other.db' AS other; CREATE TABLE other.u (x)")
    before = groups(store)
    with database:
        database.execute("INSERT INTO u VALUES (1); INSERT INTO t VALUES (1000, 'x')")
    assert groups(store) == before + 1
    database.execute(
        "BEGIN IMMEDIATE; INSERT INTO u VALUES (2); COMMIT"
    )  # the other one is locked, not changed
    assert groups(store) == before + 2
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("other.db")
        assert count(connection, "u") == 2
        connection.close()


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory"])
def test_every_rollback_journal(store: sustain.Store, database: apsw.Connection, mode: str) -> None:
    assert database.pragma("journal_mode", mode) == mode
    database.pragma("cache_size", 2)
    for text in ("one", "two"):
        database.execute("BEGIN; UPDATE t SET b = zeroblob(5000)")
        database.execute("ROLLBACK")
        database.execute("UPDATE t SET b = ? WHERE a = 5", (text,))
        assert database.execute("SELECT b FROM t WHERE a IN (5, 6)").get == [text, "row 6"]
    assert whole(database)
    assert [name for name, _, _ in store.objects()] == ["main.db"]


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


@pytest.mark.parametrize("page_size", [512, 1024, 8192, 65536])
def test_other_page_sizes(store: sustain.Store, database: apsw.Connection, page_size: int) -> None:
    database.pragma("page_size", page_size)
    database.execute("VACUUM")
    assert database.pragma("page_size") == page_size
    with database:
        database.executemany(
            "INSERT INTO t VALUES (?, zeroblob(3000))", ((each,) for each in range(1000, 1100))
        )
    database.execute(
        "BEGIN; DELETE FROM t WHERE a % 2; INSERT INTO t VALUES (9, randomblob(100000)); ROLLBACK"
    )
    assert count(database) == 200
    assert whole(database)


def test_vacuum_gives_room_back(store: sustain.Store, database: apsw.Connection) -> None:
    with database:
        database.executemany(
            "INSERT INTO t VALUES (?, randomblob(3000))", ((each,) for each in range(1000, 2000))
        )
    large, used = store.file("main.db").size, store.usage()["used_bytes"]
    database.execute("DELETE FROM t WHERE a >= 1000")
    database.execute("VACUUM")
    assert store.file("main.db").size < large / 10
    assert store.usage()["used_bytes"] < used - 2_000_000
    store.rollback()
    assert whole(database)
    assert count(database) == 100


def test_a_large_value(store: sustain.Store, database: apsw.Connection) -> None:
    content = bytes(range(256)) * (5 << 12)  # 5 MiB
    database.execute("INSERT INTO t VALUES (1000, ?)", (content,))
    assert database.execute("SELECT b FROM t WHERE a = 1000").get == content
    with database.blob_open("main", "t", "b", 1000, True) as blob:
        blob.seek(3_000_000)
        blob.write(b"within")
    assert database.execute("SELECT substr(b, 3000001, 6) FROM t WHERE a = 1000").get == b"within"
    assert whole(database)


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


@pytest.mark.parametrize("locking", ["normal", "exclusive"])
def test_fenced_between_two_databases(
    path: Path, store: sustain.Store, database: apsw.Connection, locking: str
) -> None:
    database.execute("ATTACH 'other.db' AS other; CREATE TABLE other.u (x)")
    for schema in ("main", "other"):
        database.pragma("locking_mode", locking, schema=schema)
    control = Control(str(path), writable=True)
    for statement in (
        "INSERT INTO u VALUES (1); INSERT INTO t VALUES (1000, 'x')",
        "INSERT INTO u VALUES (1)",
    ):
        control.set_lease(1, boottime_ns())
        database.execute("BEGIN IMMEDIATE")
        database.execute(statement)
        with pytest.raises(sustain.StoreFenced):
            database.execute("COMMIT")
        control.set_lease(1, boottime_ns() + 3_600_000_000_000)
        assert not database.in_transaction
        assert (count(database), count(database, "u")) == (100, 0)
        assert whole(database)
    with database:
        database.execute(statement)
    assert count(database, "u") == 1


def test_a_closed_store(store: sustain.Store, database: apsw.Connection) -> None:
    store.close()
    with pytest.raises(sustain.StoreClosed) as caught:
        database.execute("INSERT INTO t VALUES (1000, 'x')")
    assert isinstance(caught.value, apsw.IOError)
    with pytest.raises(sustain.StoreClosed):
        store.sqlite("main.db")


def test_a_reader_stays_where_its_store_is(
    path: Path, store: sustain.Store, database: apsw.Connection
) -> None:
    with sustain.open(path, readonly=True) as reader:
        connection = reader.sqlite("main.db")
        database.execute("DELETE FROM t WHERE a >= 50")
        assert count(connection) == 100
        reader.refresh()
        assert count(connection) == 50
        cursor = connection.execute("SELECT * FROM t")
        next(cursor)
        database.execute("DELETE FROM t")
        with pytest.raises(sustain.ObjectInUse) as caught:
            reader.refresh()
        assert caught.value.hint
        assert len(list(cursor)) == 49
        reader.refresh()
        assert count(connection) == 0
        with pytest.raises(apsw.ReadOnlyError):
            connection.execute("INSERT INTO t VALUES (1, 'x')")
        connection.close()


def test_a_reader_without_a_database(path: Path, store: sustain.Store) -> None:
    store.commit()
    with sustain.open(path, readonly=True) as reader:
        with pytest.raises(sustain.NoSuchObject) as caught:
            reader.sqlite("main.db")
        assert caught.value.hint


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


def test_attached_names(database: apsw.Connection) -> None:
    with pytest.raises(sustain.ConfigError) as caught:
        database.execute("ATTACH ? AS other", ("x" * 256,))
    assert isinstance(caught.value, apsw.CantOpenError)
    database.execute("ATTACH 'file:other.db?mode=rwc' AS other; CREATE TABLE other.u (x)")
    assert database.db_filename("other") == "other.db"


def test_nothing_is_left_registered(store: sustain.Store) -> None:
    before = apsw.vfs_names()
    connection = store.sqlite("main.db")
    connection.execute("CREATE TABLE t (a)")
    assert len(apsw.vfs_names()) == len(before) + 1
    connection.close()
    del connection
    assert apsw.vfs_names() == before


def test_a_database_with_connections_is_not_deleted(store: sustain.Store, database: apsw.Connection) -> None:
    with pytest.raises(sustain.ObjectInUse) as caught:
        store.delete("main.db")
    assert caught.value.hint
    database.close()
    store.delete("main.db")
    assert store.objects() == []


def test_temporary_tables_stay_outside(store: sustain.Store, database: apsw.Connection) -> None:
    before = groups(store)
    database.pragma("cache_size", 2)
    database.execute("CREATE TEMP TABLE large AS SELECT a, zeroblob(100000) FROM t")
    assert count(database, "large") == 100
    assert groups(store) == before
    assert [name for name, _, _ in store.objects()] == ["main.db"]


def test_without_apsw(store: sustain.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("sustain.store.sqlite")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(sustain.ConfigError) as caught:
        store.sqlite("main.db")
    assert "sustain[sqlite]" in caught.value.hint


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_is_brought_in_and_out(
    store: sustain.Store, database: apsw.Connection, tmp_path: Path, mode: str
) -> None:
    old = apsw.Connection(str(tmp_path / "old.db"))
    old.pragma("journal_mode", mode)
    old.execute("CREATE TABLE u (x); INSERT INTO u VALUES (1), (2)")
    with database.backup("main", old, "main") as backup:
        backup.step(-1)
    old.close()
    assert count(database, "u") == 2
    store.file("bytes.db").pwrite((tmp_path / "old.db").read_bytes(), 0)
    store.commit()
    other = store.sqlite("bytes.db")
    for connection in (database, other):
        connection.execute("INSERT INTO u VALUES (3)")
        assert connection.pragma("journal_mode") == "memory"
        assert whole(connection)
    other.close()
    out = apsw.Connection(str(tmp_path / "out.db"))
    with out.backup("main", database, "main") as backup:
        backup.step(-1)
    database.execute("VACUUM INTO ?", (f"file:{tmp_path}/vacuumed.db?vfs=unix",))
    assert count(out, "u") == count(apsw.Connection(str(tmp_path / "vacuumed.db")), "u") == 3


@pytest.fixture
def three(store: sustain.Store, database: apsw.Connection) -> apsw.Connection:
    """With two more databases, whose journals SQLite wants in files: together they need a super-journal."""
    database.execute("ATTACH 'two.db' AS two; ATTACH 'three.db' AS three")
    database.execute("CREATE TABLE two.u (x); CREATE TABLE three.v (x)")
    assert database.pragma("journal_mode", schema="two") == "delete"
    return database


CHANGE = "INSERT INTO u VALUES (1); INSERT INTO v VALUES (1)"


@pytest.mark.parametrize("synchronous", ["off", "full"])
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
@pytest.mark.parametrize("locking", ["normal", "exclusive"])
def test_one_commit_under_a_super_journal(
    path: Path, store: sustain.Store, three: apsw.Connection, synchronous: str, begin: str, locking: str
) -> None:
    for schema in ("main", "two", "three"):
        three.pragma("synchronous", synchronous, schema=schema)
        three.pragma("locking_mode", locking, schema=schema)
    before = groups(store)
    three.execute(f"{begin}; {CHANGE}; COMMIT")
    assert groups(store) == before + 1
    control = Control(str(path), writable=True)
    control.set_lease(1, boottime_ns())
    three.execute(f"{begin}; {CHANGE}; INSERT INTO t VALUES (1000, 'x')")
    with pytest.raises(sustain.StoreFenced):
        three.execute("COMMIT")
    three.execute(f"{begin}; {CHANGE}")
    with pytest.raises(sustain.StoreFenced):
        three.execute("COMMIT")
    control.set_lease(1, boottime_ns() + 3_600_000_000_000)
    assert [count(three, table) for table in ("t", "u", "v")] == [100, 1, 1]
    three.execute(f"{begin}; {CHANGE}; COMMIT")
    assert [count(three, table) for table in ("t", "u", "v")] == [100, 2, 2]
    assert groups(store) == before + 2
    for schema in ("main", "two", "three"):
        assert three.pragma("integrity_check", schema=schema) == "ok"


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
