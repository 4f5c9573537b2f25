"""Connections: apsw's own, to a database of a store."""

from types import TracebackType
from typing import TYPE_CHECKING

import apsw

from sustain.errors import SustainError
from sustain.store.sqlite.session import Session

if TYPE_CHECKING:
    from sustain.store.store import Store


class Connection(apsw.Connection):
    """Made by `Store.sqlite`."""

    _session: Session | None = None

    def __init__(self, store: "Store", name: str, timeout: float) -> None:
        access = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        if store.readonly:
            access = apsw.SQLITE_OPEN_READONLY
        session = self._session = Session(store)
        super().__init__(name, flags=access | apsw.SQLITE_OPEN_URI, vfs=session.vfs_name)
        session.opening = False
        self.set_busy_timeout(round(timeout * 1000))
        # Kept by SQLite in its own memory: cheaper than in ours, and only a rollback reads it.
        self.pragma("journal_mode", "memory")

    def close(self, force: bool = False) -> None:
        """Roll back what is not committed, and close."""
        self._going()
        super().close(force)

    def __del__(self) -> None:
        self._going()

    def _going(self) -> None:
        if self._session is not None:
            self._session.closing = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """The end of the transaction of a `with` block, where apsw lets go of the reason why it failed."""
        try:
            return super().__exit__(kind, error, trace)
        except apsw.Error as failure:
            reason = failure.__context__
            if isinstance(failure, SustainError) or not isinstance(reason, SustainError) or reason is error:
                raise
            raise reason from None
