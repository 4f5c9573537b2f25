"""What is done in one plan: findings become actions as far as processor time and the most actions go. Pure.

Used by `decide`. Who comes first is served first: what is mapped back after a recount, what is demoted, what is
mapped large, what is demoted for a recount. `map_large` is the plan of a host with memory enough, `relieve` of one that
lacks it.
"""

from dataclasses import dataclass, field
from math import floor

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages import budget
from sustain.schedulers.large_pages.choose import Chosen, choose, in_order, in_turns
from sustain.schedulers.large_pages.columns import Mask, put
from sustain.schedulers.large_pages.judge import Judgement, Rows
from sustain.schedulers.large_pages.model import PAGE_BYTES, Observation
from sustain.schedulers.large_pages.most import (
    large_of_each,
    most_of_each,
    over_most,
    room_of_each,
    within,
)
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import Memory, State, rows_of, slices

_SCARCE_LEAST, _SCARCE_SHARE = 16, 0.05  # demoted in one plan while memory is scarce
_MAPS_LARGE = (Finding.COLLAPSE, Finding.COUNTED)
_IN_DOUBT = 9  # how much more is recounted when all of the last recounts ended with the loss of a place


@dataclass
class Turn:
    """What is left of one plan, and what was taken of it."""

    left: int
    left_s: float
    cost_s: tuple[float, float]  # of a collapse, of a demotion
    possible: int = 0  # collapses, as far as large pages are to be had
    taken: list[tuple[Finding, Rows]] = field(default_factory=list)

    def room(self, kind: Finding) -> int:
        """Actions of that kind that can still be taken."""
        cost_s = self.cost_s[0 if kind in _MAPS_LARGE else 1]
        left = min(self.left, self.possible) if kind in _MAPS_LARGE else self.left
        return max(0, min(left, floor(self.left_s / cost_s + 1e-9)))

    def take(self, rows: Rows, kind: Finding, it: Judgement) -> None:
        """The first of these blocks, as many as there is room for; the others wait."""
        now, later = rows[: self.room(kind)], rows[self.room(kind) :]
        none_to_be_had = kind in _MAPS_LARGE and self.possible <= len(now)
        it.finding[now] = kind
        it.finding[later] = Finding.NO_PAGES if none_to_be_had else Finding.RATE
        self.left -= len(now)
        if kind in _MAPS_LARGE:
            self.possible -= len(now)
        self.left_s -= len(now) * self.cost_s[0 if kind in _MAPS_LARGE else 1]
        self.taken.append((kind, now))

    def rows(self) -> Rows:
        """All blocks taken so far."""
        return np.concatenate([rows for _, rows in self.taken]) if self.taken else np.zeros(0, np.intp)


def begin(state: State, policy: Policy) -> Turn:
    """An empty one. An action that takes longer than the allowance can ever hold is possible when that is full."""
    most_s = policy.processor_share * budget.HELD_S
    collapse_s, demote_s = (min(each, most_s) for each in budget.cost_s(state))
    return Turn(policy.most_actions, state.allowance_s, (collapse_s, demote_s))


def relieve(
    turn: Turn, it: Judgement, seen: Observation, memory: Memory, bloat: NDArray[np.float32], policy: Policy
) -> None:
    """Memory is scarce: of large blocks those that are not hot, or hold pages that nobody uses; the worst first."""
    with np.errstate(invalid="ignore"):
        hot = memory.estimate - policy.certainty * memory.error >= policy.high
    rows = np.flatnonzero(seen.blocks.large & it.known & (~hot | (bloat > 0)))
    most = max(_SCARCE_LEAST, int(_SCARCE_SHARE * int(np.count_nonzero(seen.blocks.large))))
    turn.take(rows[in_order(bloat[rows] - memory.estimate[rows], most)], Finding.PRESSURE, it)


def map_large(
    turn: Turn,
    it: Judgement,
    seen: Observation,
    memory: Memory,
    policy: Policy,
    own: NDArray[np.int64],
    places: int | None,
    possible: int,
    fillable_bytes: float,
) -> None:
    """`own`: of the budget, by shares; `places`: the budget, None: no limit; `possible`: collapses that may be
    tried."""
    large = int(np.count_nonzero(seen.blocks.large))
    pool, unfit = _pool(it, fillable_bytes)
    chosen = _choose(it, pool, unfit, seen, policy, own, places)
    wanted = chosen.mask & it.may
    room = len(seen.blocks) if places is None else max(0, places - large - it.recounting)
    surplus = 0 if places is None else max(0, large + it.recounting - places)
    most = most_of_each(seen, policy)
    turn.possible = possible

    counted = it.counted
    if len(counted):
        passed_over = np.flatnonzero(pool & it.may & ~chosen.mask)
        counted = counted[np.flatnonzero(_holding(it, passed_over, seen))]
    back = counted if most is None else within(counted, seen, most - large_of_each(seen))
    turn.take(back if places is None else back[: max(0, places - large)], Finding.COUNTED, it)
    turn.take(it.cold, Finding.COLD, it)
    put(it.finding, Finding.RATE if turn.possible > 0 else Finding.NO_PAGES, wanted)
    these = lost = over = np.zeros(0, np.intp)
    waiting = int(np.count_nonzero(wanted))
    if most is not None:
        these, lost = np.flatnonzero(wanted), np.flatnonzero(it.stays & ~chosen.mask)
        over = over_most(it, seen, most, lost, these, turn.possible)
        these = these[room_of_each(it, seen, most, these)]
        waiting = len(these)
    excess = max(0, max(surplus, min(waiting, turn.possible) - room) - len(it.cold) - len(over))
    if excess:
        lost = np.flatnonzero(it.stays & ~chosen.mask) if most is None else lost
        others = _without(lost, over, len(seen.blocks))
        over = np.concatenate((over, others[in_order(-it.score[others], excess)]))
    turn.take(over, Finding.REPLACED, it)

    limit = min(room, turn.room(Finding.COLLAPSE))
    if limit:
        these = np.flatnonzero(wanted) if most is None else these
        order = _order(it.score, these, chosen.own[these], seen.blocks.target, own, limit)
        fits = _fits(it.fill[order], fillable_bytes)
        it.finding[order[~fits]] = Finding.BLOAT
        turn.take(order[fits], Finding.COLLAPSE, it)
    if policy.recount == "sample" and turn.room(Finding.RECOUNTED):
        failed = it.failed + len(it.counted) - len(counted)
        doubt = failed / max(1, it.failed + len(it.counted))
        rows = _to_recount(it, memory, turn.rows(), policy, seen.now_s, doubt)
        turn.take(rows[: turn.room(Finding.RECOUNTED)], Finding.RECOUNTED, it)


