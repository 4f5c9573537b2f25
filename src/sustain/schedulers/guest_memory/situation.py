"""What is known of host and guests, who wants what, and what could be taken from whom, before anything is decided.
Pure.

Used by `decide` and `admission`. What may be taken from a guest depends on for whom:

- For the host's goal a guest keeps its working set and some headroom, unless the state is hard; who has waited for
  memory lately (`spared_s`) is left alone.
- For others that wait, when the host has no more to give, it keeps what it uses now and may use soon.
- Beyond its share (`entitlement`) nobody keeps anything from those who are within theirs.

By each way the most of these may be taken. Only the last hangs on shares, and the more a guest has, the less it is: so
`targets` wants it. Rejected: one rule for each guest, by which it is beyond its share or not; who got a few shares
more, and so came under another rule, could be left with less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from operator import ne

import numpy as np

from sustain.schedulers.guest_memory import backoff, reclaim_cost, working_set
from sustain.schedulers.guest_memory.backoff import Experience
from sustain.schedulers.guest_memory.columns import Key, Table, table, told_total, zero
from sustain.schedulers.guest_memory.entitlement import fill
from sustain.schedulers.guest_memory.host_state import bounds, next_state
from sustain.schedulers.guest_memory.model import Bounds, Effect, Observation, Policy
from sustain.schedulers.guest_memory.plan import Column, HostState, Mask, State
from sustain.schedulers.guest_memory.survival import Survival, survival
from sustain.schedulers.guest_memory.ways import BALLOON, Ways, ways
from sustain.schedulers.guest_memory.working_set import Use

_RESERVE = 0.25  # of the goal
_PUNCTUAL = 0.1  # of a step


@dataclass(frozen=True)
class Situation:
    """All that targets are made of; also what `admission` starts from."""

    of: Table
    boots: tuple[str, ...]  # the last that each guest told
    use: Use
    experience: Experience
    state: HostState
    available_bytes: float  # NaN where unknown
    goal_bytes: float
    at: Bounds | None
    ready: Mask  # guests that may be acted upon
    ceiling_bytes: Column
    floor_bytes: Column
    survival: Survival
    reserve_bytes: float  # what the host keeps though guests lack memory; less than its goal
    wanted_bytes: Column  # what each guest would hold if there were enough
    limits: tuple[Column, Column]  # the least and the most that the operator lets each have
    share_bytes: (
        Column  # what each would get if all wanted all they may have, and the host kept its reserve only
    )
    used_bytes: Column  # now: what is charged without the idle tax
    gentle_bytes: Column  # what each is left with for the host's goal
    early: float  # how far this look comes before its time: 0 not at all, 1 at once after the last
    spent: Column  # of a step, lately: what may be taken is the rest
    spared: Mask  # have waited lately: nothing is taken from them for the host's goal
    squeezed: Mask  # uses more than its share, and may lose some of that to others
    ways: Ways  # for the host or for others
    reasons: tuple[str, ...]  # why nothing can be decided

    @property
    def held_bytes(self) -> Column:
        return self.of.known("resident_bytes")

    @property
    def short(self) -> bool:
        return self.state in ("soft", "hard", "low")

    @property
    def hard(self) -> bool:
        return self.state in ("hard", "low")


def situation(
    observation: Observation,
    state: State | None,
    policy: Policy,
    now_s: float,
    effects: Sequence[Effect] = (),
) -> Situation:
    """What is known, and what could be done, before anything is decided."""
    of = table(observation, policy)
    elapsed_s = max(0.0, now_s - state.at_s) if state else 0.0
    before, boots = _aligned(of, state)
    use = working_set.use(of, before, now_s, elapsed_s, policy)
    experience = backoff.learn(
        of,
        before,
        state.backoff_reasons if state else {},
        use.came_back_bytes,
        effects,
        now_s,
        elapsed_s,
        policy.least_change_bytes,
    )
    host, reasons = observation.host, []
    found = bounds(host, policy)
    available, goal, name = np.nan, np.nan, state.host_state if state else "unknown"
    if now_s - observation.at_s > policy.fresh_s:
        reasons.append(f"the host was looked at {now_s - observation.at_s:.0f} s ago")
    elif host.available_bytes is None or found is None:
        reasons.append("how much memory the host has available is unknown")
    else:
        available, goal = host.available_bytes, found[0]
        name = next_state(name, available, goal, found[1])
    ceiling = np.fmin(of["balloon_bytes"], of["size_bytes"])
    held = of.known("resident_bytes")
    ready = use.fresh & ~np.isnan(of["resident_bytes"] + ceiling + use.needs_bytes + of["size_bytes"])
    if reasons:
        ready = np.zeros_like(ready)
    at = found[1] if found else None
    reserve = np.nan if at is None else min(at.soft_bytes, max(2 * at.hard_bytes, _RESERVE * goal))
    hard = name in ("hard", "low")
    untouched = _untouched(of, ceiling)
    lives = survival(of, ceiling, before, use)
    rise = _rise(of, use, ready, ceiling, untouched, lives, policy, hard=hard)
    waiting = np.where(use.pressed, rise, 0)
    scarce = bool(waiting.any()) and float(waiting.sum()) > available - reserve
    if scarce:
        rise = waiting
    # One look that comes early and sees no waiting does not say that a guest has enough.
    waited = use.calm_s < policy.rise_s
    used = zero(np.where(waited, use.working_set_bytes, use.active_bytes))
    limits = np.where(ready, zero(of.reservation_bytes), held), np.where(ready, of.most_bytes, held)
    share = np.full(len(held), np.nan)
    if not reasons:
        total = float(held.sum()) + available
        share = fill(total - reserve, used, of.shares, *limits, policy.idle_tax)
    floor = _floor(of)
    kept = floor if hard else np.fmax(floor, use.needs_bytes)

    def can(left: Column, by_balloon: Column, from_whom: Mask, deep: Mask) -> Ways:
        return ways(
            of,
            host,
            experience.usable,
            from_whom,
            ceiling,
            untouched,
            left,
            np.fmax(by_balloon, np.where(deep, lives.kept, lives.bare)),
            lives.taken_since,
            deep=deep,
            hard=hard,
            least_bytes=policy.least_change_bytes,
        )

    spared = (use.calm_s < use.spared_s) & (not hard)
    gentle = deepest = can(
        kept, kept if hard else np.fmax(kept, lives.soon), ready & ~spared, np.full(len(held), hard)
    )
    over = ready & (use.needs_bytes > share) & (held > share)
    if scarce and not hard:
        left = np.where(waited, kept, np.fmin(kept, use.soon_bytes))
        deepest = deepest.or_more(
            can(
                np.fmax(floor, left),
                np.fmax(left, lives.soon),
                ready & ~(spared & waited),
                np.zeros_like(ready),
            )
        )
    if over.any() and not hard:
        # What could be taken at all does not hang on shares, only how much of that is beyond them: `targets`.
        beyond = np.where(over, np.maximum(np.fmin(held, ceiling) - share, 0), 0)
        deepest = deepest.or_more(can(floor, floor, ready, np.ones_like(ready)).at_most(beyond))
    return Situation(
        of=of,
        boots=boots,
        use=use,
        experience=experience,
        state=name,
        available_bytes=available,
        goal_bytes=goal,
        at=at,
        ready=ready,
        ceiling_bytes=ceiling,
        floor_bytes=floor,
        survival=lives,
        reserve_bytes=reserve,
        wanted_bytes=np.where(ready, np.minimum(held, of.most_bytes) + rise, held),
        limits=limits,
        share_bytes=share,
        used_bytes=used,
        gentle_bytes=held - gentle.most,
        early=max(0.0, 1 - elapsed_s / policy.rise_s) if state else 0.0,
        spent=np.where(hard, 0.0, _spent(before["spent"], elapsed_s / policy.rise_s)),
        spared=spared,
        squeezed=over,
        ways=deepest,
        reasons=tuple(reasons),
    )


def _untouched(of: Table, ceiling: Column) -> Column:
    """Of what its balloon leaves a guest, what it does not hold."""
    found = np.maximum(zero(ceiling - of.known("resident_bytes") - of.known("host_swapped_bytes")), 0)
    return np.where(of.can[BALLOON], found, 0.0)


def _spent(before: Column, steps: float) -> Column:
    """Of a step, after the time of so many. A step is what is learned of within `rise_s`; looks are not on time to the
    millisecond."""
    left = np.maximum(before - steps, 0)
    return np.where(left < _PUNCTUAL, 0.0, left)


def _floor(of: Table) -> Column:
    """What each guest is left with whatever happens."""
    kernel = of.known("unreclaimable_bytes") + reclaim_cost.KEPT_FREE * of.known("size_bytes")
    # Of buffers that it does not tell apart, a guest that tells no more than that may lose those that it can drop.
    told = np.maximum(told_total(of, of["balloon_bytes"]) - of["available_bytes"], 0)
    kernel = np.where(np.isnan(of["unreclaimable_bytes"]) & ~np.isnan(told), told, kernel)
    return np.fmin(np.fmax(of.reservation_bytes, kernel), of.most_bytes)


def _aligned(of: Table, state: State | None) -> tuple[dict[str, Column], tuple[str, ...]]:
    """(the state's columns in the order of this observation's guests, NaN, or 0, for those that are new; their boots).
    Counters of another boot are as good as unknown."""
    count = len(of.guests)
    keys, boots = of.keys, tuple([guest.boot for guest in of.guests])
    empty = dict.fromkeys((*working_set.REMEMBERED, "told_ceiling_bytes"), np.nan)
    empty |= dict.fromkeys((*backoff.REMEMBERED, "spent"), 0.0)
    if state is None:
        return {name: np.full(count, value) for name, value in empty.items()}, boots
    if keys == state.keys:
        columns, known = dict(state.columns), state.boots
    else:
        index = _rows(keys, state.keys)
        at = np.array(index, dtype=int)
        columns = {name: np.append(state.columns[name], value)[at] for name, value in empty.items()}
        told = (*state.boots, "")
        known = tuple([told[row] for row in index])
    if boots == known:
        return columns, boots
    anew = np.array([bool(a and b and a != b) for a, b in zip(boots, known, strict=True)], dtype=bool)
    columns |= {name: np.where(anew, np.nan, columns[name]) for name in working_set.COUNTERS}
    return columns, tuple(now or before for now, before in zip(boots, known, strict=True))


def _rows(keys: Sequence[Key], before: Sequence[Key]) -> list[int]:
    """Where each of these was before; one behind the last for those that were not. Most are where they were."""
    index = list(range(len(keys)))
    both = min(len(keys), len(before))
    moved = list(compress(range(both), map(ne, keys, before)))
    rows = {before[row]: row for row in (*moved, *range(both, len(before)))}
    for row in (*moved, *range(both, len(keys))):
        index[row] = rows.get(keys[row], len(before))
    return index


def _rise(
    of: Table,
    use: Use,
    ready: Mask,
    ceiling: Column,
    untouched: Column,
    lives: Survival,
    policy: Policy,
    *,
    hard: bool,
) -> Column:
    """What each guest lacks. No more than its limit, and than it can be given."""
    lacks = np.maximum(lives.soon - ceiling, 0)
    lacks = np.where((lacks >= policy.least_change_bytes) & (not hard), lacks, 0)
    lacks = np.maximum(lacks, lives.bare - ceiling)
    # What it was given and has not touched yet is on its way to it.
    at_once = np.maximum(working_set.GIVEN_AT_ONCE * policy.step * of["size_bytes"] - untouched, 0)
    rise = np.where(use.pressed, np.maximum(at_once, lacks), lacks)
    can = ready & of.can[BALLOON]
    room = np.maximum(np.where(can, of.most_bytes, 0) - np.where(can, ceiling, 0), 0)
    found: Column = zero(np.where(can, np.minimum(rise, room), 0))
    return found
