"""Transactions over several databases of a store: one commit, or none."""

from pathlib import Path

import apsw
import apsw.bestpractice
import pytest

import sustain
from sustain._native import Control, boottime_ns
from tests.store.sqlite.conftest import count, groups, whole


@pytest.fixture
def three(store: sustain.Store, database: apsw.Connection) -> apsw.Connection:
    """With two more databases, whose journals SQLite wants in files: together they need a super-journal."""
    database.execute("ATTACH 'two.db' AS two; ATTACH 'three.db' AS three")
    database.execute("CREATE TABLE two.u (x); CREATE TABLE three.v (x)")
    assert database.pragma("journal_mode", schema="two") == "delete"
    return database


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


def test_attached_names(database: apsw.Connection) -> None:
    with pytest.raises(sustain.ConfigError) as caught:
        database.execute("ATTACH ? AS other", ("x" * 256,))
    assert isinstance(caught.value, apsw.CantOpenError)
    database.execute("ATTACH 'file:other.db?mode=rwc' AS other; CREATE TABLE other.u (x)")
    assert database.db_filename("other") == "other.db"


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
