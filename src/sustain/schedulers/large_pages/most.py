"""The most that one target may have large (`most`), beside the budget of all. Pure.

Used by `turn`. A block that is mapped small for a recount has its place, and counts as if it were large. A target that
had more before we came is brought down, and nothing of it is mapped large until it has room.
"""

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.choose import best, in_order
from sustain.schedulers.large_pages.judge import Judgement, Rows
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Observation
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import rows_of, slices

Counts = NDArray[np.int64]  # blocks of each target


def most_of_each(seen: Observation, policy: Policy) -> Counts | None:
    """None: no target has a limit. Of one without: all blocks that there are."""
    most = [policy.of(each).most_bytes for each in seen.targets]
    if all(each is None for each in most):
        return None
    every = len(seen.blocks)
    return np.array([every if each is None else int(each) // BLOCK_BYTES for each in most], np.int64)


def large_of_each(seen: Observation) -> Counts:
    return np.array([np.count_nonzero(seen.blocks.large[rows]) for rows in rows_of(seen)], np.int64)


def within(rows: Rows, seen: Observation, room: Counts) -> Rows:
    """The first of each target's, as many as it has room for."""
    parts = slices(seen.blocks.target[rows], len(room))
    found = [rows[part][: max(0, left)] for part, left in zip(parts, room.tolist(), strict=True)]
    return np.concatenate([rows[:0], *found])


def room_of_each(it: Judgement, seen: Observation, most: Counts, wanted: Rows) -> Rows:
    """Of the blocks that are wanted large, in the order of targets: places of the best for which there is room now."""
    room = np.maximum(most - _has(it, seen), 0)
    parts = slices(seen.blocks.target[wanted], len(room))
    found = [
        part.start + best(it.score[wanted[part]], left)
        for part, left in zip(parts, room.tolist(), strict=True)
    ]
    return np.concatenate([np.zeros(0, np.intp), *found])


def over_most(
    it: Judgement, seen: Observation, most: Counts, lost: Rows, wanted: Rows, possible: int
) -> Rows:
    """Of the blocks that lose their places: the worst of each target, as many as it has too many, or needs for better
    ones."""
    count, target = len(most), seen.blocks.target
    has, cold = _has(it, seen), np.bincount(target[it.cold], minlength=count)
    hopeful = np.minimum(np.bincount(target[wanted], minlength=count), possible)
    need = np.maximum(has - most, hopeful - np.maximum(most - has, 0)) - cold
    found = []
    for part, each, limit in zip(slices(target[lost], count), need.tolist(), most.tolist(), strict=True):
        if each > 0 and limit < len(seen.blocks):
            mine = lost[part]
            found.append(mine[in_order(-it.score[mine], each)])
    return np.concatenate([lost[:0], *found])


def _has(it: Judgement, seen: Observation) -> Counts:
    """Large, or small for a recount."""
    target = seen.blocks.target
    pending = np.concatenate((it.counted, it.pending))
    return large_of_each(seen) + np.bincount(target[pending], minlength=len(seen.targets))
