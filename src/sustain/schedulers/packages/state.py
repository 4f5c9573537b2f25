"""What a decision remembers from one look to the next. Pure.

Used by `decide` and what it is made of. A State is replaced whole, never changed. Averages follow with a time constant:
after t seconds of a new value the old one weighs e^(−t/τ). The highest demand is remembered with a half-life, so that
what happens each hour keeps its room.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.packages.classify import Class
from sustain.schedulers.packages.model import Finding, Kind, Observation, Verdict
from sustain.schedulers.packages.policy import GroupPolicy, Policy
from sustain.schedulers.packages.rates import Look, Rates
from sustain.schedulers.packages.saving import Sample

_GROUP_AVERAGE_S = 300.0
NOT_PLACED = -1


@dataclass(frozen=True, slots=True)
class PackageMemory:
    """Of one package; None: not known yet."""

    load: float | None = None  # processors in use, on average
    residency: tuple[tuple[str, float], ...] = ()  # by state, shares of time on average; (): not measurable
    power_w: float | None = None
    kind: Class | None = None
    since_s: float = -math.inf  # that it is of that class
    worth_since_s: float = math.inf  # that emptying it has been worth it, without a break
    parked_since_s: float = math.inf  # that we have kept it empty
    rest_until_s: float = -math.inf  # it is let alone
    rest_why: str = ""


@dataclass(frozen=True)
class GroupMemory:
    """Of all groups, in the observation's order."""

    names: tuple[str, ...]
    lives: tuple[str, ...]
    kinds: tuple[Kind, ...]
    mean: NDArray[np.float64]  # processors in use; NaN: unknown
    placed: NDArray[np.int32]  # index into State.sets: where we put it; NOT_PLACED
    settled: NDArray[
        np.bool_
    ]  # it is as we placed it, as far as it goes: some of its threads may be bound by others
    hands_off: NDArray[np.bool_]  # somebody else set it, or it cannot be placed: for this life
    followed: NDArray[np.bool_]  # its memory is where it was to be
    aligned: NDArray[np.bool_]  # its timers were told to be late
    movable: NDArray[np.bool_]  # by the operator's word
    priority: NDArray[np.int32]
    follow: NDArray[np.bool_]  # its memory follows it


@dataclass(frozen=True, slots=True)
class Demand:
    """Processors in use on the whole host."""

    mean: float
    variance: float
    peak: float

    @property
    def needed(self) -> float:
        """What room is kept for."""
        return max(self.mean + 2 * math.sqrt(max(self.variance, 0.0)), self.peak)


@dataclass(frozen=True)
class Trial:
    """One reversible transaction: parking a package, measured or not. `steps` are what is still to come, the first of
    which is under way."""

    package: int
    unit: str  # "W", "package"; "": nothing is measured
    steps: tuple[str, ...]  # of "off", "pack", "settle", "on", "unpack"
    since_s: float  # that the first step is under way
    begun_s: float
    samples: tuple[Sample, ...] = ()
    opened: Look | None = None  # where the sample under way began
    run: int = 0  # windows so far
    among: tuple[int, ...] = ()  # the packages that there were at its beginning


class Missing(NamedTuple):
    """A group that we placed and that was not in the last look: gone, renamed, or not to be read at the moment."""

    name: str
    life: str
    kind: Kind


@dataclass(frozen=True)
class State:
    """All of it."""

    look: Look
    packages: dict[int, PackageMemory]
    groups: GroupMemory
    demand: Demand | None = None
    sets: tuple[tuple[int, ...], ...] = ()  # of processors, that we have put groups on
    parked: tuple[int, ...] = ()  # packages that are kept empty, in the order of parking
    trial: Trial | None = None
    short_since_s: float = math.inf  # that there has been too little room on what is awake
    calm_since_s: float = math.inf  # that nothing has been kept empty, and no trial was under way
    verdicts: tuple[Verdict, ...] = ()  # newest last
    saved_j: float = 0.0  # by the trials' figures, since the beginning
    saved_s: float = 0.0  # time with a saving that was measured
    away: tuple[int, ...] = ()  # processors that interrupts were moved from
    everybody: bool = False  # groups are on their way back to all that is awake
    missing: tuple[Missing, ...] = ()  # groups that we placed and that are not seen any more
    policy: Policy = field(default_factory=Policy)  # that the groups' columns were made by


