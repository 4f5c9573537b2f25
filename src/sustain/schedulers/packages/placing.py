"""Which groups may be moved, and which settings are to be written for a wanted set of awake packages. Pure.

Used by `decide`. The model: a group that we place may run on all packages that are awake then, and the kernel balances
it among them, as it did among all before. No more is moved than must be: when a package is woken, only as many groups
may use it, too, as make room for the others, the heaviest first (`heaviest`), and the kernel fills it with what of them
has no room elsewhere; the others stay where they are until that is short of room as well, or until nothing has been
parked for long. Groups that are to be apart get one package each. A group that somebody else has limited is left alone,
also when it was ours before; and so is one with real-time threads or threads that are bound one by one.

Rejected: a package of its own for each group. It would move more, more often, and take from the kernel what it does
better every millisecond than we do every ten seconds.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.packages.capacity import Room
from sustain.schedulers.packages.model import (
    MIXED,
    Action,
    Effect,
    Interrupts,
    Observation,
    Place,
    Purpose,
    Release,
)
from sustain.schedulers.packages.plan import GroupPlan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.state import NOT_PLACED, GroupMemory

Set = tuple[int, ...]
# Of a package: what one group uses, and all such together, that need not be balanced.
_LIGHT, _ALL_LIGHT = 0.01, 0.05
_NAMES = 5  # in a line for people


@dataclass(frozen=True)
class Standing:
    """What each group may use now, and whether it is ours to move."""

    movable: NDArray[np.bool_]
    packages: tuple[frozenset[int], ...]  # of each place
    left: tuple[GroupPlan, ...]  # those that are not moved, by reason
    memory: GroupMemory  # with those that somebody else has set since


def standing(seen: Observation, memory: GroupMemory, sets: tuple[Set, ...]) -> Standing:
    """Of every group, as it is seen now."""
    groups, online = seen.groups, set(seen.cpus.number.tolist())
    package_of = dict(zip(seen.cpus.number.tolist(), seen.cpus.package.tolist(), strict=True))
    packages = tuple(frozenset(package_of[cpu] for cpu in place if cpu in online) for place in seen.places)
    whole = np.array([online <= set(place) for place in seen.places] + [False], np.bool_)
    free = whole[groups.place]  # MIXED is the last of them
    ours = memory.placed != NOT_PLACED
    # What went offline altogether the kernel lets run elsewhere: that is nobody's setting.
    nowhere = np.array([not set(each) & online for each in sets] + [False])
    at_ours = at(seen, memory, sets) | (groups.place == MIXED) | nowhere[memory.placed]
    changed = ours & ~at_ours
    if changed.any():  # what of it is still as we set it is put back; what is not is left alone
        memory = replace(memory, hands_off=memory.hands_off | changed)
    limited = ~free & ~ours
    reasons = (
        ("the operator says so (movable = false)", ~memory.movable),
        ("somebody else has set where they run, or they cannot be placed", memory.hands_off),
        ("they have real-time threads", groups.realtime > 0),
        ("whether they have real-time threads is unknown", groups.realtime < 0),
        ("threads of theirs are bound to processors one by one", (groups.pinned > 0) & ~ours),
        ("somebody else limits them to some processors", limited),
    )
    movable = np.ones(len(groups), np.bool_)
    left = []
    for why, rows in reasons:
        those = np.flatnonzero(rows & movable)
        movable &= ~rows
        if len(those):
            names = tuple(groups.name[row] for row in those[:_NAMES].tolist())
            left.append(GroupPlan(why=why, count=len(those), names=names))
    return Standing(movable, packages, tuple(left), memory)


def at(seen: Observation, memory: GroupMemory, sets: tuple[Set, ...]) -> NDArray[np.bool_]:
    """Which groups are where we put them, as far as that is online."""
    online = set(seen.cpus.number.tolist())
    now = {frozenset(place) & online: index for index, place in enumerate(seen.places)}
    place_of = np.array([now.get(frozenset(each) & online, -2) for each in sets] + [-2], np.int32)
    found: NDArray[np.bool_] = place_of[memory.placed] == seen.groups.place  # NOT_PLACED is the last of them
    return found


@dataclass(frozen=True)
class Wanted:
    """Where movable groups are to be: the set of each, by index; NOT_PLACED: as they were before."""

    sets: tuple[Set, ...]
    of: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Relief:
    """Groups that leave packages which are short of room, for those in `to`; (): for all that are awake."""

    rows: frozenset[int] = frozenset()
    to: tuple[int, ...] = ()
    everybody: bool = False  # all groups may use all that is awake


NOBODY = Relief()
EVERYBODY = Relief(everybody=True)


def wanted(
    seen: Observation,
    now: Standing,
    sets: tuple[Set, ...],
    rooms: dict[int, Room],
    awake: list[int],
    policy: Policy,
    relieved: Relief = NOBODY,
) -> Wanted:
    """With these packages awake. Who is on some of them stays there, but for those that are `relieved`. Sets that were
    used before keep their index."""
    memory, found = now.memory, list(sets)
    awake = awake or list(rooms)
    of = np.full(len(seen.groups), NOT_PLACED, np.int32)
    placed = memory.placed != NOT_PLACED
    allowed, online = set(_cpus(rooms, awake)), set(seen.cpus.number.tolist())
    fits_in = np.array(
        [bool(set(each) & online) and set(each) & online <= allowed for each in sets] + [False]
    )
    stays = placed & fits_in[memory.placed] & now.movable
    if relieved.everybody:
        stays[:] = False
    stays[list(relieved.rows)] = False
    if len(awake) < len(rooms):
        of[now.movable] = _index(found, _cpus(rooms, awake))
        of[stays] = memory.placed[stays]
        if not relieved.everybody:
            of[_light(now, sets, rooms[max(awake)], stays)] = _index(found, rooms[max(awake)].cpus)
        for rows in apart(seen, now, policy).values():
            for row, home in _homes(rows, awake, rooms, memory, sets).items():
                of[row] = _index(found, rooms[home].cpus)
    else:
        of[stays] = memory.placed[stays]
    if relieved.to and len(relieved.to) < len(rooms):
        of[list(relieved.rows)] = _index(found, _cpus(rooms, list(relieved.to)))
    return Wanted(tuple(found), of)


def _light(now: Standing, sets: tuple[Set, ...], to: Room, stays: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Of the groups that leave a package those that use next to nothing, each and all together: they go to one, `to`,
    so that none of them moves again when another package is emptied."""
    mean, placed = now.memory.mean, now.memory.placed
    light = now.movable & (mean <= _LIGHT * to.capacity)
    there = np.array([each == to.cpus for each in sets] + [False])[placed]
    left = _ALL_LIGHT * to.capacity - float(mean[light & stays & there].sum())
    rows = np.flatnonzero(light & ~stays)
    order = rows[np.argsort(mean[rows], kind="stable")]
    return order[np.cumsum(mean[order]) <= left]


