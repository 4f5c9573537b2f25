"""Which way a decision goes on: packages are woken, a transaction makes its next step, or one begins. Pure.

Used by `decide`. Only one thing at a time: what is short of room comes first, and ends a trial that is under way.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from sustain.schedulers.packages import trial as trials
from sustain.schedulers.packages.classify import Class
from sustain.schedulers.packages.model import Purpose, Verdict
from sustain.schedulers.packages.placing import (
    EVERYBODY,
    NOBODY,
    Moves,
    Relief,
    Wanted,
    heaviest,
    moves,
    wanted,
)
from sustain.schedulers.packages.rates import Rates
from sustain.schedulers.packages.situation import Situation
from sustain.schedulers.packages.state import NOT_PLACED, PackageMemory, Trial
from sustain.schedulers.packages.worth import (
    Worth,
    last_verdict,
    memory_fits,
    no_room,
    nodes_of,
    on_nodes,
    unit_of,
)

_INTRUDED = 5.0  # times the load of a parked package, from which it is none any more; also averages to wait
_INTRUDED_LEAST = 0.1  # processors
_INTRUDED_RESTS = (
    12.0  # times a package rests that was woken for that: else it would be emptied and woken in turns
)
_RESTS = 48.0  # times a package rests after it was woken, until groups that stayed behind may use it, too
_NOTHING = 0.02  # of a package's share of the load, that a group uses which need not move for a comparison
_AGAIN = 0.01  # of the time that a verdict holds: a trial that is due does not wait for its last second
_WORDS = {
    "off": "first it is measured as it is",
    "pack": "groups move away from it",
    "settle": "it settles",
    "on": "what that saves is measured",
    "unpack": "groups may use it again, to compare",
}


@dataclass(frozen=True)
class Course:
    """What is wanted from now on."""

    parked: tuple[int, ...]  # packages that are to be empty
    trial: Trial | None
    purpose: Purpose  # of what is moved
    why: str
    packages: dict[int, PackageMemory]
    short_since_s: float  # that there has been too little room on what is awake
    verdicts: tuple[Verdict, ...]
    judged: tuple[Verdict, ...] = ()  # of them, new ones
    relieved: Relief = NOBODY

    def without(self, package: int) -> tuple[int, ...]:
        return tuple(each for each in self.parked if each != package)

    def resting(self, package: int, until_s: float, why: str) -> dict[int, PackageMemory]:
        """That package is let alone for a while."""
        memory = replace(self.packages[package], rest_until_s=until_s, rest_why=why, worth_since_s=math.inf)
        return self.packages | {package: memory}


@dataclass(frozen=True, slots=True)
class _Short:
    """Too little room on these packages, which are awake; `excess`: processors that had better run elsewhere."""

    hot: tuple[int, ...]
    excess: float
    words: str


def course(at: Situation, worths: dict[int, Worth]) -> Course:
    """Wake, go on with what is under way, or begin something; the first that applies."""
    at_s, policy = at.seen.now_s, at.policy
    trial = at.before.trial if at.before is not None else None
    if trial is not None and trial.package not in at.rooms:
        trial = None  # its processors went offline
    base = Course(at.parked, trial, "pack", "", at.memory, math.inf, at.verdicts)
    if at.before is not None and at.before.everybody:
        why = "groups go on coming back to all that is awake"
        base = replace(base, relieved=EVERYBODY, purpose="revert", why=why)
    if not at.awake and at.rooms:
        why = "all processors that were awake went offline"
        return replace(base, parked=(), trial=None, relieved=EVERYBODY, purpose="revert", why=why)
    if at.between is None:
        return base
    short = _short(at, at.between)
    worthy = {} if short else worths
    packages = {number: _dwell(each, worthy.get(number), at_s) for number, each in at.memory.items()}
    base = replace(base, packages=packages)
    if short is not None:
        since_s = min(at.before.short_since_s if at.before is not None else math.inf, at_s)
        base = replace(base, short_since_s=since_s)
        if at_s - since_s >= policy.spread_after_s and (relieved := _relieved(base, short, at)) is not None:
            return relieved
    intruded = _intruded(at, trial)
    if intruded is not None:
        load = at.memory[intruded].load or 0.0
        why = f"woken: {load:.2f} processors of it are used by what is not ours to move, so it does not rest"
        woken = _wake(base, intruded, why, at)
        long_s = at_s + _INTRUDED_RESTS * policy.rest_s
        return replace(woken, relieved=EVERYBODY, packages=woken.resting(intruded, long_s, f"it was {why}"))
    if trial is not None:
        return _go_on(base, trial, at)
    return _begin(base, at, worths, short is not None)


def _relieved(base: Course, short: _Short, at: Situation) -> Course | None:
    """Room for whom it is too little: on another package that is awake and has some, else on one that is woken. None:
    there is nothing that we could do."""
    assert at.between is not None
    unknown = short.excess == math.inf
    rows = heaviest(
        at.seen, at.now, at.sets, at.rooms, list(short.hot), at.awake, at.between.used, short.excess
    )
    cool = [each for each in at.awake if each not in short.hot and _left(each, at) > 0]
    if rows and cool:
        names = ", ".join(map(str, cool))
        why = f"{len(rows)} groups may use package {names} as well: {short.words}"
        return replace(base, relieved=Relief(rows), purpose="spread", why=why, short_since_s=math.inf)
    if not at.parked:
        why = f"all groups may run everywhere: {short.words}"
        everywhere = replace(base, relieved=EVERYBODY, purpose="spread", why=why)
        return everywhere if rows and unknown else None
    trial = base.trial
    package = trial.package if trial is not None and trial.package in at.parked else at.parked[-1]
    woken = _wake(base, package, f"woken: {short.words}", at)
    wider = [*at.awake, package]
    rows = heaviest(at.seen, at.now, at.sets, at.rooms, list(short.hot), wider, at.between.used, short.excess)
    return replace(woken, relieved=Relief(rows) if rows else EVERYBODY)


def _left(package: int, at: Situation) -> float:
    """How much more that package takes within the head-room, in processors."""
    assert at.between is not None
    return at.policy.headroom * at.rooms[package].capacity - at.between.busy.get(package, math.inf)


def to_move(at: Situation, way: Course) -> tuple[Wanted, Moves]:
    """Where groups are to be, and what is to be written for that."""
    awake = [each for each in at.rooms if each not in way.parked]
    want = wanted(at.seen, at.now, at.sets, at.rooms, awake, at.policy, way.relieved)
    nodes = None
    if way.parked and memory_fits(at.seen, at.now, list(way.parked), awake):
        nodes = nodes_of(at.seen, awake) or None
    return want, moves(at.seen, at.now, want, nodes, way.purpose, way.why, at.policy)


def _dwell(memory: PackageMemory, found: Worth | None, at_s: float) -> PackageMemory:
    good = found is not None and not found.blocked
    since_s = min(memory.worth_since_s, at_s) if good else math.inf
    return memory if since_s == memory.worth_since_s else replace(memory, worth_since_s=since_s)


def _short(at: Situation, between: Rates) -> _Short | None:
    """Whether what is awake has too little room; None: it has enough, as far as is known."""
    hot = tuple(
        each for each in at.awake if between.busy.get(each, 0.0) >= at.policy.high * at.rooms[each].capacity
    )
    if not hot:
        if between.pressure is None or between.pressure < at.policy.pressure_limit:
            return None
        words = f"tasks waited for a processor in {between.pressure:.0%} of the time"
        return _Short(tuple(at.awake), math.inf, words)
    use, capacity = sum(between.busy[each] for each in hot), at.capacity(list(hot))
    where = ", ".join(map(str, hot))
    words = f"{use:.1f} of {capacity:.1f} processors of package {where} are in use"
    return _Short(hot, use - at.policy.headroom * capacity, words)


def _intruded(at: Situation, trial: Trial | None) -> int | None:
    """A package that we keep empty and that works all the same, for as long as averages need."""
    for number in at.parked:
        mine = at.memory[number]
        if mine.load is None or mine.kind is Class.PARKED or (trial is not None and trial.package == number):
            continue
        busy = mine.load > max(_INTRUDED * at.policy.parked_load * at.rooms[number].capacity, _INTRUDED_LEAST)
        if busy and at.seen.now_s - mine.parked_since_s >= _INTRUDED * at.policy.average_s:
            return number
    return None


def _wake(base: Course, package: int, why: str, at: Situation) -> Course:
    """Put it back to use. For a while no package is emptied: another one in its place would move everybody. A trial
    ends there, and its package is not emptied any more."""
    parked = base.without(package)
    if base.trial is not None:
        parked = tuple(each for each in parked if each != base.trial.package)
    until_s, said = at.seen.now_s + at.policy.rest_s, f"package {package} was {why}"
    return replace(
        base,
        parked=parked,
        trial=None,
        purpose="spread",
        why=f"package {package} is {why}",
        packages={
            number: replace(each, worth_since_s=math.inf)
            if each.rest_until_s > until_s
            else replace(each, rest_until_s=until_s, rest_why=said, worth_since_s=math.inf)
            for number, each in base.packages.items()
        },
        short_since_s=math.inf,
    )


def _go_on(base: Course, trial: Trial, at: Situation) -> Course:
    """One step of what is under way."""
    package = trial.package
    base = replace(base, relieved=_compared(package, at) if trial.steps[0] == "unpack" else NOBODY)
    pending = to_move(at, base)[1].pending
    held = trials.advance(trial, at.seen, at.load, pending, _moving_s(at, package), at.policy)
    if held.trial is not None and trials.parks(held.trial) and package not in at.parked:
        # Load may have grown since it was found worth it, or was emptied for the first comparison.
        full = no_room([each for each in at.awake if each != package], at)
        held = trials.Advance(None, "undone", None, full) if full else held
    if held.trial is not None:
        parks = trials.parks(held.trial)
        why = f"package {package} is emptied, to see what that saves: {_WORDS[held.trial.steps[0]]}"
        return replace(
            base,
            trial=held.trial,
            parked=(*base.without(package), *((package,) if parks else ())),
            purpose="pack" if parks else "measure",
            why=why,
            relieved=_compared(package, at) if held.trial.steps[0] == "unpack" else NOBODY,
        )
    judged = (held.verdict,) if held.verdict is not None else ()
    base = replace(base, trial=None, verdicts=base.verdicts + judged, judged=judged)
    if held.ending == "kept":
        why = f"package {package} stays empty" + (f": {held.why}" if held.why else "")
        return replace(base, parked=(*base.without(package), package), why=why)
    return replace(
        base,
        parked=base.without(package),
        purpose="revert",
        relieved=NOBODY if at.parked not in ((), (package,)) else EVERYBODY,
        why=f"package {package} is used again: {held.why}",
        packages=base.resting(package, at.seen.now_s + at.policy.rest_s, f"its trial was undone: {held.why}"),
    )


def _compared(package: int, at: Situation) -> Relief:
    """Groups that use a package which was empty, to compare: the heaviest that together use no more than its even share
    of what is in use, so that it works as much as the others do. Where no group fits, or a workload tells its own
    metric, which is to be compared with what it was before anything moved, all may use it."""
    if at.seen.metrics:
        return EVERYBODY
    mine = set(at.rooms[package].cpus)
    there = np.array([bool(set(each) & mine) for each in at.sets] + [False])[at.now.memory.placed]
    used = np.nan_to_num(at.between.used) if at.between is not None else np.zeros(len(there))
    share = (at.load or 0.0) / len({*at.awake, package})
    left = share - float(used[there].sum())
    if there.any() and left < share / 2:
        return NOBODY
    rows: list[int] = []
    for row in np.argsort(-used, kind="stable").tolist():
        if at.now.movable[row] and not there[row] and _NOTHING * share < used[row] <= left:
            rows.append(row)
            left -= used[row]
    if not rows and there.any():
        return NOBODY
    return Relief(frozenset(rows), (package,)) if rows else EVERYBODY


def _begin(base: Course, at: Situation, worths: dict[int, Worth], short: bool) -> Course:
    """Something new, when it is time: measuring a parked package anew, or emptying another one."""
    at_s = at.seen.now_s
    if base.parked:
        base = replace(base, why=f"{len(base.parked)} of {len(at.rooms)} packages are kept empty")
    elif _holds(at) and at.before is not None and at_s - at.before.calm_since_s >= _RESTS * at.policy.rest_s:
        why = "nothing has been kept empty for long: all groups may run everywhere again"
        return replace(base, relieved=EVERYBODY, purpose="spread", why=why)
    if short or base.relieved.everybody:
        return base
    for number in base.parked:
        verdict = next((each for each in reversed(base.verdicts) if each.package == number), None)
        due = verdict is not None and at_s - verdict.at_s > at.policy.verdict_fresh_s * (1 - _AGAIN)
        if due and at.policy.trial != "never" and (unit := unit_of(number, at)):
            again = trials.again(number, unit, at_s)
            return replace(base, trial=again, why=f"what package {number} saves is measured anew")
    ready = [
        each
        for number, each in worths.items()
        if not each.blocked and at_s - base.packages[number].worth_since_s >= at.policy.pack_after_s
    ]
    if not ready:
        return base
    best = max(ready, key=lambda each: (each.score, -each.package))
    pairs = 1 if _told(best.package, at) else at.policy.pairs
    unmeasured = best.known or at.policy.trial == "never"
    trial = trials.begin(best.package, best.unit, unmeasured, at_s, pairs)
    parked = base.parked + ((best.package,) if trials.parks(trial) else ())
    why = f"package {best.package} is emptied: {'; '.join(best.reasons)}"
    return replace(base, trial=trial, parked=parked, why=why)


def _told(package: int, at: Situation) -> bool:
    """Whether what it saves is known from a test, or from a trial of another package of as many cores, so that one
    comparison is enough to confirm it."""
    if any(each.package == package and each.parked_w is not None for each in at.seen.findings):
        return True
    alike = [each for each in at.rooms if at.rooms[each].cores == at.rooms[package].cores and each != package]
    fresh = [last_verdict(each, at.verdicts, at.seen.now_s, at.policy) for each in alike]
    return any(each is not None and each.kept for each in fresh)


def _holds(at: Situation) -> bool:
    """Whether any group is where we put it."""
    return bool((at.now.memory.placed != NOT_PLACED).any())


def _moving_s(at: Situation, package: int) -> float:
    """That the memory on its nodes may take to move, twice over."""
    seen = at.seen
    nodes = nodes_of(seen, [package])
    if not nodes or at.policy.memory_bytes_per_s <= 0 or not len(seen.groups):
        return 0.0
    return 2 * float(on_nodes(seen, nodes).sum()) / at.policy.memory_bytes_per_s
