"""The decision of power-aware placement: which packages are awake, and why not fewer. Pure.

Used by `scheduler` on a live host or a recording, and by the simulator of packages.

The model: packages are parked one at a time, each by one reversible transaction (`trial`), when emptying it has been
worth it for long (`worth`, `pack_after`); they are woken soon when there is too little room for what runs
(`spread_after`), the last one that was parked first (`course`). Between the two lies a wide gap where nothing is
written. Where deep idle states are coordinated, packing saves nothing by itself: there only the timers of groups that
may be late are aligned, and the plan says so.
"""

from dataclasses import replace

import numpy as np

from sustain.schedulers.packages.course import Course, course, to_move
from sustain.schedulers.packages.model import Action, Align, Effect, Observation, Release
from sustain.schedulers.packages.placing import Moves, Wanted, interrupts
from sustain.schedulers.packages.plan import Decision
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.rates import look
from sustain.schedulers.packages.situation import Situation, situation
from sustain.schedulers.packages.state import NOT_PLACED, State, independence
from sustain.schedulers.packages.worth import last_verdict, worth
from sustain.schedulers.packages.written import written

_MOST_VERDICTS = 64  # that are remembered


def decide(
    seen: Observation,
    state: State | None,
    policy: Policy,
    now_s: float,
    effects: tuple[Effect, ...] = (),
) -> Decision:
    """One decision. `now_s` is the time of deciding, `seen.now_s` that of looking, by which everything is timed;
    effects are of the plan before."""
    at = situation(seen, state, policy, effects)
    worths = {number: worth(number, at) for number in at.awake}
    way = course(at, worths)
    want, todo = to_move(at, way)
    actions = _actions(at, way, todo)
    after = _after(at, way, want, todo)
    return Decision(written(at, after, way, worths, todo, actions), after)


def _actions(at: Situation, way: Course, todo: Moves) -> tuple[Action, ...]:
    """What is to be done."""
    actions: list[Action] = [
        Release(
            group=each.name,
            life=each.life,
            kind=each.kind,
            purpose="hands off",
            reason="it is not seen any more, and is not left bound",
        )
        for each in at.missing
    ]
    actions += todo.actions
    if at.policy.interrupts or at.away:
        parked = way.parked if at.policy.interrupts else ()
        one = interrupts(at.rooms, parked, at.away, way.purpose, way.why or "no package is kept empty")
        if one is not None:
            actions.append(one)
    return (*actions, *_align(at, at.policy.most_moves - len(actions)))


def _align(at: Situation, most: int) -> list[Action]:
    """Timers of groups that may be late, where every package has coordinated states and none that is independent."""
    policy, groups, memory = at.policy, at.seen.groups, at.now.memory
    if (
        not any(each.slack_s for each in (policy.default, *policy.groups.values()))
        and not memory.aligned.any()
    ):
        return []
    known = [set(independence(number, at.seen.findings).values()) for number in at.rooms]
    here = all("coordinated" in each and "independent" not in each for each in known)
    found: list[Action] = []
    for row in range(len(groups)):
        slack_s = policy.of(groups.name[row]).slack_s if here and at.now.movable[row] else None
        if (slack_s is not None) != bool(memory.aligned[row]) and len(found) < most:
            found.append(
                Align(
                    group=groups.name[row],
                    life=groups.life[row],
                    kind=groups.kind[row],
                    slack_s=slack_s,
                    purpose="align",
                    reason=(
                        "idle states are coordinated here: idleness is aligned instead of packing (not measured)"
                        if slack_s is not None
                        else "idle states are not coordinated here, or it is not ours any more"
                    ),
                )
            )
    return found


def _after(at: Situation, way: Course, want: Wanted, todo: Moves) -> State:
    """What is remembered."""
    before, seen = at.before, at.seen
    calm_s = before.calm_since_s if before is not None else np.inf
    saved_j, saved_s = (before.saved_j, before.saved_s) if before is not None else (0.0, 0.0)
    if at.between is not None and way.trial is None:
        for number in at.parked:
            verdict = last_verdict(number, at.verdicts, seen.now_s, at.policy)
            if verdict is not None and verdict.kept and verdict.unit == "W":
                saved_j += verdict.saving * at.between.passed_s
                saved_s += at.between.passed_s
    memory = at.now.memory
    packages = {
        number: replace(each, parked_since_s=min(each.parked_since_s, seen.now_s))
        if number in way.parked
        else replace(each, parked_since_s=np.inf)
        for number, each in way.packages.items()
    }
    unused = not way.parked and bool((memory.placed == NOT_PLACED).all())
    return State(
        look=look(seen),
        packages=packages,
        groups=memory,
        demand=at.demand,
        sets=() if unused else want.sets,
        parked=way.parked,
        trial=way.trial,
        short_since_s=way.short_since_s,
        calm_since_s=np.inf if way.parked or way.trial else min(calm_s, seen.now_s),
        verdicts=way.verdicts[-_MOST_VERDICTS:],
        saved_j=saved_j,
        saved_s=saved_s,
        away=at.away,
        everybody=way.relieved.everybody and todo.pending > 0,
        missing=at.missing,
        policy=at.policy,
    )
