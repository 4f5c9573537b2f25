"""How long each package was in its idle states, by the best source that this host has.

Used by power-aware placement. In this order: perf's `cstate_pkg` (`cstate_die` on parts with several dies), the
registers themselves, the share of time in C0 that an EPYC's HSMP tells, and where nothing counts what a package does,
the time of its processors in their deepest idle state, which is less and is called that. What keeps a better source
from being used is said with each package (`lacks`).

All but the last run on the package and wake it, so packages are read one by one: who has parked one asks for it rarely.
"""

import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from sustain.errors import HostError
from sustain.host import cpu_idle, firmware, hsmp, msr, perf_events
from sustain.host.package_sources import Clock, Way, Ways, since_boot_ns
from sustain.host.standstill import Standstill
from sustain.host.topology import Topology

Unit = Literal["tsc", "us", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageIdle:
    """One package at one moment. Counters are cumulative from `began_ns` on, and are of all its `parts` together."""

    source: str  # "perf", "msr", "hsmp", "cpuidle", "none"
    read_ns: int
    began_ns: int = 0  # of another beginning, they are other counters
    states: dict[str, int] | None = None  # "pc2", "pc6"; "core-c6" by cpuidle; None: not counted
    elapsed: int = 0  # what a state of one part would have counted since, had it never been left
    unit: Unit = ""  # of states and elapsed
    parts: int = 1  # dies, or by cpuidle processors
    active_percent: int | None = None  # by HSMP: of late, on average over its cores, the share of time in C0
    reason: str = ""  # why there is neither: "not measurable here, because …"


def shares_between(first: PackageIdle, second: PackageIdle) -> dict[str, float] | None:
    """Share of time in each state from `first` to `second`. None: not counted, no time passed, or other counters.

    By cpuidle a stay counts when it ends, so a share may be above one, and below one before."""
    if first.states is None or second.states is None or first.began_ns != second.began_ns:
        return None
    passed = (second.elapsed - first.elapsed) * second.parts
    if first.source != second.source or passed <= 0 or first.states.keys() != second.states.keys():
        return None
    return {name: (count - first.states[name]) / passed for name, count in second.states.items()}


class Packages:
    """The packages of a host, open for reading, as long as no processor comes or goes. Close it."""

    def __init__(
        self,
        topology: Topology,
        root: Path = Path("/"),
        *,
        kernel: perf_events.Kernel | None = None,
        pread: msr.Pread = os.pread,
        ioctl: hsmp.Ioctl = fcntl.ioctl,
        clock: Clock = since_boot_ns,
    ) -> None:
        """Raises HostError when it is not even known what host this is."""
        self._clock = clock
        identity = firmware.identify(root)
        self._standstill = Standstill(virtual=identity.virtual, must_move=False)
        sources: dict[str, Callable[[int], Way[_Found]]] = {
            "perf": lambda package: _Perf(topology, package, root, kernel),
            "msr": lambda package: _Registers(topology, package, root, identity, pread),
            "hsmp": lambda package: _Hsmp(package, root, ioctl),
            "cpuidle": lambda package: _Processors(topology, package, root, clock, identity.virtual),
        }
        self._ways = Ways(topology.packages, sources, clock)
        self.numbers = tuple(sorted(topology.packages))

    @property
    def lacks(self) -> dict[int, dict[str, str]]:
        """By package: better sources that were tried in vain, and why."""
        return self._ways.lacks

    def source(self, package: int) -> str:
        """Which one is used; "none"."""
        return self._ways.source(package)

    def offers(self, package: int) -> dict[str, HostError | None]:
        """What each source answers to being opened for this package, best first; None: it can be. Wakes it."""
        return self._ways.offers(package)

    def read(self, packages: Iterable[int] | None = None) -> dict[int, PackageIdle]:
        """Of these of them, all by default. Wakes them. What fails is said in its place."""
        return {package: self._read(package) for package in (self.numbers if packages is None else packages)}

    def _read(self, package: int) -> PackageIdle:
        try:
            source, began_ns, found = self._ways.read(package)
        except HostError as error:
            return PackageIdle(source="none", read_ns=self._clock(), reason=str(error))
        read_ns = self._clock()
        if found.active_percent is not None:
            return PackageIdle(source=source, read_ns=read_ns, active_percent=found.active_percent)
        counts = tuple(found.states.values())
        if doubt := self._standstill.doubt((package, source, began_ns), counts, read_ns):
            reason = f"not measurable here, because {doubt}"
            return PackageIdle(source=source, read_ns=read_ns, reason=reason)
        return PackageIdle(
            source=source,
            read_ns=read_ns,
            began_ns=began_ns,
            states=found.states,
            elapsed=found.elapsed,
            unit=found.unit,
            parts=found.parts,
        )

    def close(self) -> None:
        self._ways.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Found:
    states: dict[str, int]
    unit: Unit = ""
    elapsed: int = 0
    parts: int = 1
    active_percent: int | None = None


class _Perf:
    """A group of counters for each die, with the TSC in it."""

    def __init__(
        self, topology: Topology, package: int, root: Path, kernel: perf_events.Kernel | None
    ) -> None:
        pmu = perf_events.pmu("cstate_pkg", root) or perf_events.pmu("cstate_die", root)
        timing = perf_events.pmu("msr", root)
        tsc = timing.events.get("tsc") if timing is not None else None
        if pmu is None or not pmu.events:
            raise HostError(
                "perf has no cstate_pkg: the kernel does not know this processor, or hides it from guests",
                hint="modprobe intel_cstate",
            )
        if timing is None or tsc is None:
            raise HostError(
                "perf has no msr/tsc/ to time cstate_pkg by",
                hint="x86 kernels have it built in; a hypervisor may hide it",
            )
        self._names = sorted(pmu.events)
        events = [(pmu, pmu.events[name]) for name in self._names]
        cpus = sorted(pmu.cpus & topology.packages[package])
        if not cpus:
            raise HostError(
                f"perf {pmu.name}: no processor counts for package {package}",
                hint=f"are its processors offline? /sys/bus/event_source/devices/{pmu.name}/cpumask",
            )
        self._groups: list[perf_events.Group] = []
        try:
            for cpu in cpus:
                self._groups.append(perf_events.Group([*events, (timing, tsc)], cpu, kernel, root))
        except HostError:
            self.close()
            raise

    def read(self) -> _Found:
        readings = [each.read() for each in self._groups]
        if any(each.enabled_ns and not each.running_ns for each in readings):
            raise HostError(
                "perf does not count: other counters have taken its place",
                hint="end what else counts all processors' events (perf stat -a, turbostat)",
            )
        counts = [sum(column) for column in zip(*(each.counts for each in readings), strict=True)]
        names = ("p" + name.removesuffix("-residency") for name in self._names)  # "c6-residency"
        return _Found(
            dict(zip(names, counts, strict=False)), "tsc", counts[-1] // len(readings), len(readings)
        )

    def close(self) -> None:
        for each in self._groups:
            each.close()


class _Registers:
    """The registers of one processor of each die."""

    def __init__(
        self, topology: Topology, package: int, root: Path, identity: firmware.Identity, pread: msr.Pread
    ) -> None:
        self._registers = msr.registers(identity).package
        dies = [cpus for (its_package, _), cpus in sorted(topology.dies.items()) if its_package == package]
        self._open: list[msr.Msr] = []
        try:
            for cpus in dies:
                self._open.append(_answering(cpus, root, pread))
            self.read()  # whether it has them
        except HostError:
            self.close()
            raise

    def read(self) -> _Found:
        states = {
            name: sum(die.read(number) for die in self._open) for name, number in self._registers.items()
        }
        return _Found(states, "tsc", self._open[0].read(msr.TSC), len(self._open))

    def close(self) -> None:
        for each in self._open:
            each.close()


def _answering(cpus: Iterable[int], root: Path, pread: msr.Pread) -> msr.Msr:
    """The registers of the first of these processors that is still there."""
    *others, last = sorted(cpus)
    for cpu in others:
        try:
            found = msr.Msr(cpu, root, pread)
        except HostError:
            continue  # what keeps us from all of them is said of the last one
        try:
            found.read(msr.TSC)
        except HostError:
            found.close()
        else:
            return found
    return msr.Msr(last, root, pread)


class _Hsmp:
    """The share of time in C0."""

    def __init__(self, package: int, root: Path, ioctl: hsmp.Ioctl) -> None:
        self._package = package
        self._hsmp = hsmp.Hsmp(root, ioctl)
        try:
            self.read()  # whether it answers
        except HostError:
            self.close()
            raise

    def read(self) -> _Found:
        return _Found({}, active_percent=self._hsmp.c0_percent(self._package))

    def close(self) -> None:
        self._hsmp.close()


class _Processors:
    """The deepest idle state of each processor that is not switched off, all together."""

    def __init__(self, topology: Topology, package: int, root: Path, clock: Clock, virtual: bool) -> None:
        if virtual:
            raise HostError("this is a virtual machine, whose idle states are not its host's")
        if lacking := cpu_idle.unavailable(root):
            raise lacking
        self._clock = clock
        self._cpus = topology.packages[package]
        states = cpu_idle.states(min(self._cpus), root)
        self._deepest = max((n for n, each in enumerate(states) if n and not each.disabled), default=0)
        if not self._deepest:
            raise HostError(
                "its processors have no idle state that is switched on", hint="cpupower idle-set -E"
            )
        self._name = "core-" + states[self._deepest].name.lower()
        self._times = cpu_idle.Times(self._cpus, root)

    def read(self) -> _Found:
        times = self._times.read()
        if times.keys() != self._cpus or any(len(each) <= self._deepest for each in times.values()):
            raise HostError("some of its processors have no such idle state any more")
        total_us = sum(each[self._deepest] for each in times.values())
        return _Found({self._name: total_us}, "us", self._clock() // 1000, len(times))

    def close(self) -> None:
        self._times.close()
