"""What can be asked of one guest, and done to it, whatever it is: the ways that `sense` reads by and `act` acts by.

A handle is the guest's place, not its life: QEMU may be started again behind it, and then `life` is another. Each
call takes a few times the configured limit at most and raises HostError for what the guest or the host refuses; any
thread may call. A connection lasts for one call: QMP serves one client at a time, and an operator's tool must get in
between. Rejected: one open connection for each guest, with its events.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from sustain.errors import HostError, JournalError
from sustain.host import balloon, processes
from sustain.host.balloon import Statistics
from sustain.host.cgroup import Cgroup
from sustain.host.guest_agent import GuestAgent, read_texts
from sustain.host.guest_frames import GuestFrames
from sustain.host.maps import Area, guest_ram
from sustain.host.pagemap import Pagemap
from sustain.host.processes import Identity
from sustain.host.qemu import is_another
from sustain.host.qmp import Qmp, listener
from sustain.schedulers.changes import Changes, Unnoted
from sustain.schedulers.guest_memory.changes import STATISTICS, aside, statistics
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.model import Kind

_KNOWN_S = 60.0  # how long what hardly ever changes is not asked again


class GuestHandle(Protocol):
    """A guest, by its name."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    def life(self) -> str | None:
        """What tells this start of it from the one before; None: it is gone."""

    def process(self) -> Identity | None:
        """The process whose memory the guest's is; None: there is none (a cgroup), or it is gone."""

    def cgroup(self) -> str | None:
        """The directory of the cgroup by which its memory can be reclaimed; None: none was given."""

    def balloon(self) -> int | None:
        """Bytes that the balloon leaves the guest now; None: it has no balloon."""

    def set_balloon(self, to_bytes: int) -> None:
        """Ask for it, and return; `balloon` tells how far it has come."""

    def resident(self) -> int | None:
        """Bytes of the guest's memory in the host's; None: unknown."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a guest's memory takes of the host. Bytes; None: unknown."""

    resident_bytes: int | None = None
    swapped_bytes: int | None = None
    huge_bytes: int | None = None
    major_faults: int | None = None  # of its process: reads from the host's swap, and of files


@dataclass(frozen=True, slots=True)
class Monitor:
    """What the hypervisor says of a guest."""

    size_bytes: int | None
    balloon_bytes: int | None  # None: no balloon
    statistics: Statistics | None  # None: no balloon
    period_s: int = 0  # between two statistics; 0: they are off
    problem: str = ""  # why they are off
    deflates: bool | None = None  # the balloon gives back when the guest runs out of memory; None: unknown


class Machine(GuestHandle, Protocol):
    """A virtual machine."""

    has_agent: bool  # whether there is a way to a guest agent

    def areas(self) -> tuple[Area, ...]:
        """Where its RAM lies in the memory of its process; empty when that is not known."""

    def footprint(self) -> Footprint: ...

    def monitor(self) -> Monitor: ...

    def texts(self, paths: Iterable[str]) -> dict[str, str | None]:
        """Files of the guest, by its agent."""

    def close(self) -> None:
        """Put back what was changed for reading."""


