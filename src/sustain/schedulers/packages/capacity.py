"""How much work a package takes, and what packing costs those who do it. Pure.

Used by `decide`. Work is counted in processors in use: one thread that never waits is 1. A package takes as much as it
has cores; a second thread on a core brings `smt_gain` of another one, when the operator lets it be used.

The expected slowdown is the sum of what is known of it; what is not known is named beside it:
- frequency: the fewer cores work, the faster each may run; taken as a straight line from one core's most to the base
  frequency with all of them;
- waiting: work that finds all cores busy waits, by Sakasegawa's formula for many servers (Annals of the Institute of
  Statistical Mathematics 29A, 1977): ρ^(√(2(c+1)) − 1) / (c (1−ρ)) of its own length;
- threads of one core: as far as demand is more than there are cores;
- memory on a node from which work is moved away, as far as it does not follow.
"""

import math
from dataclasses import dataclass

import numpy as np

from sustain.schedulers.packages.model import Cpus, Package
from sustain.schedulers.packages.policy import Policy


@dataclass(frozen=True, slots=True)
class Room:
    """One package."""

    number: int
    cpus: tuple[int, ...]
    cores: int
    capacity: float  # processors' work


@dataclass(frozen=True, slots=True)
class Slowdown:
    """What is expected, as shares of time; None: unknown, and not in the sum."""

    frequency: float | None
    waiting: float
    threads: float
    memory: float

    @property
    def total(self) -> float:
        return (self.frequency or 0.0) + self.waiting + self.threads + self.memory

    @property
    def words(self) -> str:
        parts = [
            f"{name} {value:.1%}"
            for name, value in (
                ("frequency", self.frequency),
                ("waiting", self.waiting),
                ("threads on one core", self.threads),
                ("remote memory", self.memory),
            )
            if value
        ]
        unknown = "" if self.frequency is not None else "; of frequency nothing is known"
        return f"{self.total:.1%} slower ({', '.join(parts) or 'nothing known'}{unknown})"


def rooms(cpus: Cpus, policy: Policy) -> dict[int, Room]:
    """What each package takes."""
    found = {}
    for package in np.unique(cpus.package).tolist():
        rows = cpus.package == package
        numbers = cpus.number[rows].tolist()
        cores = len(set(zip(cpus.die[rows].tolist(), cpus.core[rows].tolist(), strict=True)))
        capacity = float(cores)
        if policy.smt == "use":
            capacity += policy.smt_gain * (len(numbers) - cores)
        found[package] = Room(package, tuple(sorted(numbers)), cores, capacity)
    return found


def left(needed: float, awake: list[Room], headroom: float) -> float:
    """How much room is left over when `needed` runs anywhere on `awake`; negative: it does not fit."""
    return headroom * sum(room.capacity for room in awake) - needed


def waiting(demand: float, servers: float) -> float:
    """Expected wait over service time, by Sakasegawa."""
    if servers <= 0 or demand <= 0:
        return 0.0
    use = min(demand / servers, 0.999)
    return float(use ** (math.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - use)))


def slowdown(
    demand: float,
    before: list[Room],
    after: list[Room],
    packages: dict[int, Package],
    remote_share: float,
    policy: Policy,
) -> Slowdown:
    """Of work that is spread over `before` and comes to be on `after`; `remote_share` of its memory stays behind."""
    was = _hz(demand, before, packages)
    then = _hz(demand, after, packages)
    frequency = None if was is None or then is None else max(0.0, 1 - then / was)
    late = waiting(demand, sum(room.capacity for room in after)) - waiting(
        demand, sum(room.capacity for room in before)
    )
    cores = sum(room.cores for room in after)
    shared = max(0.0, demand - cores) / demand if demand > 0 and policy.smt == "use" else 0.0
    return Slowdown(
        frequency,
        max(0.0, late),
        shared * (1 - (1 + policy.smt_gain) / 2),
        remote_share * policy.remote_slowdown,
    )


def _hz(demand: float, over: list[Room], packages: dict[int, Package]) -> float | None:
    """Frequency that a core may have while `demand` is spread evenly; None: unknown."""
    cores = sum(room.cores for room in over)
    if not cores:
        return None
    total = 0.0
    for room in over:
        package = packages.get(room.number)
        if package is None or package.base_hz is None or package.most_hz is None:
            return None
        active = max(1.0, min(float(room.cores), demand * room.cores / cores))
        lost = (active - 1) / max(1, room.cores - 1)
        total += room.cores * (package.most_hz - (package.most_hz - package.base_hz) * lost)
    return total / cores
