"""A decision written down: of each package what it is and why it is emptied or not, and the host in figures. Pure.

Used by `decide`.
"""

import numpy as np

from sustain.schedulers.packages.course import Course
from sustain.schedulers.packages.model import Action
from sustain.schedulers.packages.placing import Moves
from sustain.schedulers.packages.plan import PackagePlan, Plan, Totals, TrialPlan
from sustain.schedulers.packages.situation import Situation
from sustain.schedulers.packages.state import (
    NOT_PLACED,
    PackageMemory,
    State,
    independence,
    independent_share,
)
from sustain.schedulers.packages.worth import Worth


def written(
    at: Situation,
    after: State,
    way: Course,
    worths: dict[int, Worth],
    todo: Moves,
    actions: tuple[Action, ...],
) -> Plan:
    """The plan of a decision that has been taken."""
    packages = tuple(_package(number, at, after, worths.get(number)) for number in at.rooms)
    left = todo.pending - len(todo.actions)
    later = (f"{left} groups more are to be moved, by the next plans",) if left > 0 else ()
    return Plan(
        at_s=at.seen.now_s,
        seen=at.seen,
        actions=actions,
        packages=packages,
        left=at.now.left,
        trial=_trial(at, after),
        totals=_totals(at, after),
        verdict=way.why or _not_saving(packages),
        proved=at.proved,
        judged=way.judged,
        problems=at.seen.problems + later,
    )


def _package(number: int, at: Situation, after: State, found: Worth | None) -> PackagePlan:
    memory = after.packages.get(number, PackageMemory())
    capacity, residency = at.rooms[number].capacity, dict(memory.residency)
    return PackagePlan(
        number=number,
        kind=memory.kind.value if memory.kind else "unknown",
        since_s=max(0.0, at.seen.now_s - memory.since_s) if memory.kind else 0.0,
        load=None if memory.load is None else memory.load / capacity,
        capacity=capacity,
        residency=residency,
        independence=independence(number, at.seen.findings),
        independent=independent_share(number, residency, at.seen.findings),
        power_w=memory.power_w,
        parked=number in after.parked,
        reasons=_reasons(number, at, after, found),
    )


def _reasons(number: int, at: Situation, after: State, found: Worth | None) -> tuple[str, ...]:
    if number in after.parked:
        verdict = next((each for each in reversed(after.verdicts) if each.package == number), None)
        return ("it is kept empty" + (f": {verdict.detail}" if verdict is not None else ""),)
    if found is None:
        return ("it was woken",)
    if found.blocked:
        return (found.blocked, *found.reasons)
    if after.trial is not None:
        about = "its" if after.trial.package == number else f"package {after.trial.package}'s"
        return (f"{about} trial is under way", *found.reasons)
    waits_s = at.policy.pack_after_s - (at.seen.now_s - after.packages[number].worth_since_s)
    return (
        f"it is worth emptying, and is emptied when that has been so for {max(0.0, waits_s):.0f} s more",
        *found.reasons,
    )


def _trial(at: Situation, after: State) -> TrialPlan | None:
    trial = after.trial
    if trial is None:
        return None
    return TrialPlan(
        package=trial.package,
        unit=trial.unit,
        step=trial.steps[0],
        for_s=at.seen.now_s - trial.since_s,
        left=trial.steps[1:],
        samples=len(trial.samples),
    )


def _totals(at: Situation, after: State) -> Totals:
    awake = [each for each in at.rooms if each not in after.parked]
    capacity, demand = at.capacity(awake), after.demand
    watts = [each.power_w for each in after.packages.values() if each.power_w is not None]
    outside = None
    if at.between is not None and at.between.busy:
        outside = max(0.0, sum(at.between.busy.values()) - float(np.nansum(at.between.used)))
    return Totals(
        demand=demand.mean if demand else None,
        needed=demand.needed if demand else None,
        capacity=capacity,
        room=at.policy.headroom * capacity - demand.needed if demand else None,
        power_w=sum(watts) if at.all_w and watts else None,
        groups=len(at.seen.groups),
        placed=int((after.groups.placed != NOT_PLACED).sum()),
        outside=outside,
        saved_j=after.saved_j,
        saved_s=after.saved_s,
    )


def _not_saving(packages: tuple[PackagePlan, ...]) -> str:
    """Why nothing is done, in one sentence."""
    if len(packages) < 2:
        return "not saving because this host has one package: there is none to empty"
    reasons: dict[str, list[int]] = {}
    for each in packages:
        reasons.setdefault(each.reasons[0], []).append(each.number)
    said = "; ".join(f"package {', '.join(map(str, numbers))}: {why}" for why, numbers in reasons.items())
    return f"not saving because {said}"
