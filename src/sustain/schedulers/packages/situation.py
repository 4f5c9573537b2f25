"""Everything that one decision is made of, brought together from an observation and what is remembered. Pure.

Used by `decide`, and by `worth`, `course` and `written`, which read it.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from sustain.schedulers.packages.capacity import Room, rooms
from sustain.schedulers.packages.classify import classify
from sustain.schedulers.packages.model import (
    Effect,
    Finding,
    Interrupts,
    Observation,
    Release,
    Verdict,
)
from sustain.schedulers.packages.passive import passive
from sustain.schedulers.packages.placing import Set, Standing, heard, standing
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.rates import Rates, rates
from sustain.schedulers.packages.state import (
    Demand,
    Missing,
    PackageMemory,
    State,
    averaged,
    demanded,
    gone_from,
    group_memory,
    independent_share,
)


@dataclass(frozen=True, eq=False)
class Situation:
    """What is seen, what is remembered with it, and what the operator wants."""

    seen: Observation  # with what this look proved
    before: State | None
    between: Rates | None  # of the interval; None: this is the first look, or it was too short
    now: Standing
    sets: tuple[Set, ...]
    rooms: dict[int, Room]  # of packages that have processors online
    memory: dict[int, PackageMemory]  # of those
    demand: Demand | None
    verdicts: tuple[Verdict, ...]
    proved: tuple[Finding, ...]
    missing: tuple[Missing, ...]  # groups that we placed, that are not seen any more, and may still be bound
    away: tuple[int, ...]  # processors that interrupts were moved from
    policy: Policy

    @cached_property
    def parked(self) -> tuple[int, ...]:
        """Packages that were kept empty until now."""
        return tuple(each for each in (self.before.parked if self.before else ()) if each in self.rooms)

    @cached_property
    def awake(self) -> list[int]:
        return [each for each in self.rooms if each not in self.parked]

    @cached_property
    def load(self) -> float | None:
        """Processors in use in the interval; None: one package's are unknown."""
        busy = self.between.busy if self.between is not None else {}
        return sum(busy.values()) if all(each in busy for each in self.rooms) else None

    @cached_property
    def all_w(self) -> bool:
        """Whether the watts of every package are known."""
        return all(each.power_w is not None for each in self.memory.values())

    def capacity(self, packages: list[int]) -> float:
        """Processors' work that they take."""
        return sum(self.rooms[each].capacity for each in packages)


def situation(
    seen: Observation, before: State | None, policy: Policy, effects: tuple[Effect, ...]
) -> Situation:
    """`effects`: of the plan before."""
    between = rates(before.look, seen) if before is not None else None
    groups, sets = heard(
        group_memory(seen, before, between, policy), effects, before.sets if before is not None else ()
    )
    room = rooms(seen.cpus, policy)
    proved = passive(between, seen) if between is not None else ()
    if proved:
        seen = msgspec.structs.replace(seen, findings=seen.findings + proved)
    memory = {}
    for package in seen.packages:
        if package.number in room:
            old = before.packages.get(package.number) if before is not None else None
            memory[package.number] = _remembered(
                package.number, seen, old or PackageMemory(), between, room[package.number], policy
            )
    demand = before.demand if before is not None else None
    if between is not None:
        demand = demanded(demand, between, len(room), policy)
    return Situation(
        seen=seen,
        before=before,
        between=between,
        now=standing(seen, groups, sets),
        sets=sets,
        rooms={number: each for number, each in room.items() if number in memory},
        memory=memory,
        demand=demand,
        verdicts=seen.verdicts if before is None else before.verdicts,
        proved=proved,
        missing=_missing(seen, before, effects),
        away=_away(before, effects),
        policy=policy,
    )


def _missing(seen: Observation, before: State | None, effects: tuple[Effect, ...]) -> tuple[Missing, ...]:
    """Those before without whom was put back, and who went now. One that is seen again is dealt with as it is."""
    if before is None:
        return ()
    ended = {
        (each.action.group, each.action.life)
        for each in effects
        if isinstance(each.action, Release) and each.outcome in ("done", "gone", "changed")
    }
    here = set(zip(seen.groups.name, seen.groups.life, strict=True)) if before.missing else set()
    kept = (each for each in before.missing if each[:2] not in ended and each[:2] not in here)
    return (*kept, *(each for each in gone_from(seen, before.groups) if each[:2] not in ended))


def _away(before: State | None, effects: tuple[Effect, ...]) -> tuple[int, ...]:
    """Where interrupts do not come any more, by what came of moving them."""
    away = before.away if before is not None else ()
    for effect in effects:
        if isinstance(effect.action, Interrupts) and effect.done:
            away = effect.action.away
    return away


def _remembered(
    number: int, seen: Observation, old: PackageMemory, between: Rates | None, room: Room, policy: Policy
) -> PackageMemory:
    """With this interval's figures, and the class that they make."""
    if between is None:
        return old
    package = next(each for each in seen.packages if each.number == number)
    passed_s, average_s = between.passed_s, policy.average_s
    load = between.busy.get(number)
    load = old.load if load is None else averaged(old.load, load, passed_s, average_s)
    shares, before = between.residency.get(number), dict(old.residency)
    residency = old.residency
    if package.source == "none":
        residency = ()
    elif shares is not None:
        residency = tuple(
            (name, averaged(before.get(name), share, passed_s, average_s)) for name, share in shares.items()
        )
    watts, power_w = between.power_w.get(number), old.power_w
    if package.power_source == "none":
        power_w = None
    elif watts is not None:
        power_w = averaged(old.power_w, watts, passed_s, average_s)
    new = replace(old, load=load, residency=residency, power_w=power_w)
    if load is None:
        return new
    share = independent_share(number, dict(residency), seen.findings)
    kind = classify(load / max(room.capacity, 1e-9), share, old.kind, policy)
    return replace(new, kind=kind, since_s=old.since_s if kind is old.kind else seen.now_s)
