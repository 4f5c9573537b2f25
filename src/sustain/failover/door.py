"""The door of a host that is the primary: who would ship to it hears that it is too late, or that it is too early.

Used by `supervise`. Open while the host ships, on the address where it receives as a standby; closed before its
receiver starts. That it cannot be opened is said and harms nothing: a former primary then finds nobody here, and is
fenced by the lease alone.
"""

from collections.abc import Callable

from sustain._native import Control
from sustain.errors import SustainError
from sustain.replication.credentials import CredentialFiles
from sustain.replication.door import Doorkeeper
from sustain.replication.urls import parse_listen


class Door:
    """Opened and closed any number of times. `fenced` is called, in a thread, when a newer epoch was heard of."""

    def __init__(
        self,
        store: str,
        listen: str | None,
        files: CredentialFiles,
        *,
        tell: Callable[[str], None],
        fenced: Callable[[], None],
    ) -> None:
        self._store, self._listen, self._files = store, listen, files
        self._tell = tell
        self._fenced = fenced
        self._keeper: Doorkeeper | None = None

    def open(self, epoch: int) -> None:
        """This host is the primary in `epoch`."""
        if self._listen is None or self._keeper is not None:
            return
        try:
            control = Control(self._store)
            try:
                store_uuid = control.superblock()["store_uuid"]
            finally:
                control.close()
            keeper = Doorkeeper(
                parse_listen(self._listen),
                self._files.load(self._tell),
                store_uuid=store_uuid,
                epoch=epoch,
                fence=self._fence,
            )
            keeper.start()
        except SustainError as error:
            self._tell(f"nobody answers on {self._listen} while this host is the primary: {error}")
            return
        self._keeper = keeper

    def close(self) -> None:
        """The address is free again."""
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None

    def _fence(self, epoch: int) -> None:
        try:
            control = Control(self._store, writable=True)
        except SustainError as error:
            self._tell(f"epoch {epoch} exists, but the store cannot be told: {error}")
            return
        try:
            control.set_fence(epoch)
        finally:
            control.close()
        self._fenced()
