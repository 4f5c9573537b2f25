"""What to do about guests' memory: observation, state, policy, time and what came of the last plan in; a plan and the
next state out. Pure.

Used by the scheduler's loop, by `sustain memory plan`, by replays and by simulations. The model, in columns of all
guests:

1. Working sets and pressure (`working_set`); what earlier actions taught (`backoff`); the host's state (`host_state`).
2. What each guest wants: what it has, and what it lacks beyond that; what can be taken from each for the host and for
   others (`situation`), by which way (`ways`).
3. What each has a claim to, by shares and idle tax (`entitlement`).
4. Targets: what there is, shared out between what cannot be taken and what is wanted (`targets`). What all guests hold
   and what the host has available, less its goal, is the same before and after a page moves; so a plan that was carried
   out makes the next one empty.
5. Actions of one step at most: down, by the cheapest way; up, at once, for who is pressed; and up where the host has
   plenty, as far as all of it could be used without missing the goal.

What is unknown or stale is left as it is, in the targets as well. Rejected: moving towards a share of the host's free
memory, guest by guest, as MOM does it: it swings, and takes free memory and used memory alike.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.guest_memory import reclaim_cost, working_set
from sustain.schedulers.guest_memory.columns import zero
from sustain.schedulers.guest_memory.entitlement import fill
from sustain.schedulers.guest_memory.model import (
    Action,
    Balloon,
    Effect,
    Observation,
    PageOut,
    Policy,
    Reclaim,
)
from sustain.schedulers.guest_memory.plan import MECHANISMS, Column, Decision, HostPlan, Plan, State
from sustain.schedulers.guest_memory.situation import Situation, situation
from sustain.schedulers.guest_memory.targets import Claims, share_out
from sustain.schedulers.guest_memory.ways import BALLOON, PAGEOUT
from sustain.schedulers.guest_memory.working_set import Use
from sustain.units import format_duration, format_size

_FASTER = {"hard": 2.0, "low": 4.0}  # than one step
_FREE = 3.0  # steps more, since what is free costs the guest nothing
_PLENTY = 1.25  # of the goal
_PAGE_BYTES = 4096
_MIB = float(1 << 20)


def decide(
    observation: Observation,
    state: State | None,
    policy: Policy,
    now_s: float,
    effects: Sequence[Effect] = (),
) -> Decision:
    """One plan, and what to remember. `state` None: the beginning. `effects`: of the plan before."""
    it = situation(observation, state, policy, now_s, effects)
    target, entitlement, capacity = _targets(it, policy)
    most = steps(it, policy)
    take, way, cost, expected = _take(it, policy, target, most)
    give = _give(it, policy, target, take)
    actions, change = _actions(it, target, take, way, cost, give)
    of, use = it.of, it.use
    held = of["resident_bytes"]
    asked = np.maximum(held - target, 0)
    lacks = np.isnan(held)
    plan = Plan(
        at_s=now_s,
        host=_host_plan(it, capacity),
        actions=actions,
        names=tuple([guest.name for guest in of.guests]),
        sources=tuple([guest.source for guest in of.guests]),
        columns={
            "size_bytes": of["size_bytes"],
            "balloon_bytes": of["balloon_bytes"],
            "held_bytes": held,
            "age_s": now_s - of["classes_at_s"],
            "active_bytes": use.active_bytes,
            "working_set_bytes": use.working_set_bytes,
            "measured_bytes": use.measured_bytes,
            "doubted_bytes": use.doubted_bytes,
            "spared_s": use.spared_s,
            "needs_bytes": use.needs_bytes,
            "shares": of.shares,
            "floor_bytes": it.floor_bytes,
            "hidden_bytes": np.where(np.isnan(of["balloon_bytes"]), np.nan, it.survival.hidden),
            "kept_bytes": np.where(np.isnan(of["balloon_bytes"]), np.nan, it.survival.bare),
            "most_bytes": of.most_bytes,
            "wanted_bytes": np.where(lacks, np.nan, it.wanted_bytes),
            "entitlement_bytes": np.where(lacks, np.nan, entitlement),
            "target_bytes": np.where(lacks, np.nan, target),
            "stall": use.stall,
            "swap_in_bytes_per_s": use.swap_in,
            "refault_bytes_per_s": use.refaults,
            "pressed": use.pressed.astype(float),
            "change_bytes": change,
            "cost_s": np.where(change < 0, cost, np.nan),
            **{f"{name}_cost_s": it.ways.cost_s(index, asked) for index, name in enumerate(MECHANISMS)},
        },
        notes=_notes(it, policy, now_s),
    )
    remembered = dict(it.experience.columns)
    # What is taken beyond its share from a guest that uses it comes back, whatever the way: nothing is learned of it.
    remembered["did"] = np.where(way < 0, remembered["did"], np.where(it.squeezed, 0.0, way + 1.0))
    remembered["expected_bytes"] = expected
    remembered["spent"] = _spent(it, take, way, most)
    remembered["told_ceiling_bytes"] = it.survival.told_ceiling
    remembered |= {name: of[name] for name in (*working_set.COUNTERS, "host_swap_in_bytes", "classes_at_s")}
    remembered |= {name: getattr(use, name) for name in working_set.ESTIMATES}
    return Decision(plan, State(now_s, it.state, of.keys, remembered, it.experience.reasons, it.boots))


def _targets(it: Situation, policy: Policy) -> tuple[Column, Column, float]:
    """(target, entitlement, what all guests together may have)."""
    held, of, wanted = it.held_bytes, it.of, it.wanted_bytes
    if it.reasons:
        return held, np.full(len(held), np.nan), np.nan
    working = zero(it.use.working_set_bytes)
    total = float(held.sum()) + it.available_bytes
    goal = it.goal_bytes if it.short else min(it.goal_bytes, it.available_bytes)
    claims = Claims(
        held=held,
        wanted=wanted,
        in_use=np.minimum(held - it.ways.costless, wanted),
        gentle=np.minimum(it.gentle_bytes, wanted),
        least=np.minimum(held - it.ways.most, wanted),
        share=it.share_bytes,
        used=it.used_bytes,
        weight=of.shares,
    )
    target = share_out(claims, total, goal, it.reserve_bytes, policy.idle_tax)
    entitlement = fill(total - it.goal_bytes, working, of.shares, *it.limits, policy.idle_tax)
    return target, entitlement, total - it.goal_bytes


def _take(
    it: Situation, policy: Policy, target: Column, most: tuple[Column, Column]
) -> tuple[Column, Column, Column, Column]:
    """(taken in this step, by which way or −1, its cost, what must at least be seen of it). For a balloon, what is
    taken is what it shrinks the guest by; the cost is that of what the guest holds. `most`: `steps`."""
    asked = np.where(it.ready, np.maximum(it.held_bytes - target, 0), 0)
    limit, balloon_limit = (_rest(each, it.spent, policy) for each in most)
    amounts = []
    for index in range(len(MECHANISMS)):
        amount = np.minimum(asked, it.ways.takeable[index])
        amounts.append(
            np.where(balloon_limit > 0, amount, 0) if index == BALLOON else np.minimum(amount, limit)
        )
    way, cost = it.ways.cheapest(tuple(amounts), policy.least_change_bytes)
    untouched = it.ways.untouched_bytes
    shrunk = np.minimum(amounts[BALLOON] + untouched, balloon_limit)
    take = np.where(way == BALLOON, shrunk, 0.0)
    for index in range(BALLOON + 1, len(MECHANISMS)):
        take = np.where(way == index, amounts[index], take)
    pages = way == PAGEOUT
    paged = float(take[pages].sum())
    if paged > it.ways.host_swap_bytes:
        take = np.where(pages, take * (it.ways.host_swap_bytes / paged), take)
    expected = np.where(way == BALLOON, np.maximum(take - untouched, 0), take)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(way == BALLOON, amounts[BALLOON], take)
        cost = np.where(whole > 0, cost * expected / whole, np.nan)
    return take, way, cost, expected


def _rest(limit: Column, spent: Column, policy: Policy) -> Column:
    """What is left of a step; nothing where that is too little for an action."""
    rest = limit * (1 - spent)
    found: Column = np.where(rest >= policy.least_change_bytes, rest, 0.0)
    return found


def _spent(it: Situation, take: Column, way: Column, most: tuple[Column, Column]) -> Column:
    """Of a step, after this plan."""
    limit, balloon_limit = most
    with np.errstate(divide="ignore", invalid="ignore"):
        now = np.where(take > 0, take / np.where(way == BALLOON, balloon_limit, limit), 0)
    found: Column = np.minimum(it.spent + zero(now), 1.0)
    return found


def steps(it: Situation, policy: Policy) -> tuple[Column, Column]:
    """(the most that is taken at once, the most that a balloon is blown up by): more of what the guest calls free."""
    step = policy.step * it.of.known("size_bytes")
    limit = np.maximum(_FASTER.get(it.state, 1.0) * step, policy.least_change_bytes)
    return limit, limit + np.minimum(reclaim_cost.spare_free(it.of), _FREE * step)


def _give(it: Situation, policy: Policy, target: Column, take: Column) -> Column:
    """What the balloons leave guests more than now."""
    if it.reasons or it.at is None:
        return np.zeros(len(take))
    of, held, least = it.of, it.held_bytes, policy.least_change_bytes
    can = it.ready & of.can[BALLOON] & (take == 0)
    room = np.where(can, np.maximum(of.most_bytes - it.ceiling_bytes, 0), 0)
    give = np.where(can, np.minimum(np.maximum(target - held, 0), room), 0)
    dying = np.where(can, np.minimum(np.maximum(it.survival.bare - it.ceiling_bytes, 0), room), 0)
    # Not from what the host needs itself; what others give is there the next time. Nor, when looks come early, what was
    # given just now to guests that wait, and that they have not touched yet.
    promised = it.early * float(it.ways.untouched_bytes[can & it.use.pressed & (room > 0)].sum())
    budget = max(0.0, it.available_bytes - it.reserve_bytes - promised)
    total = float(give.sum())
    if total > budget:
        give *= budget / total
    # What it cannot live without it gets of the last that the host has.
    need = float(dying.sum())
    give = np.maximum(give, dying * min(1.0, it.available_bytes / need) if need > 0 else 0.0)
    left = it.available_bytes - _PLENTY * it.goal_bytes - float(give.sum())
    # All that guests with a shrunken balloon may take without asking.
    left -= float(np.maximum(it.ceiling_bytes - held, 0)[can & (room > 0)].sum())
    if not it.short and left >= least:
        step = np.maximum(working_set.GIVEN_AT_ONCE * policy.step * of.known("size_bytes"), least)
        none = np.zeros(len(give))
        give += fill(left, none, of.shares, none, np.minimum(room - give, step), 0.0)
    little = (give >= room) | (dying > 0)
    return np.where((give >= least) | (little & (give >= _PAGE_BYTES)), give, 0.0)


def _actions(
    it: Situation, target: Column, take: Column, way: Column, cost: Column, give: Column
) -> tuple[tuple[Action, ...], Column]:
    """(the actions, what each changes)."""
    of = it.of
    held = it.held_bytes
    change = give - take
    rows = np.flatnonzero(change != 0)
    moved, ceiling = change[rows], it.ceiling_bytes[rows]
    made: list[Action] = []
    columns = (
        moved > 0,
        way[rows].astype(int),
        _whole(np.abs(moved), _MIB),
        _whole(held[rows], _MIB),
        _whole(target[rows], _MIB),
        cost[rows],
        ceiling,
        (ceiling + moved) // _PAGE_BYTES * _PAGE_BYTES,
        -moved // _PAGE_BYTES * _PAGE_BYTES,
    )
    picked = zip(rows.tolist(), *(column.tolist() for column in columns), strict=True)
    for row, given, by, mib, has_mib, goal_mib, costs, from_bytes, to_bytes, amount in picked:
        name, life = of.keys[row]
        if given:
            why = _pressure(it.use, row) if it.use.pressed[row] else "it needs more, or the host has plenty"
            why = "it cannot live with so little" if it.survival.bare[row] > from_bytes else why
            reason = f"{why}: {mib} MiB back; target {goal_mib} MiB, holds {has_mib} MiB"
        else:
            reason = (
                f"target {goal_mib} MiB of {has_mib} MiB that it holds, host {it.state}: "
                f"{MECHANISMS[by]} is the cheapest way, {costs:.3g} s for {mib} MiB"
            )
        if given or by == BALLOON:
            made.append(
                Balloon(guest=name, life=life, from_bytes=from_bytes, to_bytes=to_bytes, reason=reason)
            )
        else:
            kind = PageOut if by == PAGEOUT else Reclaim
            made.append(kind(guest=name, life=life, amount_bytes=amount, reason=reason))
    return tuple(made), change


def _whole(amount: Column, unit: float) -> NDArray[np.int64]:
    """To be shown: an integer is written faster than a float is rounded."""
    return np.rint(amount / unit).astype(np.int64)


def _pressure(use: Use, row: int) -> str:
    """What shows that a guest lacks memory."""
    if use.rereads[row]:
        return f"it reads {format_size(int(use.refaults[row]))}/s again"
    stall = use.stall[row]
    return "it swaps in" if np.isnan(stall) else f"it waits {stall:.1%} of the time"


def _host_plan(it: Situation, capacity: float) -> HostPlan:
    at = it.at
    known = not it.reasons
    problems = list(it.reasons)
    if known and capacity < float(zero(it.of.reservation_bytes).sum()):
        problems.append("more memory is reserved than there is")
    return HostPlan(
        state=it.state,
        available_bytes=it.available_bytes if known else None,
        goal_bytes=it.goal_bytes if known else None,
        capacity_bytes=capacity if known else None,
        clear_bytes=at.clear_bytes if at else None,
        soft_bytes=at.soft_bytes if at else None,
        hard_bytes=at.hard_bytes if at else None,
        low_bytes=at.low_bytes if at else None,
        problems=tuple(problems),
    )


def _notes(it: Situation, policy: Policy, now_s: float) -> dict[str, tuple[str, ...]]:
    """What is to be said of guests beyond the figures."""
    of = it.of
    notes = {guest.name: guest.problems for guest in of.guests if guest.problems}

    def note(row: int, text: str) -> None:
        name = of.guests[row].name
        notes[name] = (*notes.get(name, ()), text)

    if it.short:
        for row in np.flatnonzero(it.spared & it.ready & ~it.use.pressed).tolist():
            ago = format_duration(float(it.use.calm_s[row]))
            spared_s = float(it.use.spared_s[row])
            note(
                row,
                f"it waited for memory {ago} ago: for {spared_s:.0f} s the host's goal takes nothing from it",
            )
    for row in np.flatnonzero(it.survival.taken_since & it.ready).tolist():
        note(
            row,
            "its balloon has taken memory since it told what it uses: until it tells anew it takes no more",
        )
    for (name, _), why in it.experience.reasons.items():
        notes[name] = (*notes.get(name, ()), why)
    for row in np.flatnonzero(~it.ready).tolist() if not it.reasons else ():
        age_s = now_s - of["classes_at_s"][row]
        if it.use.fresh[row]:
            note(row, "left as it is: what it holds, has, or uses is unknown")
        elif np.isnan(age_s):
            note(row, "left as it is: what it uses its memory for is unknown")
        else:
            note(
                row,
                f"left as it is: its page classes are {age_s:.0f} s old, more than {policy.fresh_s:.0f} s",
            )
    return notes