class ProcessHandle:
    """A guest whose memory is that of a process."""

    kind: Kind

    def __init__(
        self, config: GuestConfig, root: Path, period_s: int, changes: Changes | None = None
    ) -> None:
        """`period_s`: between two of its balloon's statistics, where they are off and switched on here."""
        self.name = config.name
        self._config = config
        self._root = root
        self._period_s = period_s
        self._changes = changes or Unnoted()
        self._lock = threading.RLock()
        # Apart from the other, so that a silent agent does not hold up the balloon; an agent is asked by one at a time.
        self._asking = threading.Lock()
        self._closed = False  # nothing is switched on any more, also by a look that goes on
        self._period_set: str | None = None  # the life whose statistics were switched on here
        self._who: Identity | None = None
        self._size_bytes: int | None = None  # of its RAM, as its hypervisor said last
        self._areas: tuple[Identity, int, tuple[Area, ...]] | None = None

    def life(self) -> str | None:
        raise NotImplementedError

    def process(self) -> Identity | None:
        with self._lock:
            if self._who is None or not processes.alive(self._who, str(self._root)):
                pid = self._config.pid if self._config.pid is not None else self._find_pid()
                self._who = None if pid is None else processes.identify(pid, str(self._root))
            return self._who

    def cgroup(self) -> str | None:
        return self._config.cgroup

    def areas(self) -> tuple[Area, ...]:
        who = self.process()
        with self._lock:
            if who is None:
                return ()
            size = self._size_bytes
            if self._areas is None or self._areas[:2] != (who, size):
                found = guest_ram(who.pid, size, self._root) or ()
                if size is None:  # what was found may not be all: ask again
                    return found
                self._areas = who, size, found
            return self._areas[2]

    def footprint(self) -> Footprint:
        """Of its RAM where that is anonymous memory, else of the whole process: the pages of shared memory in swap are
        not in the page tables."""
        who = self.process()
        if who is None:
            return Footprint()
        faults = processes.major_faults(who.pid, str(self._root))
        areas = self.areas()
        if areas and all(each.backing == "anonymous" for each in areas):
            pages = Pagemap(who.pid, self._root)
            try:
                parts = [pages.census(each.start, each.end) for each in areas]
            finally:
                pages.close()
            huge = [each.huge_bytes for each in parts if each.huge_bytes is not None]
            return Footprint(
                sum(each.present_bytes - (each.zero_bytes or 0) for each in parts),
                sum(each.swapped_bytes for each in parts),
                sum(huge) if len(huge) == len(parts) else None,
                faults,
            )
        memory = processes.memory(who.pid, str(self._root))
        if memory is None:
            return Footprint()
        return Footprint(memory.resident, memory.swapped, memory.huge, faults)

    def resident(self) -> int | None:
        return self.footprint().resident_bytes

    def period(self) -> int | None:
        """Seconds between two of its balloon's statistics; 0: they are off, None: it has no balloon."""
        raise NotImplementedError

    def set_period(self, period_s: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Switch the statistics off that were switched on here, for good."""
        with self._lock:
            self._closed = True
            if self._period_set is None:
                return
            if self._period_set == self.life() and self.period() == self._period_s:
                self.set_period(0)
            self._period_set = None
            self._changes.forget(statistics(self.name))

    def _switch_on(self, life: str, set_period: Callable[[int], None]) -> tuple[int, str]:
        """Note that its statistics, which are off, are switched on, and do it by `set_period`: seconds between two of
        them now, and why they are still off, else "". Called with the lock."""
        if self._closed:
            return 0, "its balloon's statistics are off, and nobody looks any more"
        target = {"guest": self.name, "life": life}
        try:
            self._changes.note(
                statistics(self.name), STATISTICS, target, 0, self._period_s, aside(self._root)
            )
        except JournalError as error:
            return (
                0,
                f"its balloon's statistics are off, and cannot be switched on, since that cannot be noted: {error}",
            )
        self._period_set = life  # before: a call that comes back too late may have set it
        set_period(self._period_s)
        return self._period_s, ""

    def _find_pid(self) -> int | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _Known:
    """What hardly ever changes in a life of QEMU, asked at `asked_s` of this process's clock."""

    who: Identity
    asked_s: float
    size_bytes: int
    device: str | None  # its balloon
    period_s: int  # between two statistics; 0: they are off
    problem: str = ""  # why
    deflates: bool | None = None  # when the guest runs out of memory


class QemuHandle(ProcessHandle):
    """QEMU with a QMP socket; without one (only `pid` given) it can be looked at, and paged out."""

    kind: Kind = "qemu"

    def __init__(
        self,
        config: GuestConfig,
        root: Path,
        timeout_s: float,
        period_s: int,
        changes: Changes | None = None,
    ) -> None:
        super().__init__(config, root, period_s, changes)
        self._timeout_s = timeout_s
        self._known: _Known | None = None
        self._updated_s = 0  # of the last statistics
        self.has_agent = config.guest_agent is not None

    def life(self) -> str | None:
        who = self.process()
        return None if who is None else _life(who)

    def balloon(self) -> int | None:
        with self._lock, self._qmp() as qmp:
            return balloon.actual(qmp)

    def set_balloon(self, to_bytes: int) -> None:
        with self._lock, self._qmp() as qmp:
            balloon.set_target(qmp, to_bytes)

    def monitor(self) -> Monitor:
        who = self.process()
        with self._lock, self._qmp() as qmp:
            if who is None:
                self._size_bytes = balloon.size(qmp)
                return Monitor(self._size_bytes, None, None)
            known = self._known
            if known is None or known.who != who or time.monotonic() - known.asked_s >= _KNOWN_S:
                known = self._known = self._ask_what_is_known(qmp, who)
                self._size_bytes = known.size_bytes
            if known.device is None:
                return Monitor(known.size_bytes, None, None)
            actual, said = balloon.actual(qmp), balloon.statistics(qmp, known.device)
            if said.updated_s and said.updated_s == self._updated_s:
                self._known = None  # none have come since: has somebody switched them off?
            self._updated_s = said.updated_s
            return Monitor(known.size_bytes, actual, said, known.period_s, known.problem, known.deflates)

    def _ask_what_is_known(self, qmp: Qmp, who: Identity) -> _Known:
        """Three questions of five; each costs both processes something, and there may be hundreds of guests."""
        asked_s, size = time.monotonic(), balloon.size(qmp)
        known = self._known
        device = known.device if known is not None and known.who == who else balloon.find(qmp)
        if device is None:
            return _Known(who, asked_s, size, None, 0)
        period_s, problem = balloon.period(qmp, device), ""
        if period_s == 0:
            period_s, problem = self._switch_on(_life(who), partial(balloon.set_period, qmp, device))
        if known is not None and known.device == device and known.who == who:
            deflates = known.deflates
        else:
            deflates = balloon.deflates(qmp, device)
        return _Known(who, asked_s, size, device, period_s, problem, deflates)

    def period(self) -> int | None:
        with self._lock, self._qmp() as qmp:
            device = balloon.find(qmp)
            return None if device is None else balloon.period(qmp, device)

    def set_period(self, period_s: int) -> None:
        with self._lock, self._qmp() as qmp:
            self._known = None
            device = balloon.find(qmp)
            if device is not None:
                balloon.set_period(qmp, device, period_s)

    def texts(self, paths: Iterable[str]) -> dict[str, str | None]:
        if self._config.guest_agent is None:
            raise HostError(f"{self.name}: no guest agent is configured", hint="guest_agent = PATH")
        with self._asking, GuestAgent(self._config.guest_agent, self._timeout_s) as agent:
            return read_texts(agent, paths)

    def frames(self) -> GuestFrames | None:
        """What the guest says of its page frames, for `act`; None: nobody can be asked, or its size is not known."""
        if self._config.guest_agent is None or self._config.qmp is None:
            return None
        size = self.monitor().size_bytes
        return None if size is None else GuestFrames(size, self._ask_qmp, self._ask_agent)

    @contextlib.contextmanager
    def _ask_qmp(self) -> Iterator[Qmp]:
        with self._lock, self._qmp() as qmp:
            yield qmp

    @contextlib.contextmanager
    def _ask_agent(self) -> Iterator[GuestAgent]:
        assert self._config.guest_agent is not None
        with self._asking, GuestAgent(self._config.guest_agent, self._timeout_s) as agent:
            yield agent

    def _qmp(self) -> Qmp:
        if self._config.qmp is None:
            raise HostError(f"{self.name}: no QMP socket is configured", hint="qmp = PATH")
        qmp = Qmp(self._config.qmp, self._timeout_s)
        who = self._who
        if who is not None and is_another(qmp.listener, who, self._root):
            qmp.close()
            self._who = self._known = None
            raise HostError(
                f"{self.name}: {self._config.qmp} is answered by process {qmp.listener}, and not by {who.pid}",
                hint="has another guest been started with the same QMP socket?",
            )
        return qmp

    def _find_pid(self) -> int | None:
        if self._config.qmp is None:
            return None
        try:
            return listener(self._config.qmp, self._timeout_s)
        except HostError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):  # nobody listens there
                return None
            raise


def _life(who: Identity) -> str:
    return f"{who.pid}:{who.start_ticks}"


class CgroupHandle:
    """A container: whatever runs in a cgroup."""

    kind: Kind = "cgroup"

    def __init__(self, config: GuestConfig, root: Path) -> None:
        assert config.cgroup is not None
        self.name = config.name
        self._path = config.cgroup
        self._root = root

    def open(self) -> Cgroup:
        """The cgroup that has the path now. Raises HostError."""
        return Cgroup.open(self._path, self._root)

    def life(self) -> str | None:
        try:
            return self.open().life
        except HostError:
            return None

    def process(self) -> Identity | None:
        return None

    def cgroup(self) -> str | None:
        return self._path

    def balloon(self) -> int | None:
        return None

    def set_balloon(self, to_bytes: int) -> None:
        raise HostError(f"{self.name}: a cgroup has no balloon")

    def resident(self) -> int | None:
        return self.open().current_bytes()
