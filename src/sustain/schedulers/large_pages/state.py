"""What a decision remembers of blocks, and how a new look at them is taken into it. Pure.

Used by `decide`. The model, for each block:

- A count that is new (its counting period ended later than that of the last one) moves the estimate towards it, by
  `weight` when it comes `weight_period_s` after the last one, and by as much as that makes in shorter or longer
  times: w(Δt) = 1 − (1 − weight)^(Δt / weight_period_s). HawkEye's (6·old + 4·new)/10 is the default. Its standard
  error is that of such a sum.
- Of a block that is mapped large and counted as a `whole`, only that nothing of it was used is news: that is a count
  of 0. That something was used leaves the estimate as it was, and new.
- What the estimate and the age say of a block goes with it by (life of the target, address). A target that was
  started anew, and memory that was mapped anew later, begin anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.columns import PIECE, Mask, column, later, masked, pieces, write
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Blocks, Observation
from sustain.schedulers.large_pages.policy import Policy

Rows = slice | NDArray[np.intp]

# Rows that lie beside each other, on the average; where it is fewer, and these are not a few runs, they are looked up.
_RUN, _RUNS = 1024, 64
_SAME_S = 0.05  # ages are single-precision floats; counting periods are longer by far
_ADDRESS_BITS = 43  # of an address in blocks: 64 − 21


@dataclass(frozen=True)
class Memory:
    """Of each block, in columns as long as the observation's."""

    estimate: NDArray[np.float32]  # pages accessed in a counting period, over time; NaN: never counted
    error: NDArray[np.float32]  # one standard error of that
    counted_s: NDArray[np.float64]  # when the last counting period ended; −inf: never
    fine_s: NDArray[np.float64]  # the same of the last one that told small pages apart
    counts: NDArray[np.uint8]  # how many, up to 255
    large: NDArray[np.bool_]  # as it was seen last
    changed_s: NDArray[np.float64]  # when it was first seen to have become large or small; −inf: always was
    base: NDArray[np.int16]  # pages that were present before it was mapped large by us; −1: it was not
    retry_s: NDArray[np.float64]  # not tried before that
    failures: NDArray[np.uint8]  # in a row
    recount_s: NDArray[np.float64]  # since when it is mapped small for a recount; −inf: it is not

    def rows(self, rows: slice) -> "Memory":
        """Those rows; a view of them."""
        return Memory(*[getattr(self, name)[rows] for name in _COLUMNS])


_COLUMNS = tuple(each.name for each in fields(Memory))


@dataclass(frozen=True)
class TargetMemory:
    """Of each target, by its life. What it may not be done to is refused until `retry_s`."""

    since_s: float  # first seen
    counts: int = 0  # counting periods
    counted_s: float = -np.inf
    retry_s: float = -np.inf
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True)
class State:
    """What a decision remembers for the next. The blocks of each target lie beside each other, in ascending order."""

    at_s: float
    lives: tuple[str, ...]  # of the observation's targets, in their order
    targets: dict[str, TargetMemory]
    target: NDArray[np.int32]
    address: NDArray[np.uint64]
    memory: Memory
    scarce: bool = False
    allowance_s: float = np.nan  # processor time that may be spent at once; NaN: the beginning
    collapse_s: float = np.nan  # what one takes, by experience
    demote_s: float = np.nan
    no_pages_until_s: float = -np.inf  # large pages are not to be had before that, by experience
    no_pages_failures: int = 0


_NEW: dict[str, Any] = {
    "estimate": np.nan,
    "error": np.nan,
    "counted_s": -np.inf,
    "fine_s": -np.inf,
    "counts": 0,
    "changed_s": -np.inf,
    "base": -1,
    "retry_s": -np.inf,
    "failures": 0,
    "recount_s": -np.inf,
}


_COUNTED = ("estimate", "error", "counted_s", "fine_s", "counts")  # what a count changes


def remembered(seen: Observation, state: State | None) -> Memory:
    """What is remembered of the blocks of this observation, in its order; new ones as new."""
    blocks, lives = seen.blocks, tuple(target.life for target in seen.targets)
    if state is None:
        return _fresh(blocks)
    if (
        lives == state.lives
        and np.array_equal(blocks.address, state.address)
        and np.array_equal(blocks.target, state.target)
    ):
        return state.memory
    before = {state.lives[target]: those for target, those in _stretches(state.target)}
    rows = list(zip(lives, slices(blocks.target, len(lives)), strict=True))
    pairs = [
        pair
        for life, those in rows
        for pair in _again(state.address, before.get(life, slice(0, 0)), blocks.address, those)
    ]
    news = {name: np.broadcast_to(value, len(blocks)) for name, value in _NEW.items()} | {
        "large": blocks.large
    }
    return Memory(**{name: _carried(getattr(state.memory, name), news[name], pairs) for name in _COLUMNS})


