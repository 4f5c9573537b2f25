"""The files that SQLite sees: a database of the store, and journals in memory.

Made by `session.py`. The methods are those of SQLite's sqlite3_io_methods, under the names that apsw gives them.
"""

from typing import TYPE_CHECKING, Final

import apsw

from sustain.errors import ConfigError
from sustain.store.sqlite.errors import for_sqlite, telling
from sustain.store.sqlite.header import shown, written
from sustain.store.sqlite.locks import NONE, RESERVED
from sustain.store.sqlite.overlay import Overlay

if TYPE_CHECKING:
    from sustain.store.sqlite.databases import Database
    from sustain.store.sqlite.session import Session

# A commit is all or nothing, whatever was written in which order.
_CHARACTERISTICS: Final = (
    apsw.SQLITE_IOCAP_SAFE_APPEND
    | apsw.SQLITE_IOCAP_SEQUENTIAL
    | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
    | apsw.SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN
)
_SECTOR_BYTES: Final = 4096


class DatabaseFile:
    """One database, as one connection sees it.

    synced: SQLite has asked to make durable what was written, and the store has not committed yet.
    overlay: what was written; None = nothing.
    """

    __slots__ = ("_session", "database", "overlay", "synced")

    def __init__(self, session: "Session", database: "Database") -> None:
        self._session = session
        self.database = database
        self.overlay: Overlay | None = None
        self.synced = False

    @property
    def writing(self) -> bool:
        """Whether this connection has begun to change the database."""
        return self.database.locks.level(self) >= RESERVED

    def forget(self) -> None:
        """What was written: it is committed, or will never be."""
        self.overlay, self.synced = None, False

    @telling(apsw.SQLITE_IOERR_READ)
    def xRead(self, amount: int, offset: int) -> bytes:
        overlay = self.overlay
        data = self.database.pread(amount, offset) if overlay is None else overlay.read(amount, offset)
        return shown(data) if offset == 0 else data

    @telling(apsw.SQLITE_IOERR_WRITE)
    def xWrite(self, data: bytes, offset: int) -> None:
        if self.overlay is None:
            self.overlay = Overlay(self.database)
        self.overlay.write(bytes(data) if offset else written(bytes(data)), offset)

    @telling(apsw.SQLITE_IOERR_TRUNCATE)
    def xTruncate(self, newsize: int) -> None:
        if self.overlay is None:
            self.overlay = Overlay(self.database)
        self.overlay.truncate(newsize)

    @telling(apsw.SQLITE_IOERR_FSYNC)
    def xSync(self, flags: int) -> None:
        if self.overlay is not None:
            self._session.synced(self)

    @telling(apsw.SQLITE_IOERR_FSTAT)
    def xFileSize(self) -> int:
        return self.database.size if self.overlay is None else self.overlay.size

    def xLock(self, level: int) -> None:
        if not self.database.locks.take(self, level):
            raise apsw.BusyError("another connection to the database is in the way")

    def xUnlock(self, level: int) -> None:
        self.forget()
        self.database.locks.lower(self, level)

    def xCheckReservedLock(self) -> bool:
        return self.database.locks.reserved()

    @telling(apsw.SQLITE_IOERR_COMMIT_ATOMIC)
    def xFileControl(self, op: int, ptr: int) -> bool:
        if op == apsw.SQLITE_FCNTL_PRAGMA:
            return self._pragma(apsw.VFSFcntlPragma(ptr))
        if op == apsw.SQLITE_FCNTL_COMMIT_PHASETWO:
            # With synchronous=OFF nobody has asked for anything, and of several databases not all may have changed.
            try:
                self._session.commit()
            except BaseException:
                self._session.forget()  # SQLite has its journal closed already: it reads all anew
                raise
        return False

    def _pragma(self, pragma: apsw.VFSFcntlPragma) -> bool:
        """Whether the pragma is dealt with. ConfigError for a journal mode that cannot be."""
        refusal = _refusal(pragma.value) if pragma.name.lower() == "journal_mode" else None
        if refusal is None:
            return False
        if not self._session.opening:
            raise for_sqlite(refusal, apsw.SQLITE_ERROR)
        # What an application does to every connection (apsw.connection_hooks, as apsw.bestpractice has it) does not
        # mean this one: it is answered as SQLite answers where there is no WAL, by the mode that stays.
        pragma.result = "memory"
        return True

    def xSectorSize(self) -> int:
        return _SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return _CHARACTERISTICS

    def xClose(self) -> None:
        self.forget()
        self.database.locks.lower(self, NONE)
        self._session.closed(self)


def _refusal(journal_mode: str | None) -> ConfigError | None:
    """Why a database of a store cannot have this journal mode."""
    mode = (journal_mode or "").lower()
    if mode == "wal":
        return ConfigError(
            "a database in a store cannot be in WAL mode",
            hint="leave journal_mode as it is: the store's log is the write-ahead log",
        )
    if mode == "off":
        return ConfigError(
            "a database in a store cannot do without a journal: SQLite could not roll back",
            hint="leave journal_mode as it is: the journal is in memory and costs no writes",
        )
    return None


class JournalFile:
    """A rollback journal that SQLite wants in a file (ATTACH, journal_mode=DELETE and the like), in memory: it serves
    a rollback in this process, and nothing after it."""

    __slots__ = ("_content",)

    def __init__(self) -> None:
        self._content = bytearray()

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._content[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        if len(self._content) < offset:
            self._content.extend(bytes(offset - len(self._content)))
        self._content[offset : offset + len(data)] = data

    def xTruncate(self, newsize: int) -> None:
        del self._content[newsize:]

    def xSync(self, flags: int) -> None:
        """Nothing to make durable."""

    def xFileSize(self) -> int:
        return len(self._content)

    def xLock(self, level: int) -> None:
        """Only its own connection knows of it."""

    def xUnlock(self, level: int) -> None:
        """As `xLock`."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return _SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return _CHARACTERISTICS

    def xClose(self) -> None:
        """Its session keeps it until SQLite deletes it."""