def _homes(
    rows: list[int], awake: list[int], rooms: dict[int, Room], memory: GroupMemory, sets: tuple[Set, ...]
) -> dict[int, int]:
    """A package for each of these groups, as far as there are packages. Who has one keeps it."""
    package_of = {rooms[each].cpus: each for each in awake}
    found: dict[int, int] = {}
    for row in rows:
        at_home = package_of.get(sets[memory.placed[row]]) if memory.placed[row] != NOT_PLACED else None
        if at_home is not None and at_home not in found.values():
            found[row] = at_home
    left = [each for each in awake if each not in found.values()]
    for row in sorted(rows, key=lambda row: -np.nan_to_num(memory.mean[row])):
        if row not in found and left:
            found[row] = left.pop(0)
    return found


def heaviest(
    seen: Observation,
    now: Standing,
    sets: tuple[Set, ...],
    rooms: dict[int, Room],
    hot: list[int],
    wider: list[int],
    used: NDArray[np.float64],
    excess: float,
) -> frozenset[int]:
    """Rows of groups that we hold on packages some of which are `hot`, and that may not yet use all of `wider`: as many
    as use `excess` processors there, those of high priority first, then the heaviest; none that uses next to nothing
    where the excess is not known (infinite)."""
    memory = now.memory
    tight, whole = set(_cpus(rooms, hot)), set(_cpus(rooms, wider))
    share = np.array([len(set(each) & tight) / max(1, len(each)) for each in sets] + [0.0])
    share *= np.array([not whole <= set(each) for each in sets] + [False])
    there = share[memory.placed] * np.nan_to_num(used)
    theirs = (share[memory.placed] > 0) & (memory.placed != NOT_PLACED) & now.movable
    if not np.isfinite(excess):
        theirs &= there > _LIGHT * max(rooms[each].capacity for each in hot)
    rows = np.flatnonzero(theirs)
    order = rows[np.lexsort((-there[rows], -memory.priority[rows]))]
    enough = int(np.searchsorted(np.cumsum(there[order]), excess)) + 1
    return frozenset(order[:enough].tolist())


def apart(seen: Observation, now: Standing, policy: Policy) -> dict[str, list[int]]:
    """Movable groups that are not to be on one package, by their word."""
    found: dict[str, list[int]] = {}
    if policy.default.apart or any(each.apart for each in policy.groups.values()):
        for row in np.flatnonzero(now.movable).tolist():
            word = policy.of(seen.groups.name[row]).apart
            if word:
                found.setdefault(word, []).append(row)
    return found


