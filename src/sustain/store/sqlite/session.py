"""The VFS of one connection: which file is what, and when the store commits.

Each connection has a VFS of its own, registered with SQLite as long as the connection lives: so the files that SQLite
opens through it are known to belong together. With one for all, a transaction over several databases (ATTACH) could
not be one commit of the store.

Databases are files of the store. Journals, which only a rollback in this process reads, are kept in memory: after a
crash the store is at its last commit by itself. Temporary files go where SQLite has them, outside the store.
"""

import itertools
from typing import TYPE_CHECKING

import apsw

from sustain.store.sqlite.databases import databases_of
from sustain.store.sqlite.errors import telling
from sustain.store.sqlite.files import DatabaseFile, JournalFile

if TYPE_CHECKING:
    from sustain.store.store import Store

_numbers = itertools.count(1)
_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


class Session(apsw.VFS):
    """What SQLite asks of the file system, for one connection to databases of `store`."""

    def __init__(self, store: "Store") -> None:
        self.store = store
        self.opening = True  # hooks that see every connection run
        self.closing = False  # nothing can be committed any more, only rolled back
        self.vfs_name = f"sustain-{next(_numbers)}"
        self._databases = databases_of(store)
        self._open: list[DatabaseFile] = []
        self._journals: dict[str, JournalFile] = {}
        self._super_journals: set[str] = set()
        super().__init__(self.vfs_name, "unix")

    @telling(apsw.SQLITE_CANTOPEN)
    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        if text is None or not flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | _JOURNALS):
            return super().xOpen(name, flags)
        flags[1] = flags[0]
        if flags[0] & apsw.SQLITE_OPEN_SUPER_JOURNAL:
            self._super_journals.add(text)
        if flags[0] & _JOURNALS:
            # What SQLite needs of a file, as apsw allows; its stub asks for apsw's own.
            return self._journals.setdefault(text, JournalFile())  # type: ignore[return-value]
        if self.store.readonly and flags[0] & apsw.SQLITE_OPEN_READWRITE:
            flags[1] = (
                flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
            )
        file = DatabaseFile(self, self._databases.open(text))
        self._open.append(file)
        return file  # type: ignore[return-value]

    @telling(apsw.SQLITE_IOERR_DELETE)
    def xDelete(self, filename: str, syncdir: bool) -> None:
        if filename in self._super_journals and syncdir:
            # To SQLite this is the moment at which a transaction over several databases counts; of errors that come
            # later it takes no notice.
            self.commit()
        self._super_journals.discard(filename)
        self._journals.pop(filename, None)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return pathname in self._journals

    def xFullPathname(self, name: "str | apsw.URIFilename") -> str:
        return name.filename() if isinstance(name, apsw.URIFilename) else name

    def synced(self, file: DatabaseFile) -> None:
        """SQLite wants durable what it wrote to `file`: commit, unless other databases are part of the transaction and
        still to come. Then the last of them commits all."""
        if self.closing:
            return  # it has rolled back, and the store may be closed, or the interpreter near its end
        file.synced = True
        if not any(each.writing and not each.synced for each in self._open):
            self.commit()

    def commit(self) -> None:
        """Everything that was written. Raises what the store says; nothing is changed then."""
        changes = [(each.database, each.overlay) for each in self._open if each.overlay is not None]
        if changes:
            self._databases.commit(changes)
        for each in self._open:
            each.forget()

    def forget(self) -> None:
        """Drop everything that was written."""
        for each in self._open:
            each.forget()

    def closed(self, file: DatabaseFile) -> None:
        """`file` is used no more."""
        self._open.remove(file)
        self._databases.close(file.database)
