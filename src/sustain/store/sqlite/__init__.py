"""SQLite on a store: databases that are files of a store, so that any SQLite application is replicated and taken over.

`Store.sqlite` uses it. SQLite does its input and output through a VFS (`session.py`) whose database files (`files.py`)
lie in the store. What a transaction writes is kept beside the file (`overlay.py`) until SQLite asks for it to be made
durable; then it goes into the file and the store commits, which is atomic (`databases.py`). So the store's log is the
journal, and what SQLite would write into one of its own stays in memory: docs/decisions/0035-sqlite-on-a-store.md.

It needs the package `apsw` (extra `sqlite`), imported here only and only when a database is asked for.
"""

from typing import TYPE_CHECKING

from sustain.errors import ConfigError

if TYPE_CHECKING:
    import apsw

    from sustain.store.store import Store

_LONGEST_S = 1_000_000  # SQLite counts milliseconds in 32 bits


def connect(store: "Store", name: str, timeout: float) -> "apsw.Connection":
    """A connection to the database `name` of `store`; see `Store.sqlite`."""
    try:
        from sustain.store.sqlite.connection import Connection
        from sustain.store.sqlite.databases import check_name
    except ModuleNotFoundError as error:
        if error.name != "apsw":
            raise
        raise ConfigError(
            "SQLite on a store needs the package apsw, which is not installed",
            hint="pip install 'sustain[sqlite]'",
        ) from None
    check_name(name)
    if name == ":memory:" or name.startswith("file:"):
        raise ConfigError(
            f"{name!r} means something else to SQLite than a database of a store",
            hint="give the name of an object of the store, such as 'main.db'",
        )
    if not 0 <= timeout <= _LONGEST_S:
        raise ConfigError(f"a timeout of {timeout!r} s cannot be", hint="give seconds: 0 does not wait")
    return Connection(store, name, timeout)
