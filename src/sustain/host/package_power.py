"""What energy each package and its memory used, by the best source that this host has: powercap, perf's `power`, or the
power that an EPYC's HSMP tells.

Used by power-aware placement. What keeps a better source from being used is said with each package (`lacks`). Reading
wakes the package, so packages are read one by one. A counter of energy that stands still is none, on any host: what is
on uses some.
"""

import fcntl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import firmware, hsmp, perf_events, powercap
from sustain.host.package_sources import Clock, Way, Ways, since_boot_ns
from sustain.host.powercap import Energy
from sustain.host.standstill import Standstill
from sustain.host.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePower:
    """One package at one moment. Counters are cumulative from `began_ns` on, one for each die."""

    source: str  # "powercap", "perf", "hsmp", "none"
    read_ns: int
    began_ns: int = 0  # of another beginning, they are other counters
    package: tuple[Energy, ...] | None = None  # without its memory; None: not counted
    dram: tuple[Energy, ...] | None = None
    power_w: float | None = None  # by HSMP: of late, without its memory
    reason: str = ""  # why there is neither: "not measurable here, because …"


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy that was used; None: not measurable."""

    package_j: float | None
    dram_j: float | None


def joules_between(first: PackagePower, second: PackagePower) -> Joules:
    """From `first` to `second`, if no counter began again more than once."""
    if first.source != second.source or first.began_ns != second.began_ns:
        return Joules(None, None)
    return Joules(_sum(first.package, second.package), _sum(first.dram, second.dram))


def _sum(first: tuple[Energy, ...] | None, second: tuple[Energy, ...] | None) -> float | None:
    if first is None or second is None or len(first) != len(second):
        return None
    total_j = 0.0
    for before, later in zip(first, second, strict=True):
        used_j = powercap.joules_between(before, later)
        if used_j is None:
            return None
        total_j += used_j
    return total_j


class Packages:
    """The packages of a host, open for reading, as long as no processor comes or goes. Close it."""

    def __init__(
        self,
        topology: Topology,
        root: Path = Path("/"),
        *,
        kernel: perf_events.Kernel | None = None,
        ioctl: hsmp.Ioctl = fcntl.ioctl,
        clock: Clock = since_boot_ns,
    ) -> None:
        """Raises HostError when it is not even known what host this is."""
        self._clock = clock
        self._standstill = Standstill(virtual=firmware.identify(root).virtual, must_move=True)
        sources: dict[str, Callable[[int], Way[_Found]]] = {
            "powercap": lambda package: _Powercap(package, root),
            "perf": lambda package: _Perf(topology, package, root, kernel),
            "hsmp": lambda package: _Hsmp(package, root, ioctl),
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

    def read(self, packages: Iterable[int] | None = None) -> dict[int, PackagePower]:
        """Of these of them, all by default. Wakes them. What fails is said in its place."""
        return {package: self._read(package) for package in (self.numbers if packages is None else packages)}

    def _read(self, package: int) -> PackagePower:
        try:
            source, began_ns, found = self._ways.read(package)
        except HostError as error:
            return PackagePower(source="none", read_ns=self._clock(), reason=str(error))
        read_ns = self._clock()
        if found.power_w is not None:
            return PackagePower(source=source, read_ns=read_ns, power_w=found.power_w)
        counts = tuple(each.used_uj for each in found.package)
        if doubt := self._standstill.doubt((package, source, began_ns), counts, read_ns):
            reason = f"not measurable here, because {doubt}"
            return PackagePower(source=source, read_ns=read_ns, reason=reason)
        return PackagePower(
            source=source, read_ns=read_ns, began_ns=began_ns, package=found.package, dram=found.dram
        )

    def close(self) -> None:
        self._ways.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Found:
    package: tuple[Energy, ...]
    dram: tuple[Energy, ...] | None = None
    power_w: float | None = None


class _Powercap:
    """The zones of one package."""

    def __init__(self, package: int, root: Path) -> None:
        if lacking := powercap.unavailable(root):
            raise lacking
        self._package: list[powercap.Meter] = []
        self._dram: list[powercap.Meter] = []
        meters = {"package": self._package, "dram": self._dram}
        try:
            for zone in powercap.zones(root):
                if zone.package == package and zone.kind in meters:
                    meters[zone.kind].append(powercap.Meter(zone))
        except HostError:
            self.close()
            raise
        if not self._package:
            raise HostError(f"powercap has no zone of package {package}")

    def read(self) -> _Found:
        package = tuple(each.read() for each in self._package)
        return _Found(package, tuple(each.read() for each in self._dram) or None)

    def close(self) -> None:
        for each in (*self._package, *self._dram):
            each.close()


class _Perf:
    """A group of counters for each die."""

    def __init__(
        self, topology: Topology, package: int, root: Path, kernel: perf_events.Kernel | None
    ) -> None:
        pmu = perf_events.pmu("power", root)
        if pmu is None or "energy-pkg" not in pmu.events:
            raise HostError(
                "perf has no power/energy-pkg/", hint="modprobe rapl; hypervisors hide it from guests"
            )
        cpus = sorted(pmu.cpus & topology.packages[package])
        if not cpus:
            raise HostError(
                f"perf power: no processor counts for package {package}",
                hint="are its processors offline? /sys/bus/event_source/devices/power/cpumask",
            )
        self._events = [pmu.events[name] for name in ("energy-pkg", "energy-ram") if name in pmu.events]
        self._groups: list[perf_events.Group] = []
        try:
            for cpu in cpus:
                events = [(pmu, each) for each in self._events]
                self._groups.append(perf_events.Group(events, cpu, kernel, root))
        except HostError:
            self.close()
            raise

    def read(self) -> _Found:
        readings = [each.read() for each in self._groups]
        if any(each.enabled_ns and not each.running_ns for each in readings):
            raise HostError(
                "perf power does not count: other counters have taken its place",
                hint="end what else counts all processors' events (perf stat -a, turbostat)",
            )
        package, *dram = (
            tuple(Energy(round(each.counts[place] * event.scale * 1e6), None) for each in readings)
            for place, event in enumerate(self._events)
        )
        return _Found(package, dram[0] if dram else None)

    def close(self) -> None:
        for each in self._groups:
            each.close()


class _Hsmp:
    """The power of a socket."""

    def __init__(self, package: int, root: Path, ioctl: hsmp.Ioctl) -> None:
        self._package = package
        self._hsmp = hsmp.Hsmp(root, ioctl)
        try:
            self.read()  # whether it answers
        except HostError:
            self.close()
            raise

    def read(self) -> _Found:
        return _Found((), power_w=self._hsmp.power_w(self._package))

    def close(self) -> None:
        self._hsmp.close()
