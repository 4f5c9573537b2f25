"""Which of the blocks that may be large are to be, within a budget of large pages. Pure.

Used by `decide`. The model: pinned blocks are large whatever their score; of the others the best are chosen, first for
each target what is its own by shares, then the best of all. Everything is partitioned, not sorted: of a million blocks
only those that are acted upon now need an order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.budget import guaranteed
from sustain.schedulers.large_pages.columns import Mask, column, lift
from sustain.schedulers.large_pages.judge import Rows
from sustain.schedulers.large_pages.state import slices

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """Of all blocks."""

    mask: Mask  # is to be large
    own: Mask  # as a part of what is its target's own


def choose(
    score: Scores,
    pool: Mask,
    outside: Rows,
    targets: Sequence[slice],
    places: int | None,
    own: NDArray[np.int64],
    caps: NDArray[np.int64] | None,
    shares: NDArray[np.float64],
) -> Chosen:
    """Of a pool. `outside`: what has a score and is not in it; `targets`: the blocks of each; `places`: how many at
    most, None: no limit; `own`: how many are each target's own; `caps`: how many each may have (None: no limit to
    any)."""
    never = np.float32(-np.inf)
    score = np.fmax(score, never, out=column(len(score), np.float32))  # what has none is NaN
    score[outside] = never
    allowed = pool
    if caps is not None:
        allowed = np.zeros_like(pool)
        for rows, cap in zip(targets, caps.tolist(), strict=True):
            allowed[rows] = are_best(score[rows], cap)
        allowed &= pool
        score[~allowed] = never
    mine = np.zeros_like(allowed)
    if places is None or places >= int(np.count_nonzero(allowed)):
        return Chosen(allowed, mine)
    places = max(0, places)
    if int(own.sum()) > places:
        own = guaranteed(places, own, shares)
    for rows, count in zip(targets, own.tolist(), strict=True):
        mine[rows] = are_best(score[rows], count)
    mine &= allowed
    # No more than there are places, so the best of all are these and then the best of the others.
    lift(score, mine)
    return Chosen(are_best(score, places), mine)


def are_best(score: Scores, count: int) -> Mask:
    """Which are the `count` highest; of equal ones the first."""
    if count >= len(score) or count <= 0:
        return np.full(len(score), count > 0, np.bool_)
    bound = np.partition(score, len(score) - count)[len(score) - count]
    found: Mask = score >= bound
    more = int(np.count_nonzero(found)) - count
    if more:
        level = np.flatnonzero(score == bound)
        found[level[len(level) - more :]] = False
    return found


def best(score: Scores, count: int) -> Rows:
    """Indices of the `count` highest, in their order in `score`; of equal ones the first."""
    return np.flatnonzero(are_best(score, count)) if count > 0 else np.zeros(0, np.intp)


def in_order(score: Scores, count: int) -> Rows:
    """Indices of the `count` highest, the highest first."""
    found = best(score, count)
    return found[np.argsort(-score[found], kind="stable")]


def in_turns(score: Scores, target: NDArray[np.int32], own: NDArray[np.int64], count: int) -> Rows:
    """The same of blocks in the order of their targets; these have turns as often as blocks are their own, so that none
    waits for another's."""
    rows: list[Rows] = []
    turns: list[NDArray[np.float64]] = []
    for part, often in zip(slices(target, len(own)), own.tolist(), strict=True):
        mine = part.start + in_order(score[part], count)
        rows.append(mine)
        turns.append(np.arange(1, len(mine) + 1) / max(1, often))
    if not rows:
        return np.zeros(0, np.intp)
    all_rows, all_turns = np.concatenate(rows), np.concatenate(turns)
    return all_rows[np.argsort(all_turns, kind="stable")[:count]]
