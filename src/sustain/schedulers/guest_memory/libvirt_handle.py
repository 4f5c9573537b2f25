"""A guest that libvirt manages. Used by `sense` where one is configured; needs the extra `libvirt`.

Its process is found by its UUID among the QEMU processes of this host, for what only /proc tells.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sustain.errors import HostError
from sustain.host import qemu
from sustain.host.guest_agent import read_texts
from sustain.host.guest_frames import GuestFrames
from sustain.host.libvirt import Domain
from sustain.schedulers.changes import Changes
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.handles import Monitor, ProcessHandle
from sustain.schedulers.guest_memory.model import Kind


class LibvirtHandle(ProcessHandle):
    """A domain, by its name or UUID."""

    kind: Kind = "libvirt"
    has_agent = True  # libvirt knows; it says so when there is none

    def __init__(
        self,
        config: GuestConfig,
        root: Path,
        timeout_s: float,
        period_s: int,
        changes: Changes | None = None,
    ) -> None:
        super().__init__(config, root, period_s, changes)
        self._domain = Domain(config.uri, config.domain or config.name, timeout_s)

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
        period_s, deflates = self._domain.memballoon() or (None, None)
        problem = ""
        if period_s == 0 and life is not None:
            with self._lock:
                period_s, problem = self._switch_on(life, self._domain.set_period)
        return Monitor(size, balloon, self._domain.statistics(), period_s or 0, problem, deflates)

    def period(self) -> int | None:
        with self._lock:  # not between noting and setting
            return self._domain.period()

    def set_period(self, period_s: int) -> None:
        with self._lock:
            self._domain.set_period(period_s)

    def texts(self, paths: Iterable[str]) -> dict[str, str | None]:
        with self._asking:
            return read_texts(self._domain, paths)

    def frames(self) -> GuestFrames | None:
        """What the guest says of its page frames, for `act`; None: its monitor may not be asked where they lie."""
        monitor = _Monitor(self._domain)
        try:
            monitor.ask("query-name")
        except HostError:
            return None
        return GuestFrames(
            self._domain.size_bytes(), lambda: contextlib.nullcontext(monitor), self._ask_agent
        )

    @contextlib.contextmanager
    def _ask_agent(self) -> Iterator[Domain]:
        with self._asking:
            yield self._domain

    def _find_pid(self) -> int | None:
        if self.life() is None:
            return None
        uuid = self._domain.identity()
        return next((each.who.pid for each in qemu.discover(self._root) if each.uuid == uuid), None)


class _Monitor:
    """The monitor of a domain, as `GuestFrames` asks it."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def ask(self, command: str, **arguments: Any) -> Any:
        return self._domain.ask_monitor(command, **arguments)
