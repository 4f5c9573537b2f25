"""A database in a store, and what tests ask of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import apsw
import apsw.bestpractice
import pytest

import sustain


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