def averaged(before: float | None, value: float, passed_s: float, constant_s: float) -> float:
    """The average after `value` for `passed_s`."""
    if before is None or not math.isfinite(before):
        return value
    kept = math.exp(-passed_s / constant_s)
    return kept * before + (1 - kept) * value


def demanded(before: Demand | None, rates: Rates, packages: int, policy: Policy) -> Demand | None:
    """With this interval's use of all packages; unchanged when one's is unknown."""
    if len(rates.busy) < packages:
        return before
    use = sum(rates.busy.values())
    if before is None:
        return Demand(use, 0.0, use)
    kept = math.exp(-rates.passed_s / _GROUP_AVERAGE_S)
    step = use - before.mean
    mean = before.mean + (1 - kept) * step
    variance = kept * (before.variance + (1 - kept) * step * step)
    return Demand(mean, variance, max(use, before.peak * 0.5 ** (rates.passed_s / policy.peak_s)))


def gone_from(seen: Observation, before: GroupMemory) -> tuple[Missing, ...]:
    """Groups that we placed and that are not in this look."""
    if (seen.groups.name, seen.groups.life) == (before.names, before.lives):
        return ()
    here = set(zip(seen.groups.name, seen.groups.life, strict=True))
    return tuple(
        Missing(before.names[row], before.lives[row], before.kinds[row])
        for row in np.flatnonzero(before.placed != NOT_PLACED).tolist()
        if (before.names[row], before.lives[row]) not in here
    )


def group_memory(seen: Observation, state: State | None, rates: Rates | None, policy: Policy) -> GroupMemory:
    """In this observation's order, with this interval's use."""
    groups = seen.groups
    memory = _carried(seen, state, policy)
    if rates is None:
        return memory
    kept = math.exp(-rates.passed_s / _GROUP_AVERAGE_S)
    used = rates.used
    mean = np.where(np.isnan(memory.mean), used, kept * memory.mean + (1 - kept) * used)
    mean = np.where(np.isnan(used), memory.mean, mean)
    assert len(mean) == len(groups)
    return _replace(memory, mean=mean)


def _carried(seen: Observation, state: State | None, policy: Policy) -> GroupMemory:
    groups = seen.groups
    if state is not None and (groups.name, groups.life) == (state.groups.names, state.groups.lives):
        return state.groups if state.policy == policy else _by_policy(state.groups, policy)
    count = len(groups)
    fresh = GroupMemory(
        groups.name,
        groups.life,
        groups.kind,
        np.full(count, np.nan),
        np.full(count, NOT_PLACED, np.int32),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        np.zeros(count, np.bool_),
        np.zeros(count, np.int32),
        np.zeros(count, np.bool_),
    )
    if state is not None and len(state.groups.names):
        old = state.groups
        index = {key: at for at, key in enumerate(zip(old.names, old.lives, strict=True))}
        rows = np.array([index.get(key, -1) for key in zip(groups.name, groups.life, strict=True)], np.intp)
        known = rows >= 0
        for name in ("mean", "placed", "settled", "hands_off", "followed", "aligned"):
            getattr(fresh, name)[known] = getattr(old, name)[rows[known]]
    return _by_policy(fresh, policy)


def _by_policy(memory: GroupMemory, policy: Policy) -> GroupMemory:
    default: GroupPolicy = policy.default
    if not policy.groups:
        count = len(memory.names)
        return _replace(
            memory,
            movable=np.full(count, default.movable, np.bool_),
            priority=np.full(count, default.priority, np.int32),
            follow=np.full(count, default.memory, np.bool_),
        )
    each = [policy.of(name) for name in memory.names]
    return _replace(
        memory,
        movable=np.array([one.movable for one in each], np.bool_),
        priority=np.array([one.priority for one in each], np.int32),
        follow=np.array([one.memory for one in each], np.bool_),
    )


def _replace(memory: GroupMemory, **columns: NDArray[np.generic]) -> GroupMemory:
    found = {name: getattr(memory, name) for name in memory.__dataclass_fields__}
    return GroupMemory(**(found | columns))


def independence(package: int, findings: tuple[Finding, ...]) -> dict[str, str]:
    """What is known of each of its states; the deeper ones count."""
    return {each.state: each.independence for each in findings if each.package == package}


def independent_share(
    package: int, residency: dict[str, float], findings: tuple[Finding, ...]
) -> float | None:
    """Of all time, in states that are known to be independent; None: none is, or it is not measurable."""
    known = independence(package, findings)
    shares = [share for state, share in residency.items() if known.get(state) == "independent"]
    return min(1.0, sum(shares)) if shares else None