def _stretches(target: NDArray[np.int32]) -> list[tuple[int, slice]]:
    """Which rows are each target's, in any order of targets."""
    if not len(target):
        return []
    edges = [0, *(np.flatnonzero(target[1:] != target[:-1]) + 1).tolist(), len(target)]
    return [(int(target[begin]), slice(begin, end)) for begin, end in pairwise(edges)]


def _again(
    old: NDArray[np.uint64], old_rows: slice, new: NDArray[np.uint64], new_rows: slice
) -> list[tuple[Rows, Rows | None]]:
    """Which of these rows of `new` are which of `old`, both ascending: pairs that are all of `new`; None: not in `old`.

    Memory comes and goes in a few places, so most of the pairs are long and are found by comparing what lies beside
    each other. Where there are too many of them, each row is looked up.
    """
    at, end, row, last = old_rows.start, old_rows.stop, new_rows.start, new_rows.stop
    pairs: list[tuple[Rows, Rows | None]] = []
    most = _RUNS + (last - row) // _RUN
    while at < end and row < last:
        if len(pairs) > most:
            return _looked_up(old, old_rows, new, new_rows)
        if same := _alike(old[at:end], new[row:last]):
            pairs.append((slice(row, row + same), slice(at, at + same)))
            at, row = at + same, row + same
        elif old[at] < new[row]:
            at += int(np.searchsorted(old[at:end], new[row]))
        else:
            came = int(np.searchsorted(new[row:last], old[at]))
            pairs.append((slice(row, row + came), None))
            row += came
    if row < last:
        pairs.append((slice(row, last), None))
    return pairs


