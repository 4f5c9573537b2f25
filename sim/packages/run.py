"""Drives a policy over a load on a simulated host, and says what came of it. All of it is simulated.

Used by `python -m sim packages`, the benchmark and the tests. Every policy looks at the same times (`tick_s`) and knows
what was used until then; only the optimum knows what comes. Energy is beside that of the kernel's spread on the same
load and host, `saving`.

`slowdown` is the time that work took beyond what it would have taken alone on a core with its memory at hand: threads
that share a core, memory on another node, and work that had to wait, in intervals of its standing over. `above` is the
share of time in which some package was asked for more than `HEADROOM` of its cores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sim.packages.groups import Load
from sim.packages.hardware import Host
from sim.packages.machine import Interval, Machine
from sim.packages.policies import OVERLOAD, Policy, Seen
from sim.packages.residency import Floats

HEADROOM = OVERLOAD


class Controller(Protocol):
    """A policy under test: where groups are to run, from what was seen and what the last interval came to."""

    @property
    def tick_s(self) -> float | None:
        """When it wants to look again; None: whenever."""
        ...

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        """Where each group may run from now on (groups x packages; rows make 1): where it is not 0."""
        ...


@dataclass
class Peer:
    """A policy that needs nothing but what was seen."""

    policy: Policy
    tick_s: float | None = None

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        return self.policy(seen)


@dataclass(frozen=True)
class Outcome:
    """What a run came to; simulated. Work is in core-seconds."""

    host: str
    load: str
    seconds: float
    energy_j: float
    above: float
    slowdown: float
    late: float  # of work, the share that was not done in its interval
    moves: int  # of groups
    moved: float  # of groups, what ran elsewhere than before, also what the kernel moved
    parked: float  # packages in PC2 or PC6, mean over time
    awake_w: float  # the most watts of an interval
    wanted: float
    done: float
    left: float
    simulated: bool = True

    @property
    def mean_w(self) -> float:
        return self.energy_j / self.seconds

    @property
    def moves_per_hour(self) -> float:
        return self.moves / (self.seconds / 3600)

    @property
    def parts_per_hour(self) -> float:
        return self.moved / (self.seconds / 3600)

    def saving(self, beside: "Outcome") -> float:
        """Share of the energy of another run of the same load and host that this one did not need."""
        return 1.0 - self.energy_j / beside.energy_j

    def slower(self, beside: "Outcome") -> float:
        """Time that work took beyond what it took there."""
        return (1.0 + self.slowdown) / (1.0 + beside.slowdown) - 1.0


def drive(
    load: Load,
    host: Host,
    controller: Controller,
    *,
    tick_s: float | None = None,
    free_moves: bool = False,
    aligned: float = 0.0,
) -> Outcome:
    """`tick_s`: how often the policy looks, where it does not say so itself; None: once for each point of the load."""
    tally = _Tally(host)
    for last in intervals(
        load, host, controller, tally, tick_s=tick_s, free_moves=free_moves, aligned=aligned
    ):
        tally.add(last)
    return tally.outcome(load)


def intervals(
    load: Load,
    host: Host,
    controller: Controller,
    tally: "_Tally",
    *,
    tick_s: float | None,
    free_moves: bool,
    aligned: float,
) -> Iterator[Interval]:
    """One for each tick, in order."""
    machine = Machine(host, load.threads, load.memory_bytes, aligned, free_moves)
    mean, peak = load.demand.mean(axis=0), load.demand.max(axis=0)
    use, last = load.demand[0], None
    for step, demand in enumerate(load.demand):
        left_s = load.step_s
        while left_s > 1e-9:
            seen = Seen(step, use, machine.shares, host.packages, host.cores, mean, peak)
            places = controller.place(seen, last)
            last = machine.step(demand, places, min(left_s, controller.tick_s or tick_s or load.step_s))
            left_s -= last.seconds
            use = last.done / last.seconds
            tally.wanted += float(demand.sum()) * last.seconds
            tally.moves, tally.moved = machine.moved, machine.moved_share
            yield last


@dataclass
class _Tally:
    host: Host
    wanted: float = 0.0
    moves: int = 0
    moved: float = 0.0
    seconds: float = 0.0
    energy_j: float = 0.0
    above_s: float = 0.0
    done: float = 0.0
    busy: float = 0.0
    stood: float = 0.0  # time of threads that waited for a core
    late: float = 0.0
    left: float = 0.0
    parked_s: float = 0.0
    most_w: float = 0.0

    def add(self, last: Interval) -> None:
        self.seconds += last.seconds
        self.energy_j += last.host_w * last.seconds
        self.most_w = max(self.most_w, last.host_w)
        self.above_s += last.seconds * bool((last.load > HEADROOM * self.host.cores + 1e-9).any())
        self.done += float(last.done.sum())
        self.busy += float(last.busy.sum())
        self.left = float(last.waiting.sum())
        self.stood += float(last.stood.sum())
        self.late += float(last.late.sum())
        self.parked_s += last.seconds * float((last.states.pc2 + last.states.pc6).sum())

    def outcome(self, load: Load) -> Outcome:
        done = max(self.done, 1e-12)
        return Outcome(
            host=self.host.name,
            load=load.name,
            seconds=self.seconds,
            energy_j=self.energy_j,
            above=self.above_s / self.seconds,
            slowdown=(self.busy + self.stood) / done - 1.0,
            late=self.late / max(self.wanted, 1e-12),
            moves=self.moves,
            moved=self.moved,
            parked=self.parked_s / self.seconds,
            awake_w=self.most_w,
            wanted=self.wanted,
            done=self.done,
            left=self.left,
        )