@dataclass(frozen=True)
class Moves:
    """What is to be written now, and how much more there is."""

    actions: tuple[Action, ...]
    pending: int  # groups that are not where they are to be, these among them


def moves(
    seen: Observation,
    now: Standing,
    want: Wanted,
    nodes: tuple[int, ...] | None,
    purpose: Purpose,
    why: str,
    policy: Policy,
) -> Moves:
    """At most `most_moves`; by priority, the highest first when there is too little room, else last. `nodes`: where
    memory is to be, None: it stays."""
    memory, groups = now.memory, seen.groups
    ours = memory.placed != NOT_PLACED
    there = at(seen, memory, want.sets) | (memory.settled & (groups.place == MIXED))
    there &= memory.placed == want.of
    back = ours & (want.of == NOT_PLACED)
    forth = now.movable & (want.of != NOT_PLACED) & ~there
    known = ~np.isnan(groups.memory_bytes.reshape(len(groups), -1)).any(axis=1) if len(groups) else there
    follows = memory.follow & known  # memory that is unknown stays where it is
    if nodes is not None and policy.memory_bytes_per_s > 0:
        forth |= now.movable & (want.of != NOT_PLACED) & follows & ~memory.followed
    rows = np.flatnonzero(back | forth)
    if not len(rows):
        return Moves((), 0)
    rank = memory.priority[rows]
    order = np.argsort(-rank if purpose in ("spread", "revert") else rank, kind="stable")
    package_of = dict(zip(seen.cpus.number.tolist(), seen.cpus.package.tolist(), strict=True))
    actions: list[Action] = []
    for row in rows[order][: policy.most_moves].tolist():
        about: dict[str, Any] = {
            "group": groups.name[row],
            "life": groups.life[row],
            "kind": groups.kind[row],
            "purpose": purpose,
            "reason": why,
        }
        if back[row]:
            actions.append(Release(**about))
            continue
        cpus = want.sets[want.of[row]]
        packages = tuple(sorted({package_of[cpu] for cpu in cpus if cpu in package_of}))
        actions.append(Place(cpus=cpus, packages=packages, nodes=nodes if follows[row] else None, **about))
    return Moves(tuple(actions), len(rows))


def interrupts(
    rooms: dict[int, Room], parked: tuple[int, ...], away: Set, purpose: Purpose, why: str
) -> Interrupts | None:
    """What is to be done about devices' interrupts; None: nothing."""
    now = _cpus(rooms, [each for each in parked if each in rooms])
    if now == away:
        return None
    awake = _cpus(rooms, [each for each in rooms if each not in parked])
    return Interrupts(away=now, cpus=awake, purpose=purpose, reason=why)


def heard(
    memory: GroupMemory, effects: tuple[Effect, ...], sets: tuple[Set, ...]
) -> tuple[GroupMemory, tuple[Set, ...]]:
    """With what came of the actions of the plan before."""
    if not effects:
        return memory, sets
    rows = {key: at for at, key in enumerate(zip(memory.names, memory.lives, strict=True))}
    placed, settled, hands_off = memory.placed.copy(), memory.settled.copy(), memory.hands_off.copy()
    followed, aligned = memory.followed.copy(), memory.aligned.copy()
    found = list(sets)
    for effect in effects:
        action = effect.action
        if isinstance(action, Interrupts):
            continue
        row = rows.get((action.group, action.life))
        if row is None or effect.outcome == "gone":
            continue
        if isinstance(action, Place):
            # Of one that is to be done again later some may be done: threads, or all but its memory.
            begun = effect.outcome == "again later" and (effect.written or effect.moved_bytes is not None)
            if effect.done or begun:
                index = _index(found, action.cpus)
                followed[row] = effect.done and action.nodes is not None
                placed[row], settled[row] = index, effect.done
            elif effect.outcome != "again later":  # where it was placed before, the next plan puts it back
                hands_off[row] = True
        elif isinstance(action, Release):
            if effect.outcome in ("done", "changed"):
                placed[row], followed[row] = NOT_PLACED, False
                hands_off[row] |= effect.outcome == "changed"
        elif effect.done:
            aligned[row] = action.slack_s is not None
        elif effect.outcome != "again later" and action.slack_s is not None:
            hands_off[row] = True
    return (
        replace(
            memory, placed=placed, settled=settled, hands_off=hands_off, followed=followed, aligned=aligned
        ),
        tuple(found),
    )


def _index(sets: list[Set], one: Set) -> int:
    if one not in sets:
        sets.append(one)
    return sets.index(one)


def _cpus(rooms: dict[int, Room], packages: list[int]) -> Set:
    return tuple(sorted(cpu for package in packages for cpu in rooms[package].cpus))
