"""A guest that libvirt manages. Used by `sense` where one is configured; needs the extra `libvirt`.

Its process is found by its UUID among the QEMU processes of this host, for what only /proc tells.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

from sustain.host import qemu
from sustain.host.guest_agent import read_texts
from sustain.host.libvirt import Domain
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.handles import Monitor, ProcessHandle
from sustain.schedulers.guest_memory.model import Kind


class LibvirtHandle(ProcessHandle):
    """A domain, by its name or UUID."""

    kind: Kind = "libvirt"
    has_agent = True  # libvirt knows; it says so when there is none

    def __init__(self, config: GuestConfig, root: Path, timeout_s: float, period_s: int) -> None:
        super().__init__(config, root)
        self._domain = Domain(config.uri, config.domain or config.name, timeout_s)
        self._period_s = period_s
        self._period_set: str | None = None  # the life whose statistics were switched on here
        self._asking = threading.Lock()  # an agent is asked by one at a time

    def life(self) -> str | None:
        return self._domain.running()

    def balloon(self) -> int | None:
        return self._domain.balloon_bytes()

    def set_balloon(self, to_bytes: int) -> None:
        self._domain.set_balloon(to_bytes)

    def monitor(self) -> Monitor:
        life = self.life()
        size = self._size_bytes = self._domain.size_bytes()
        balloon = self._domain.balloon_bytes()
        if balloon is None:
            return Monitor(size, None, None)
        said = self._domain.statistics()
        if said.updated_s == 0 and self._period_set != life:
            self._domain.set_period(self._period_s)
            self._period_set = life
        return Monitor(size, balloon, said, self._period_s)

    def texts(self, paths: Iterable[str]) -> dict[str, str | None]:
        with self._asking:
            return read_texts(self._domain, paths)

    def close(self) -> None:
        """Switch the statistics off that were switched on here."""
        if self._period_set is not None and self._period_set == self.life():
            self._domain.set_period(0)
        self._period_set = None

    def _find_pid(self) -> int | None:
        if self.life() is None:
            return None
        uuid = self._domain.identity()
        return next((each.who.pid for each in qemu.discover(self._root) if each.uuid == uuid), None)