def _pool(it: Judgement, fillable_bytes: float) -> tuple[Mask, Rows]:
    """(what is chosen from: all with a score, but for those that could not be filled now; these)."""
    mask, unfit = it.may | it.stays, np.zeros(0, np.intp)
    if it.most_fill * PAGE_BYTES > fillable_bytes:
        unfit = np.flatnonzero(it.may & (it.fill * PAGE_BYTES > fillable_bytes))
        it.finding[unfit] = Finding.BLOAT
        mask[unfit] = False
    return mask, unfit


def _choose(
    it: Judgement,
    pool: Mask,
    unfit: Rows,
    seen: Observation,
    policy: Policy,
    own: NDArray[np.int64],
    places: int | None,
) -> Chosen:
    """Of movable blocks and candidates, those that are to be large beside what stays whatever they are."""
    fixed = seen.blocks.large & ~it.stays
    fixed[it.cold] = False
    fixed[it.counted] = fixed[it.pending] = (
        True  # a block that is recounted has its place, and is its target's
    )
    has = np.array([np.count_nonzero(fixed[rows]) for rows in rows_of(seen)], np.int64)
    most = most_of_each(seen, policy)
    caps = None if most is None else np.maximum(most - has, 0)
    shares = np.array([policy.of(each).shares for each in seen.targets], np.float64)
    left = None if places is None else places - int(has.sum())
    return choose(it.score, pool, unfit, rows_of(seen), left, np.maximum(own - has, 0), caps, shares)


def _order(
    score: NDArray[np.float32],
    rows: Rows,
    mine: Mask,
    target: NDArray[np.int32],
    own: NDArray[np.int64],
    limit: int,
) -> Rows:
    """The first `limit` of the chosen blocks: in turns what is their targets' own, then the best."""
    if not limit:
        return rows[:0]
    its, others = rows[np.flatnonzero(mine)], rows[np.flatnonzero(~mine)]
    first = its[in_turns(score[its], target[its], own, limit)]
    return np.concatenate((first, others[in_order(score[others], limit - len(first))]))


def _holding(it: Judgement, waiting: Rows, seen: Observation) -> Mask:
    """Which of the recounted blocks are mapped large again: the worst makes way when the best of its target that waits
    is better, and so on. Between targets it is not the score alone that decides."""
    found = np.ones(len(it.counted), np.bool_)
    target = seen.blocks.target
    count = len(seen.targets)
    for mine, theirs in zip(slices(target[it.counted], count), slices(target[waiting], count), strict=True):
        score, other = it.counted_score[mine], it.score[waiting[theirs]]
        pairs = min(len(score), len(other))
        worst, best = in_order(-score, pairs), in_order(other, pairs)
        found[mine.start + worst] = score[worst] >= other[best]
    return found


def _without(rows: Rows, others: Rows, count: int) -> Rows:
    """Those rows of `count` but for some, in their order; by a mask, since there may be many."""
    if not len(others):
        return rows
    mask = np.zeros(count, np.bool_)
    mask[others] = True
    return rows[~mask[rows]]


def _fits(fill: NDArray[np.float32], fillable_bytes: float) -> Mask:
    """Which of these blocks are filled, in their order; one that does not fit any more is passed over."""
    found, left = np.ones(len(fill), np.bool_), fillable_bytes / PAGE_BYTES
    for place, pages in enumerate(fill.tolist()):
        found[place] = pages <= left
        left -= pages if pages <= left else 0.0
    return found


def _to_recount(
    it: Judgement, memory: Memory, taken: Rows, policy: Policy, now_s: float, doubt: float
) -> Rows:
    """A share of what is large, those first whose pages were told apart longest ago. `doubt`: which part of the last
    recounts found that a block had lost its place: where one has changed others may have, too, so more are asked."""
    rested = np.flatnonzero(it.countable & (memory.fine_s <= now_s - policy.recount_rest_s))
    rows = _without(rested, taken, len(memory.fine_s))
    share = min(0.5, policy.recount_share * (1 + _IN_DOUBT * doubt))
    most = max(1, floor(share * int(np.count_nonzero(it.countable)))) - len(it.pending)
    return rows[in_order((-memory.fine_s[rows]).astype(np.float32), max(0, most))]
