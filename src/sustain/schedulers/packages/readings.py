"""The packages' counters as one sum for each: time in idle states, and energy, of all dies and of the memory.

Used by `sense`, and by `active`. Between two readings of a source the shares of time and the joules are known, and are
added up here; where they are not, since its counters have begun anew or another source was taken, the package is
unmeasurable for one reading, so that nobody takes the difference. A package that is parked is read as rarely as the
policy says, since that wakes it; what was read last stands until then, with its time.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sustain.clock import Clock
from sustain.host import package_idle, package_power, perf_events
from sustain.host.package_idle import PackageIdle
from sustain.host.package_power import PackagePower
from sustain.host.topology import Topology
from sustain.schedulers.packages.model import Package, PowerSource, Source

RangeOf = Callable[[int], tuple[float | None, float | None]]  # base_hz and most_hz of a package
_ESTIMATES = frozenset(("cpuidle", "hsmp"))


@dataclass(slots=True)
class _Sum:
    """Of one package."""

    idle: PackageIdle | None = None
    power: PackagePower | None = None
    residency_s: dict[str, float] = field(default_factory=dict)
    energy_j: float = 0.0
    package: Package | None = None


class Readings:
    """Close it."""

    def __init__(
        self,
        clock: Clock,
        root: Path = Path("/"),
        *,
        kernel: perf_events.Kernel | None = None,
        pread: Callable[[int, int, int], bytes] = os.pread,
    ) -> None:
        """`kernel`, `pread`: in place of the host's performance counters and registers."""
        self._clock = clock
        self._root = root
        self._kernel = kernel
        self._pread = pread
        self._topology: Topology | None = None
        self._idle: package_idle.Packages | None = None
        self._power: package_power.Packages | None = None
        self._sums: dict[int, _Sum] = {}

    def read(
        self,
        topology: Topology,
        range_of: RangeOf,
        parked: Collection[int] = (),
        parked_read_s: float = 0.0,
    ) -> tuple[Package, ...]:
        """All packages that have processors online. Raises HostError when it is not even known what host this is."""
        if self._topology is None or topology.cpus != self._topology.cpus:
            self._open(topology)
        assert self._idle is not None
        assert self._power is not None
        now_s = self._clock.boottime_ns() / 1e9
        self._sums = {number: self._sums.get(number, _Sum()) for number in sorted(topology.packages)}
        found = []
        for number, summed in self._sums.items():
            last = summed.package
            if last is None or number not in parked or now_s - _last_s(summed) >= parked_read_s:
                idle = self._idle.read((number,))[number]
                power = self._power.read((number,))[number]
                last = self._add(number, summed, idle, power, range_of(number))
            summed.package = last
            found.append(last)
        return tuple(found)

    def _add(
        self,
        number: int,
        summed: _Sum,
        idle: PackageIdle,
        power: PackagePower,
        speeds: tuple[float | None, float | None],
    ) -> Package:
        known: dict[str, Any] = {}
        problems: list[str] = []
        if why := _add_idle(summed, idle):
            problems.append(f"its idle states: {why}")
        else:
            known |= {"residency_s": dict(summed.residency_s), "read_s": idle.read_ns / 1e9}
            known["source"] = cast(Source, idle.source)
            problems += self._estimated(number, idle)
        if why := _add_power(summed, power):
            problems.append(f"its watts: {why}")
        else:
            known |= {"energy_j": summed.energy_j, "energy_read_s": power.read_ns / 1e9}
            known["power_source"] = cast(PowerSource, power.source)
        summed.idle, summed.power = idle, power
        base_hz, most_hz = speeds
        return Package(number=number, base_hz=base_hz, most_hz=most_hz, problems=tuple(problems), **known)

    def _estimated(self, number: int, idle: PackageIdle) -> list[str]:
        """What better sources lack, of one that tells of processors and not of the package."""
        if idle.source not in _ESTIMATES or self._idle is None:
            return []
        lacks = "; ".join(f"{name}: {why}" for name, why in self._idle.lacks.get(number, {}).items())
        return [f"its idle states are not counted as a whole, only those of its processors ({lacks})"]

    def _open(self, topology: Topology) -> None:
        self.close()
        clock = self._clock.boottime_ns
        self._idle = package_idle.Packages(
            topology, self._root, kernel=self._kernel, pread=self._pread, clock=clock
        )
        self._power = package_power.Packages(topology, self._root, kernel=self._kernel, clock=clock)
        self._topology = topology

    def close(self) -> None:
        for each in (self._idle, self._power):
            if each is not None:
                each.close()
        self._idle = self._power = self._topology = None


def _last_s(summed: _Sum) -> float:
    """When it was read last."""
    read_ns = [each.read_ns for each in (summed.idle, summed.power) if each is not None]
    return max(read_ns, default=0) / 1e9


def _add_idle(summed: _Sum, now: PackageIdle) -> str:
    """Why it is not measurable now; "": it is added."""
    before = summed.idle
    if now.states is None:
        if now.active_percent is not None:
            summed.residency_s = {}
            return ""
        return now.reason
    if before is None or before.states is None:
        summed.residency_s = dict.fromkeys(now.states, 0.0)
        return ""
    shares = package_idle.shares_between(before, now)
    if shares is None:
        if before.read_ns == now.read_ns:
            return ""  # no time has passed
        summed.residency_s = dict.fromkeys(now.states, 0.0)
        return "not measurable in this interval, because its counters have begun anew"
    passed_s = (now.read_ns - before.read_ns) / 1e9
    for state, share in shares.items():
        summed.residency_s[state] = summed.residency_s.get(state, 0.0) + max(0.0, share) * passed_s
    return ""


def _add_power(summed: _Sum, now: PackagePower) -> str:
    before = summed.power
    if now.power_w is not None:
        if before is not None and before.power_w is not None:
            summed.energy_j += now.power_w * (now.read_ns - before.read_ns) / 1e9
        return ""
    if now.package is None:
        return now.reason
    if before is None or before.package is None:
        return ""
    used = package_power.joules_between(before, now)
    if used.package_j is None or (used.dram_j is None and now.dram is not None):
        return "not measurable in this interval, because its counters have begun anew"
    summed.energy_j += used.package_j + (used.dram_j or 0.0)
    return ""
