"""What is found of every block before anything is chosen: a code, and a score in pages for those that may be. Pure.

Used by `decide`. The worth of a block that may become large, in accessed pages:

    worth = estimate − fill · (pages that mapping it large would fill) − compaction (where no large page is free)

and more by `prefer` where the guest in it maps it large, too. What a block that is large is worth is its estimate, more
by the same, times 1 + `margin`: it has been filled, and one that takes its place has to be better by that much, as far
as a block can be: one of 512 pages takes the place of any that has less. So of two blocks with constant counts none
takes the other's place twice. Where it was filled and is not hot (`high`), `fill` is taken off all the same: who is
filled because there is memory to spare does not keep its place against who pays.

A block with accessed pages enough for the policy's `spare` but not for `high`, or whose worth is not above nothing, may
become large as far as there is memory to spare for filling (`spare`). Where a large page must be made by compaction it
may not.

A count is no rate: a page that was accessed once and one that was accessed a million times are alike. So the worth of a
block is not seconds saved, and what a large page costs is set against it in pages, by constants of the policy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.columns import (
    Mask,
    blank,
    column,
    masked,
    pieces,
    put,
    spread,
    write,
)
from sustain.schedulers.large_pages.model import PAGES, Blocks, Observation
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import Memory, TargetMemory

Rows = NDArray[np.intp]


@dataclass
class Judgement:
    """Of each block. `finding` and `score` are written to further while blocks are chosen; the rest is not."""

    finding: NDArray[np.uint8]
    score: NDArray[np.float32]
    fill: NDArray[np.float32]  # pages that mapping it large would fill
    may: Mask  # it is small, and may become large
    spare: Mask  # it only may, or is large and may stay, as far as there is memory to spare
    most_fill: float  # the highest of `fill`
    could_fill: float  # pages that mapping all blocks large would fill, of those that are small
    stays: Mask  # it is large, and stays unless others are better
    cold: Rows  # large, and to be demoted
    counted: (
        Rows  # mapped small for a recount, counted, and to be large again unless others that wait are better
    )
    counted_score: NDArray[np.float32]  # of these
    pending: Rows  # mapped small for a recount, and not counted yet
    begun: Rows  # that are small for a recount, or were until now
    failed: int  # mapped small for a recount, counted, and cold
    countable: Mask  # it is large, and may be demoted for a recount
    known: Mask  # of its target something may be done, and its estimate is good

    @property
    def recounting(self) -> int:
        """Blocks that have a place, and are small for a recount."""
        return len(self.counted) + len(self.pending)


@dataclass(frozen=True)
class _Terms:
    """What is the same for all blocks."""

    policy: Policy
    now_s: float
    scarce: bool
    none_free: bool  # no large page is
    only: Mask  # of each target: is only counted
    waits: Mask  # refused lately
    windows_s: NDArray[np.float64]

    @property
    def may_spare(self) -> bool:
        """Whether there may be memory to spare."""
        return not (self.scarce or self.none_free or self.policy.spare_share <= 0)


def judge(
    seen: Observation,
    memory: Memory,
    targets: dict[str, TargetMemory],
    policy: Policy,
    now_s: float,
    scarce: bool,
) -> Judgement:
    """`memory` and `targets` are those of now."""
    only, waits = _of_targets(seen, targets, policy, now_s)
    windows_s = np.array([target.period_s or target.window_s or 0.0 for target in seen.targets], np.float64)
    terms = _Terms(policy, now_s, scarce, seen.host.free_large_pages == 0, only, waits, windows_s)
    it = _begun(len(seen.blocks))
    few = [_judge(it, rows, seen, memory, terms) for rows in pieces(len(seen.blocks))]
    if few:
        it.cold, it.begun, recounting, worth = (np.concatenate(each) for each in zip(*few, strict=True))
        _recounts(it, recounting, worth, seen.blocks, memory, terms)
    return it


def _begun(count: int) -> Judgement:
    """Of so many blocks; the columns are filled in later."""
    none = np.zeros(0, np.intp)
    return Judgement(
        finding=np.empty(count, np.uint8),
        score=column(count, np.float32),
        fill=column(count, np.float32),
        may=np.empty(count, np.bool_),
        spare=np.empty(count, np.bool_),
        most_fill=0.0,
        could_fill=0.0,
        stays=np.empty(count, np.bool_),
        cold=none,
        counted=none,
        counted_score=np.zeros(0, np.float32),
        pending=none,
        begun=none,
        failed=0,
        countable=np.empty(count, np.bool_),
        known=np.empty(count, np.bool_),
    )


def _judge(
    it: Judgement, rows: slice, seen: Observation, remembered: Memory, terms: _Terms
) -> tuple[Rows, Rows, Rows, NDArray[np.float32]]:
    """Writes those rows of the columns. (What is cold; of what a recount was begun; of these what is small, and may be
    large again, and what that is worth.)"""
    policy, blocks, memory = terms.policy, seen.blocks.rows(rows), remembered.rows(rows)
    finding, fill, large, estimate = it.finding[rows], it.fill[rows], blocks.large, memory.estimate
    np.multiply(large.view(np.uint8), np.uint8(Finding.KEPT - Finding.LOW), out=finding)
    finding += np.uint8(Finding.LOW)
    surely, doubt = column(len(large), np.float32), column(len(large), np.float32)
    np.multiply(memory.error, np.float32(policy.certainty), out=doubt)
    with np.errstate(invalid="ignore"):
        np.subtract(estimate, doubt, out=surely)
        hot, enough = surely >= policy.high, surely >= policy.spare
        doubt += estimate
        chilly = doubt < policy.low
    settled = memory.changed_s <= terms.now_s - policy.residence_s
    told, warm = blocks.populated >= 0, ~hot & (memory.base >= 0)
    fill[:] = np.maximum(PAGES - blocks.populated, 0)
    if np.count_nonzero(told) < len(told):  # at least what is used is present
        write(fill, ~told, np.maximum(PAGES - estimate, np.float32(0)))

    most_fill = float(np.fmax.reduce(fill, initial=0.0))  # NaN is none
    it.most_fill = max(it.most_fill, most_fill)

    begun = memory.recount_s > -np.inf
    recounting = begun & ~large
    small = ~(large | begun)
    worth = _worth(blocks, memory, fill, small, warm, terms)
    wanted = small & hot
    if terms.scarce:
        put(finding, Finding.SCARCE, wanted)
    with np.errstate(invalid="ignore"):
        poor = wanted & ~(worth > 0)
    spare = small & enough & (poor | ~hot) if terms.may_spare else np.zeros_like(poor)
    poor &= ~spare
    wanted |= spare
    put(finding, Finding.NOT_WORTH, poor)
    put(finding, Finding.SETTLING, (wanted | (large & chilly)) & ~settled)
    put(finding, Finding.NOT_ELIGIBLE, ~(large | blocks.eligible))
    late = memory.retry_s > terms.now_s
    put(finding, Finding.WAITS, late & (wanted | large | recounting))
    only, waits = spread(terms.only, blocks.target), spread(terms.waits, blocks.target)
    free = ~(late | only | waits)
    ready = free & _known(finding, memory, only, waits, terms)

    may = wanted & ~poor & settled & blocks.eligible & ready & (not terms.scarce)
    put(finding, Finding.BUDGET, may)  # unless they are chosen
    held = large & settled & ready
    stays = held & ~chilly
    blank(~(may | stays), worth, it.score[rows])
    it.may[rows], it.stays[rows], it.known[rows] = may, stays, ready
    it.spare[rows], it.countable[rows] = (may & spare) | (large & warm), large & settled & free
    if most_fill:
        it.could_fill += float(masked(small & blocks.eligible & told & ~only, fill).sum())
    recounts = np.flatnonzero(recounting & free)
    cold, asked = np.flatnonzero(held & chilly), np.flatnonzero(begun)
    return rows.start + cold, rows.start + asked, rows.start + recounts, worth[recounts]


def _worth(
    blocks: Blocks, memory: Memory, fill: NDArray[np.float32], small: Mask, warm: Mask, terms: _Terms
) -> NDArray[np.float32]:
    """What it is worth to make each `small` block large, and what those that have a place are worth. `warm`: it was
    filled, and is not hot, so what was filled counts as if it still were to be filled."""
    policy, estimate = terms.policy, memory.estimate
    cost, worth, better = (column(len(fill), np.float32) for _ in range(3))
    cost[:] = fill
    if np.count_nonzero(warm):
        write(cost, warm, (PAGES - memory.base).astype(np.float32))
    cost *= np.float32(policy.fill)
    np.multiply(estimate, np.float32(1 + policy.margin), out=worth)
    np.minimum(worth, np.float32(PAGES - 1), out=worth)
    np.add(estimate, np.float32(0.5), out=better)
    np.maximum(worth, better, out=worth)
    in_guest = blocks.guest_large == 1
    more = in_guest * np.float32(policy.prefer) if np.count_nonzero(in_guest) else None
    if more is not None:
        worth *= more + np.float32(1)
    if np.count_nonzero(warm):
        write(worth, small, estimate)
        worth -= masked(small | warm, cost)
    else:
        np.subtract(estimate, cost, out=better)
        write(worth, small, better)
    if terms.none_free:
        worth -= small * np.float32(policy.compaction)
    if more is not None:
        worth += masked(small, np.abs(worth) * more)
    return worth


def _of_targets(
    seen: Observation, targets: dict[str, TargetMemory], policy: Policy, now_s: float
) -> tuple[Mask, Mask]:
    """(is only counted, refused lately), of each target."""
    mine = [targets[each.life] for each in seen.targets]
    only = [
        policy.of(each).counted_only
        or one.counts < policy.least_counts
        or now_s - one.since_s < policy.counting_s
        for each, one in zip(seen.targets, mine, strict=True)
    ]
    return np.array(only, np.bool_), np.array([one.retry_s > now_s for one in mine], np.bool_)


def _known(finding: NDArray[np.uint8], memory: Memory, only: Mask, waits: Mask, terms: _Terms) -> Mask:
    """Whether its estimate may be acted upon; writes why not to `finding`."""
    unknown = np.isnan(memory.estimate)
    stale = memory.counted_s < terms.now_s - terms.policy.fresh_s
    few = memory.counts < terms.policy.least_counts
    put(finding, Finding.FEW_COUNTS, few)
    put(finding, Finding.STALE, stale)
    put(finding, Finding.UNKNOWN, unknown)
    put(finding, Finding.TARGET_WAITS, waits)
    put(finding, Finding.COUNTED_ONLY, only)
    found: Mask = ~(unknown | stale | few)
    return found


def _recounts(
    it: Judgement, rows: Rows, worth: NDArray[np.float32], blocks: Blocks, memory: Memory, terms: _Terms
) -> None:
    """Of blocks that are small for a recount: who was counted since they were demoted for it, and is good enough to be
    large; who was not counted yet; how many were counted and are not good enough. A count belongs to it when all of its
    period was after the demotion."""
    policy = terms.policy
    begun_s = memory.fine_s[rows] - terms.windows_s[blocks.target[rows]]
    counted = begun_s >= memory.recount_s[rows]
    overdue = ~counted & (memory.recount_s[rows] < terms.now_s - policy.fresh_s)
    good = memory.estimate[rows] + policy.certainty * memory.error[rows] >= policy.low
    it.pending = rows[~counted & ~overdue]
    it.finding[it.pending] = Finding.RECOUNT
    it.failed = int(np.count_nonzero(counted & ~good))
    if not terms.scarce:
        it.counted, it.counted_score = rows[counted & good], worth[counted & good]
