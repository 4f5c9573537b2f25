"""Reads the host and all guests into one Observation.

Used by the guest memory scheduler's loop, `sustain memory status` and `sustain record`. Each guest is looked at by a
thread of its own, with time limits in all it asks. A reading waits for all that answer in time; a guest that did not
the last time is waited for only as far as it came then, and what it says later comes with the next reading. So one that
hangs, dies or trickles its answers delays nobody, and its figures show their age. Rejected: an event loop for all
guests, since libvirt's calls and the files of /proc block.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from sustain.clock import Clock, SystemClock
from sustain.errors import SustainError, unexpected
from sustain.host import large_pages, meminfo, pressure, qemu, swaps, vmstat
from sustain.host.cgroup import Cgroup
from sustain.host.meminfo import Meminfo
from sustain.host.pressure import Pressure
from sustain.host.processes import Identity
from sustain.host.swaps import Swaps
from sustain.host.vmstat import Vmstat
from sustain.schedulers.changes import Changes, Unnoted
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig, check
from sustain.schedulers.guest_memory.handles import CgroupHandle, GuestHandle, Machine, QemuHandle
from sustain.schedulers.guest_memory.look import Looker
from sustain.schedulers.guest_memory.model import Guest, Host, Observation
from sustain.schedulers.guest_memory.sampling import WINDOW_S, Sampler

T = TypeVar("T")

_REFILLS = (
    "khugepaged fills again what balloons take, in blocks of which anything is left: to stop that, "
    f"echo 0 > {large_pages.MAX_PTES_NONE}"
)
_AT_ONCE = 32  # guests that are let go at the same time; one that hangs takes its time limit


class Sensor:
    """Close it, so that what was switched on for reading is switched off."""

    def __init__(
        self,
        config: GuestsConfig,
        root: Path = Path("/"),
        clock: Clock | None = None,
        fresh_s: float = 30.0,
        changes: Changes | None = None,
        window_s: float = WINDOW_S,
        period_s: float = 0.0,
    ) -> None:
        """Raises ConfigError. `fresh_s`: how long a guest agent's answer is better than newer ones of its balloon;
        `changes`: where what is changed for reading is noted, None: nowhere; `window_s`: within which memory that was
        used counts as such, where the host samples it; by page_idle, the least of that; `period_s`: between
        two readings."""
        check(config)
        self._config = config
        self._root = root
        self._clock = clock or SystemClock()
        self._fresh_s = fresh_s
        self._changes = changes or Unnoted()
        self._sampler = Sampler(self._changes, self._clock, root, window_s, period_s)
        self._watches: dict[str, _Watch] = {}
        self._names: dict[Identity, str] = {}  # of guests that were found: theirs for as long as they run
        for each in config.guests:
            self._add(each)
        if config.discover:
            self._discover()  # so that what is to be put back can be found before anything is read

    @property
    def handles(self) -> Mapping[str, GuestHandle]:
        """The guests that were configured, and those that the last reading found, by name."""
        return {name: watch.handle for name, watch in self._watches.items()}

    def read(self) -> Observation:
        """All that can be known within the time limit."""
        host = self._host()
        self._sampler.forget()
        extra = self._discover() if self._config.discover else ()
        began_s = time.monotonic()
        for watch in self._watches.values():
            watch.start(host, self._clock.boottime_ns() / 1e9)
        # A look asks twice: the hypervisor, and the agent.
        deadline_s = began_s + 2 * self._config.timeout_s
        for watch in self._watches.values():
            watch.wait(deadline_s)
        guests = []
        problems = list(extra)
        for name, watch in self._watches.items():
            guest, problem = watch.result(self._clock.boottime_ns() / 1e9)
            if guest is not None:
                guests.append(guest)
            elif problem is not None:
                problems.append(f"guest {name}: {problem}")
        if any("balloon" in guest.can for guest in guests):
            problems.extend(self._against_balloons())
        return Observation(
            at_s=self._clock.boottime_ns() / 1e9,
            host=msgspec.structs.replace(host, problems=(*host.problems, *problems)),
            guests=tuple(guests),
        )

    def pressures(self) -> Iterator[tuple[str, Path, str]]:
        """Whose stalls the kernel counts, by which file, and the life of that: the host, guests with a cgroup."""
        yield "the host", pressure.file_of_host(self._root), ""
        for name, watch in self._watches.items():
            path = watch.handle.cgroup()
            if path is None:
                continue
            try:
                group = Cgroup.open(path, self._root)
            except SustainError:
                continue  # it is not there now, as its guest's problems say
            yield f"guest {name}", group.pressure_file, group.life

    def close(self) -> None:
        """Raises SustainError when something could not be put back; the rest is."""
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._watches) + 1), "close") as pool:
            results = [pool.submit(watch.close) for watch in self._watches.values()]
            results.append(pool.submit(self._sampler.close))
        for each in results:
            each.result()

    def _add(self, config: GuestConfig) -> None:
        handle: Machine | CgroupHandle
        if config.kind == "cgroup":
            handle = CgroupHandle(config, self._root)
        elif config.kind == "libvirt":
            from sustain.schedulers.guest_memory.libvirt_handle import LibvirtHandle

            handle = LibvirtHandle(
                config,
                self._root,
                self._config.timeout_s,
                self._config.statistics_period_s,
                self._changes,
            )
        else:
            handle = QemuHandle(
                config,
                self._root,
                self._config.timeout_s,
                self._config.statistics_period_s,
                self._changes,
            )
        looker = Looker(self._clock, self._fresh_s, self._root, self._sampler)
        self._watches[config.name] = _Watch(config, handle, looker, self._config.timeout_s)

    def _discover(self) -> tuple[str, ...]:
        """Find guests that are not configured, forget found ones that have gone; what cannot be used, in words."""
        configured = {each.name for each in self._config.guests}
        sockets = {os.path.realpath(each.qmp) for each in self._config.guests if each.qmp is not None}
        domains = {each.domain or each.name for each in self._config.guests if each.kind == "libvirt"}
        pids = {each.pid for each in self._config.guests}
        problems = []
        found: dict[str, GuestConfig] = {}
        running = qemu.discover(self._root)
        names = {each.who: self._names[each.who] for each in running if each.who in self._names}
        taken = configured | set(names.values())
        for each in running:
            if each.who.pid in pids or {each.name, each.uuid} & domains:
                continue
            if each.qmp is not None and os.path.realpath(each.qmp) in sockets:
                continue
            if each.qmp is None:
                kind = (
                    "libvirt manages it: configure it with kind libvirt"
                    if each.managed
                    else "it has no QMP socket"
                )
                problems.append(f"QEMU process {each.who.pid} ({each.name}) is left alone: {kind}")
                continue
            name = names.get(each.who)
            if name is None:
                name = each.name if each.name not in taken else f"{each.name}.{each.who.pid}"
                names[each.who] = name
                taken.add(name)
            found[name] = GuestConfig(name=name, qmp=each.qmp, guest_agent=each.guest_agent, pid=each.who.pid)
        self._names = names
        for name, watch in list(self._watches.items()):
            if name not in configured and found.get(name) != watch.config:
                watch.retire()
                del self._watches[name]
        for name, config in found.items():
            if name not in self._watches:
                self._add(config)
        return tuple(problems)

    def _against_balloons(self) -> tuple[str, ...]:
        try:
            return (_REFILLS,) if large_pages.settings(self._root).refills else ()
        except SustainError as error:
            return (str(error),)

    def _host(self) -> Host:
        problems: list[str] = []

        def known(read: Callable[[Path], T], unknown: T) -> T:
            try:
                return read(self._root)
            except SustainError as error:
                problems.append(str(error))
                return unknown

        memory, counters = known(meminfo.read, Meminfo()), known(vmstat.read, Vmstat())
        stalls = known(pressure.of_host, Pressure())
        swap: Swaps | None = known(swaps.read, None)
        return Host(
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            available_bytes=memory.available_bytes,
            swap_total_bytes=None if swap is None else swap.total_bytes,
            swap_free_bytes=None if swap is None else swap.free_bytes,
            stall_us=stalls.some_us,
            swap_in_bytes=counters.swap_in_bytes,
            swap_out_bytes=counters.swap_out_bytes,
            problems=tuple(problems),
        )


class _Watch:
    """One guest, and the thread that looks at it."""

    def __init__(
        self, config: GuestConfig, handle: Machine | CgroupHandle, looker: Looker, timeout_s: float
    ) -> None:
        self.config = config
        self.handle = handle
        self._looker = looker
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._host: Host | None = None  # what the look that goes on was started with
        self._began_s = 0.0  # when it was, by the host's clock
        self._started_s = 0.0  # and when its thread took it up, by this process's
        self._step = 0  # how often that look has told what it has so far
        self._prompt = [0, 1]  # how much of that was told within the time limit: by it, and by the one before
        self._slow = False  # whether the last look took longer than an answer may
        self._retired = False
        self._guest: Guest | None = None
        self._problem: str | None = None

    def start(self, host: Host, now_s: float) -> None:
        """Begin a look, unless the last one goes on."""
        with self._changed:
            if self._host is not None:
                return
            self._host, self._began_s, self._step, self._prompt[0] = host, now_s, 0, 0
            if self._thread is None:
                name = f"look at {self.handle.name}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, deadline_s: float) -> None:
        """Until the look has ended; for a guest that was slow, until what came in time the last time is there."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._host is None or (self._slow and self._step >= self._prompt[1]),
                deadline_s - time.monotonic(),
            ):
                self._slow = True

    def result(self, now_s: float) -> tuple[Guest | None, str | None]:
        """The guest as it was seen last; or why it is not there."""
        with self._changed:
            if self._host is None:
                return self._guest, self._problem
            if self._step and self._guest is not None:
                problems = (*self._guest.problems, "it has not answered in time")
                return msgspec.structs.replace(self._guest, problems=problems), None
            silent = f"no answer for {now_s - self._began_s:.0f} s"
            if self._guest is None:
                return None, silent
            return _aged(self._guest, silent), None

    def retire(self) -> None:
        """No more looks; one that goes on ends by itself."""
        with self._changed:
            self._retired = True
            self._changed.notify_all()

    def close(self) -> None:
        self.retire()
        if not isinstance(self.handle, CgroupHandle):
            self.handle.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._host is not None or self._retired)
                host = self._host
            if self._retired or host is None:
                return
            self._started_s = time.monotonic()
            guest = problem = None
            try:
                guest = self._look(host)
                problem = None if guest is not None else "it is not running"
            except SustainError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - said of this guest; it must not keep the others from being seen
                problem = unexpected(error)
            with self._changed:
                self._guest, self._problem, self._host = guest, problem, None
                self._slow = time.monotonic() - self._started_s >= self._timeout_s
                self._prompt[1] = max(1, self._prompt[0])
                self._changed.notify_all()

    def _look(self, host: Host) -> Guest | None:
        if isinstance(self.handle, CgroupHandle):
            return self._looker.cgroup(self.handle, host.total_bytes)
        swap = None if host.swap_total_bytes is None else host.swap_total_bytes > 0
        return self._looker.machine(self.handle, swap, self._publish)

    def _publish(self, guest: Guest) -> None:
        with self._changed:
            self._guest, self._problem = guest, None
            self._step += 1
            if time.monotonic() - self._started_s < self._timeout_s:
                self._prompt[0] = self._step
            self._changed.notify_all()


def _aged(guest: Guest, why: str) -> Guest:
    """What is left of an older look: the classes, which have their own time."""
    figures = msgspec.structs.replace(
        guest.figures,
        balloon_bytes=None,
        resident_bytes=None,
        host_swapped_bytes=None,
        huge_bytes=None,
        host_swap_in_bytes=None,
    )
    return msgspec.structs.replace(guest, figures=figures, can=(), problems=(why,))
