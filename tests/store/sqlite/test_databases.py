"""SQLite on a store: what an application sees of it."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import apsw.bestpractice
import pytest

import sustain
from sustain.store.sqlite.databases import Database
from sustain.store.sqlite.overlay import Overlay
from tests.store.sqlite.conftest import count, groups, in_threads, whole


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


def test_nothing_is_left_registered(store: sustain.Store) -> None:
    before = apsw.vfs_names()
    connection = store.sqlite("main.db")
    connection.execute("CREATE TABLE t (a)")
    assert len(apsw.vfs_names()) == len(before) + 1
    connection.close()
    del connection
    assert apsw.vfs_names() == before


def test_temporary_tables_stay_outside(store: sustain.Store, database: apsw.Connection) -> None:
    before = groups(store)
    database.pragma("cache_size", 2)
    database.execute("CREATE TEMP TABLE large AS SELECT a, zeroblob(100000) FROM t")
    assert count(database, "large") == 100
    assert groups(store) == before
    assert [name for name, _, _ in store.objects()] == ["main.db"]


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