def _alike(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> int:
    """How many of the first are the same."""
    count, begin, size = min(len(old), len(new)), 0, _RUN
    while begin < count:
        end = min(begin + size, count)
        differ = old[begin:end] != new[begin:end]
        first = int(differ.argmax())
        if differ[first]:
            return begin + first
        begin, size = end, min(2 * size, PIECE)
    return count


def _looked_up(
    old: NDArray[np.uint64], old_rows: slice, new: NDArray[np.uint64], new_rows: slice
) -> list[tuple[Rows, Rows | None]]:
    """As `_again`, `old` not being empty."""
    wanted = new[new_rows]
    at = np.minimum(old_rows.start + np.searchsorted(old[old_rows], wanted), old_rows.stop - 1)
    known = old[at] == wanted
    there = np.flatnonzero(known)
    return [(new_rows.start + there, at[there]), (new_rows.start + np.flatnonzero(~known), None)]


def _carried(
    column: NDArray[Any], news: NDArray[Any], pairs: Sequence[tuple[Rows, Rows | None]]
) -> NDArray[Any]:
    """A column of these rows: of `column`, and of `news` where a row is new."""
    found = np.empty(len(news), column.dtype)
    for new, old in pairs:
        found[new] = news[new] if old is None else column[old]
    return found


def counted(memory: Memory, seen: Observation, policy: Policy) -> Memory:
    """The same with what this observation counted, and with what became large or small meanwhile."""
    count = len(seen.blocks)
    found = replace(
        memory,
        estimate=column(count, np.float32),
        error=column(count, np.float32),
        counted_s=column(count, np.float64),
        fine_s=column(count, np.float64),
        counts=np.empty(count, np.uint8),
    )
    for rows in pieces(count):
        _count(found.rows(rows), memory.rows(rows), seen.blocks.rows(rows), seen.now_s, policy)
    return _changed(found, seen.blocks, seen.now_s)


def _count(found: Memory, memory: Memory, blocks: Blocks, now_s: float, policy: Policy) -> None:
    """Writes these rows' counts into `found`: what is new, and what was in `memory` where nothing is."""
    touched, error, whole = blocks.touched, blocks.error, blocks.whole
    ended_s, passed_s = found.counted_s, column(len(whole), np.float64)
    ended_s[:] = blocks.age_s
    np.subtract(now_s, ended_s, out=ended_s)
    np.add(memory.counted_s, _SAME_S, out=passed_s)
    with np.errstate(invalid="ignore"):  # NaN is neither
        news = (ended_s > passed_s) & (whole | (error >= 0)) & (touched >= 0)
        used = whole & (touched > 0)
    if not np.count_nonzero(news):
        for name in _COUNTED:
            getattr(found, name)[:] = getattr(memory, name)
        return
    np.subtract(ended_s, memory.fine_s, out=passed_s)
    # That a block was used as a whole moves nothing, so what tells pages apart counts from the last time.
    idle = np.flatnonzero(whole ^ used)
    passed_s[idle] = ended_s[idle] - memory.counted_s[idle]
    passed_s /= policy.weight_period_s
    _move(found, memory, blocks, passed_s, used, policy)
    later(memory.fine_s, ended_s, news & ~whole, found.fine_s)
    np.add(memory.counts, (news & (memory.counts < 255)).view(np.uint8), out=found.counts)
    old = ~news
    for name in ("estimate", "error", "counted_s"):
        write(getattr(found, name), old, getattr(memory, name))


def _move(
    found: Memory, memory: Memory, blocks: Blocks, passed: NDArray[np.float64], used: Mask, policy: Policy
) -> None:
    """Writes estimates and their errors, as if all counts were new. `passed`: in `weight_period_s`; `used`: as a whole,
    which leaves an estimate as it was."""
    moved, doubt = found.estimate, found.error
    kept, new, step = (column(len(passed), np.float32) for _ in range(3))
    # Of one without an estimate that was used as a whole nothing finer is known: it has none after that, too.
    again = used | ~np.isnan(memory.estimate)
    rate = np.log1p(-np.float32(policy.weight)) if policy.weight < 1 else np.float32(-np.inf)
    with np.errstate(invalid="ignore"):
        kept[:] = passed
        kept *= rate
        np.exp(kept, out=kept)
        kept = masked(again, kept)
        np.maximum(kept, used.astype(np.float32), out=kept)
        np.subtract(np.float32(1), kept, out=new)
        np.multiply(kept, masked(again, memory.estimate), out=moved)
        np.multiply(new, blocks.touched, out=step)
        moved += step
        np.multiply(kept, masked(again, memory.error), out=doubt)
        np.multiply(new, masked(~blocks.whole, blocks.error), out=step)
        doubt *= doubt
        step *= step
        doubt += step
    np.sqrt(doubt, out=doubt)


def _changed(memory: Memory, blocks: Blocks, now_s: float) -> Memory:
    """With what became large or small since. A recount is no change."""
    rows = np.flatnonzero(blocks.large != memory.large)
    rows = rows[~(memory.recount_s[rows] > -np.inf)]
    changed_s, base = memory.changed_s, memory.base
    if len(rows):
        changed_s = changed_s.copy()
        changed_s[rows] = now_s
    filled = np.flatnonzero(~blocks.large & (base >= 0))
    if len(filled):  # what was filled stays until the kernel takes it; then nothing is known of it any more
        gone = (blocks.populated[filled] >= 0) & (blocks.populated[filled] <= base[filled])
        base = base.copy()
        base[filled[gone]] = -1
    return replace(memory, large=blocks.large, changed_s=changed_s, base=base)


def bloat_pages(memory: Memory, blocks: Blocks) -> NDArray[np.float32]:
    """Pages of each block that mapping it large has filled, and that are not accessed, as far as that is known."""
    found = np.zeros(len(blocks), np.float32)
    rows = np.flatnonzero(memory.base >= 0)
    present = np.where(blocks.populated[rows] >= 0, blocks.populated[rows], 0)
    present = np.where(blocks.large[rows], 512, present)
    used = np.maximum(memory.base[rows], np.nan_to_num(memory.estimate[rows], nan=0.0))
    found[rows] = np.maximum(present - used, 0)
    return found


def target_memory(seen: Observation, state: State | None, memory: Memory) -> dict[str, TargetMemory]:
    """Of the targets that are there; `memory` after `counted`."""
    before = {} if state is None else state.targets
    found = {}
    for target, rows in zip(seen.targets, rows_of(seen), strict=True):
        ended_s = float(memory.counted_s[rows].max(initial=-np.inf))
        old = before.get(target.life) or TargetMemory(since_s=seen.now_s)
        new = ended_s > old.counted_s + _SAME_S
        found[target.life] = TargetMemory(
            old.since_s,
            old.counts + new,
            max(ended_s, old.counted_s),
            old.retry_s,
            old.failures,
            old.reason,
        )
    return found


def rows_of(seen: Observation) -> list[slice]:
    """Which rows are each target's."""
    return slices(seen.blocks.target, len(seen.targets))


def slices(target: NDArray[np.int32], count: int) -> list[slice]:
    """Where each target's are in a column of targets in ascending order."""
    bounds = np.searchsorted(target, np.arange(count + 1, dtype=np.int32)).tolist()
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def keys(target: NDArray[np.int32], address: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What orders blocks: one number for (target, address)."""
    return target.astype(np.uint64) << np.uint64(_ADDRESS_BITS) | address // np.uint64(BLOCK_BYTES)


def _fresh(blocks: Blocks) -> Memory:
    count = len(blocks)
    kinds: dict[str, Any] = {
        "estimate": np.float32,
        "error": np.float32,
        "counted_s": np.float64,
        "fine_s": np.float64,
        "counts": np.uint8,
        "changed_s": np.float64,
        "base": np.int16,
        "retry_s": np.float64,
        "failures": np.uint8,
        "recount_s": np.float64,
    }
    columns: dict[str, Any] = {name: np.full(count, _NEW[name], kind) for name, kind in kinds.items()}
    return Memory(large=blocks.large.copy(), **columns)
