"""`Store`, `create` and `open`: the programming model that applications see.

Change objects as plain memory, then `commit()`: all changes since the last commit become one atomic, durable
group, and its position comes back. `rollback()` forgets them. A store has one writer process; a change made
by any of its threads belongs to the next commit, whoever makes it. Per-thread transactions were rejected:
arrays are plain memory, and nobody can tell which thread wrote a byte of it.
"""

import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from sustain import _native
from sustain.errors import ConfigError, ObjectInUse, StoreError, WaitTimeout
from sustain.store.arrays import open_array
from sustain.store.files import File
from sustain.store.maps import Map
from sustain.store.status import StoreStatus, store_status
from sustain.units import format_duration, parse_size

if TYPE_CHECKING:
    import apsw
    import numpy as np

    from sustain.store.sqlite.databases import Databases

_BLOCK_BYTES = 2 << 20
_LARGEST_BYTES = 64 << 40


class Store(_native.Engine):
    """An open store. Made by `sustain.open` and `sustain.create`; a context manager that closes it.

    Native methods, with nothing in between:

    - `commit() -> int`: all changes since the last commit, atomically and durably; the position after it.
      Raises LogTooSmall (the changes cannot fit the log: roll back, commit in smaller steps), LogFull,
      BudgetExceeded, StoreFenced, StorePoisoned.
    - `rollback()`: forget all changes since the last commit.
    - `objects()`: list of (name, kind, bytes held).
    - `checkpoint() -> int`: make the image durable and trim the log; it happens by itself too.
    - `close()`: changes that were not committed are dropped; `closed`, `path`, `readonly`, `position`,
      `capture`.

    Leaving a `with` block closes the store and commits nothing.
    """

    _transaction_thread: int | None = None
    _databases: "Databases | None" = None  # that have connections; none was ever asked for

    def map(self, name: str) -> Map:
        """The map `name`, made when there is none. NoSuchObject when the name is of another kind of
        object."""
        return Map(self, name)

    def array(
        self,
        name: str,
        shape: "SupportsIndex | Iterable[SupportsIndex] | None" = None,
        dtype: Any = None,
    ) -> "np.ndarray[Any, Any]":
        """The array `name`: plain memory that any NumPy code may write to; the next commit finds what
        changed.

        A new one needs `shape` and `dtype` and is zero. An existing one is returned as stored when both are
        None; a shape that is larger in its first axis grows it, with zeros. Raises NoSuchObject (none, or of
        another kind), StoreError (another dtype or shape), ObjectInUse (it would have to move, and views of
        the old memory live), StoreFull. Read-only stores give read-only arrays.
        """
        return open_array(self, name, shape, dtype)

    def file(self, name: str) -> File:
        """The file `name`, made when there is none. NoSuchObject when the name is of another kind of
        object."""
        return File(self, name)

    def sqlite(self, name: str, *, timeout: float = 5.0) -> "apsw.Connection":
        """A new connection to the SQLite database `name`, which lies in the store as a file; made by its first
        transaction when there is none.

        Each transaction of SQLite is a commit of the store, with its durability, and takes along whatever else was
        changed in the store; `store.wait(store.position)` then waits until others hold it. Of a read-only store the
        connection reads, and sees what the store sees: `refresh` moves it. `timeout`: seconds that a statement waits
        for other connections' locks (apsw.BusyError).

        What the store refuses comes out of `execute` as the store's error, which is an `apsw.Error` as well, and the
        transaction is rolled back: StoreFull, LogTooSmall, LogFull and BudgetExceeded as SQLITE_FULL; StoreFenced,
        StorePoisoned and others as SQLITE_IOERR. NoSuchObject: none in a read-only store, or another kind of object.
        ConfigError: a name that cannot be, WAL mode, or the package apsw is missing.
        """
        from sustain.store.sqlite import connect

        return connect(self, name, timeout)

    def refresh(self) -> int:
        """Read-only stores move to the writer's newest commit; its position. ObjectInUse while a SQLite connection
        reads."""
        if self._databases is None or not self.readonly:
            return super().refresh()
        return self._databases.refresh(super().refresh)

    def delete(self, name: str) -> None:
        """Delete an object. NoSuchObject; ObjectInUse while NumPy views or SQLite connections of it live."""
        if self._databases is not None and self._databases.in_use(name):
            raise ObjectInUse(
                f"{self.path}: connections to the database {name!r} are open", hint="close them first"
            )
        super().delete(name)

    def transaction(self) -> "Transaction":
        """A context manager: commit at its end, or rollback when an exception leaves it.

        Other threads' commits wait meanwhile; changes that they make are part of it, because a transaction is
        of the store, not of a thread. Changes made before it and not committed yet are part of it too.
        Nesting is an error.
        """
        return Transaction(self)

    def wait(self, pos: int, copies: int = 1, timeout: float = 5.0) -> None:
        """Return once `copies` destinations hold position `pos` durably.

        Raises WaitTimeout after `timeout` seconds, naming what each destination holds. The commit stands
        anyway: it is local and will still be shipped. Raises StoreFenced when the lease has
        passed meanwhile: another host may have taken over without those destinations.
        """
        if self.wait_copies(pos, copies, timeout):
            return
        raise _wait_timeout(self.path, self.status(), pos, copies, timeout)

    def status(self) -> StoreStatus:
        """Positions and destinations, read from the control words; None = unknown."""
        return store_status(
            self.words(), self.destinations(), self.position, _native.boottime_ns(), self.shipper_locked()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "read-only" if self.readonly else "open"
        return f"<sustain.Store {self.path!r}, {state}>"


class Transaction:
    """What `Store.transaction` returns; `position` is that of its commit, None before it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.position: int | None = None

    def __enter__(self) -> Self:
        # Only the owner writes its own id, so comparing with ours needs no lock.
        if self._store._transaction_thread == threading.get_ident():
            raise StoreError(
                f"{self._store.path}: a transaction is open in this thread already",
                hint="transactions do not nest: commit or leave the outer one first",
            )
        self._store.begin()
        self._store._transaction_thread = threading.get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        store = self._store
        try:
            if kind is not None:
                store.rollback()
                return
            try:
                self.position = store.commit()
            except BaseException:
                store.rollback()
                raise
        finally:
            store._transaction_thread = None
            store.end()


def create(
    path: str | os.PathLike[str],
    size: int | str = "256MiB",
    log_size: int | str = "64MiB",
    durability: str = "auto",
) -> Store:
    """Create a store at `path`, never over an existing file, and open it for writing.

    `size` is the room for objects, `log_size` bounds one commit and what waits to be shipped (both "256MiB"
    or bytes, rounded up to 2 MiB). `durability`: "pmem", "disk", "memory", or "auto" for the best that the
    medium offers. Raises StoreIOError (a path that cannot be written, a full disk), StoreError, ConfigError.
    """
    text = os.fspath(path)
    _one_of("durability", durability, ("auto", "pmem", "disk", "memory"))
    Store.format(text, room(size, "size"), room(log_size, "log size"), durability)
    return Store(text)


def open(
    path: str | os.PathLike[str],
    readonly: bool = False,
    *,
    capture: str = "auto",
    verify: str = "lazy",
    log_timeout: float = 60.0,
) -> Store:
    """Open the store at `path`, recovering it as far as it was durable. One writer; any number of readers.

    `readonly` sees the newest committed state, also while a writer works, and moves on with `refresh`. It
    keeps a private copy of the used pages. `capture`: how changed array pages are found, "auto", "scan"
    (kernel 6.7), "pagemap", "compare". `verify`: "lazy" checks pages when they are first used, "full" all of
    them now. `log_timeout`: seconds that a commit waits for room in a log that a required destination still
    needs (LogFull), or until less is unshipped than the battery allows (BudgetExceeded). Raises NotAStore,
    NewerVersion, StoreBusy, StoreCorrupt, StoreUntrusted, StoreIOError.
    """
    _one_of("capture", capture, ("auto", "scan", "pagemap", "compare"))
    _one_of("verify", verify, ("lazy", "full"))
    return Store(os.fspath(path), readonly, capture, verify, log_timeout)


def room(value: int | str, what: str) -> int:
    """Bytes of an image or a log as asked for: whole blocks of 2 MiB, at least one. Raises ConfigError."""
    size_bytes = parse_size(value, what)
    if not 0 < size_bytes <= _LARGEST_BYTES:
        raise ConfigError(f"{what} {value!r} cannot be", hint="from 2MiB to 64TiB, in steps of 2MiB")
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{what} {value!r} is not known", hint=f"one of {', '.join(known)}")


def _wait_timeout(path: str, status: StoreStatus, pos: int, copies: int, timeout: float) -> WaitTimeout:
    held = [
        f"{each.url} ({each.state}) "
        + ("holds an unknown position" if each.acked is None else f"holds {each.acked}")
        for each in status.destinations
    ]
    have = sum(1 for each in status.destinations if each.acked is not None and each.acked >= pos)
    hint = "see `sustain status`; the commit stands locally and will still be shipped"
    if not held:
        held = ["no destination is known"]
        hint = "start the shipper: run the application under `sustain run`, or `sustain ship` beside it"
    return WaitTimeout(
        f"{path}: position {pos} is on {have} of {copies} destinations after {format_duration(timeout)}: "
        + "; ".join(held),
        hint=hint,
    )
