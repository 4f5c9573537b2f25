"""The databases of one open store, shared by its connections: their files, their locks, and their commits.

`session.py` uses it for each connection, `Store` to keep `delete` and `refresh` from pulling a file from under one.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sustain import _native
from sustain.errors import ConfigError, NoSuchObject, ObjectInUse
from sustain.store.sqlite.locks import Locks
from sustain.store.sqlite.overlay import Overlay

if TYPE_CHECKING:
    from sustain.store.store import Store

_NAME_BYTES = 255  # of an object's name: docs/formats/objects.md


class Database:
    """One database of a store: the file as committed, empty while there is none, and its locks."""

    def __init__(self, store: "Store", name: str, mutex: threading.Lock) -> None:
        self._store = store
        self.name = name
        self.locks = Locks(mutex)
        self.connections = 0
        kind = next((kind for each, kind, _ in store.objects() if each == name), None)
        if kind is None and store.readonly:
            raise NoSuchObject(
                f"{store.path}: there is no database {name!r} in the store",
                hint="the writer's first transaction makes it; `refresh` moves to the newest commit",
            )
        # A file of a writer is made by its first transaction: made here, it would be one more change to roll back.
        self._file = None if kind is None else _native.File(store, name)

    @property
    def size(self) -> int:
        return 0 if self._file is None else self._file.size

    def pread(self, length: int, offset: int) -> bytes:
        return b"" if self._file is None else self._file.pread(length, offset)

    def put(self, overlay: Overlay, undo: list[Callable[[], object]]) -> None:
        """Write what differs into the file. What it takes to undo that is put into `undo`, before it is done."""
        for offset, data in overlay.pieces():
            before = self.pread(len(data), offset)
            if before == data:
                continue
            file = self._file if self._file is not None else self._make(undo)
            undo.append(_undoing(file, file.size, before, offset))
            file.pwrite(data, offset)
        if overlay.size > self.size:
            file = self._file if self._file is not None else self._make(undo)
            undo.append(_undoing(file, file.size, b"", 0))
            file.truncate(overlay.size)

    def cut(self, size: int) -> None:
        """Drop what lies behind `size`."""
        if self._file is not None:
            self._file.truncate(size)

    def _make(self, undo: list[Callable[[], object]]) -> _native.File:
        def unmake() -> None:
            self._file = None
            _native.Engine.delete(self._store, self.name)

        self._file = _native.File(self._store, self.name)
        undo.append(unmake)
        return self._file


def _undoing(file: _native.File, size: int, before: bytes, offset: int) -> Callable[[], object]:
    def undo() -> None:
        file.pwrite(before, offset)
        if file.size != size:
            file.truncate(size)

    return undo


def check_name(name: str) -> None:
    """ConfigError for one that no database of a store can have."""
    if not name.isprintable() or not 0 < len(name.encode()) <= _NAME_BYTES:
        raise ConfigError(
            f"a database of a store cannot be called {name!r}",
            hint=f"give the name of an object of the store, such as 'main.db': up to {_NAME_BYTES} bytes of text",
        )


_making = threading.Lock()


def databases_of(store: "Store") -> "Databases":
    """Those of `store`, made by its first connection."""
    with _making:
        if store._databases is None:
            store._databases = Databases(store)
        return store._databases


class Databases:
    """All databases of one open store that have connections."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._open: dict[str, Database] = {}

    def open(self, name: str) -> Database:
        """The database of that name, for one more connection. ConfigError for a name that cannot be; NoSuchObject."""
        check_name(name)
        with self._mutex:
            database = self._open.get(name)
            if database is None:
                database = self._open[name] = Database(self._store, name, self._mutex)
            database.connections += 1
            return database

    def close(self, database: Database) -> None:
        with self._mutex:
            database.connections -= 1
            if database.connections == 0:
                self._open.pop(database.name, None)

    def in_use(self, name: str) -> bool:
        return name in self._open

    def refresh(self, refresh: Callable[[], int]) -> int:
        """Move a read-only store by `refresh`. ObjectInUse while a connection reads: it would see two states."""
        with self._mutex:
            for name, database in self._open.items():
                if database.locks.held:
                    raise ObjectInUse(
                        f"{self._store.path}: a connection is reading {name!r}",
                        hint="end its transaction, or read its cursor to the end, before `refresh`",
                    )
            return refresh()

    def commit(self, changes: Sequence[tuple[Database, Overlay]]) -> None:
        """Put all changes into their files and commit the store, or leave all as it was and raise what the store says.

        Other changes made in the store since its last commit are part of the commit, as always.
        """
        store, undo = self._store, list[Callable[[], object]]()
        with self._alone():
            try:
                for database, overlay in changes:
                    database.put(overlay, undo)
                if undo:
                    store.commit()
            except BaseException:
                for step in reversed(undo):
                    step()
                raise
            # On its own: cut off before, what was there would have to be held in memory to undo it. Until then the
            # file is longer than SQLite's header says, which it allows.
            longer = [(database, overlay) for database, overlay in changes if database.size > overlay.size]
            for database, overlay in longer:
                database.cut(overlay.size)
            if longer:
                store.commit()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread commits or rolls back the store meanwhile."""
        if self._store._transaction_thread == threading.get_ident():
            yield
            return
        self._store.begin()
        try:
            yield
        finally:
            self._store.end()
