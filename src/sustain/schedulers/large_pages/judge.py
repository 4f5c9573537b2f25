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

from sustain.schedulers.large_pages.columns import Mask, put, select
from sustain.schedulers.large_pages.model import PAGES, Blocks, Observation
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import PIECE, Memory, TargetMemory

Rows = NDArray[np.intp]


@dataclass
class Judgement:
    """Of each block. `finding` and `score` are written to further while blocks are chosen; the rest is not."""

    finding: NDArray[np.uint8]
    score: NDArray[np.float32]
    fill: NDArray[np.float32]  # pages that mapping it large would fill
    may: Mask  # it is small, and may become large
    spare: Mask  # it only may, or is large and may stay, as far as there is memory to spare
    could_fill: float  # pages that mapping all blocks large would fill, of those that are small
    stays: Mask  # it is large, and stays unless others are better
    cold: Rows  # large, and to be demoted
    counted: (
        Rows  # mapped small for a recount, counted, and to be large again unless others that wait are better
    )
    counted_score: NDArray[np.float32]  # of these
    pending: Rows  # mapped small for a recount, and not counted yet
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
    none_free = seen.host.free_large_pages == 0
    terms = _Terms(policy, now_s, scarce, none_free, only, waits, windows_s)
    count = len(seen.blocks)
    starts = range(0, max(1, count), PIECE)
    parts = []
    for start in starts:
        rows = slice(start, start + PIECE)
        parts.append(_judge(seen.blocks.rows(rows), memory.rows(rows), terms))

    def of_all(name: str) -> Rows:
        return np.concatenate([getattr(each, name) + at for each, at in zip(parts, starts, strict=True)])

    return Judgement(
        finding=np.concatenate([each.finding for each in parts]),
        score=np.concatenate([each.score for each in parts]),
        fill=np.concatenate([each.fill for each in parts]),
        may=np.concatenate([each.may for each in parts]),
        spare=np.concatenate([each.spare for each in parts]),
        could_fill=sum(each.could_fill for each in parts),
        stays=np.concatenate([each.stays for each in parts]),
        cold=of_all("cold"),
        counted=of_all("counted"),
        counted_score=np.concatenate([each.counted_score for each in parts]),
        pending=of_all("pending"),
        failed=sum(each.failed for each in parts),
        countable=np.concatenate([each.countable for each in parts]),
        known=np.concatenate([each.known for each in parts]),
    )


def _judge(blocks: Blocks, memory: Memory, terms: _Terms) -> Judgement:
    """A piece of them."""
    policy, now_s, large = terms.policy, terms.now_s, blocks.large
    finding = np.full(len(large), Finding.LOW, np.uint8)
    put(finding, Finding.KEPT, large)
    estimate, error = memory.estimate, memory.error * np.float32(policy.certainty)
    with np.errstate(invalid="ignore"):
        surely = estimate - error
        hot = surely >= policy.high
        chilly = estimate + error < policy.low
    settled = memory.changed_s <= now_s - policy.residence_s
    present = select(blocks.populated >= 0, blocks.populated.astype(np.float32), estimate)
    fill = np.maximum(PAGES - present, np.float32(0))
    # Of what is not hot, what was filled before counts as if it still were to be filled.
    taken = select(memory.base >= 0, PAGES - memory.base.astype(np.float32), fill)
    worth = estimate - np.float32(policy.fill) * select(hot, fill, taken)
    if terms.none_free:
        worth -= np.float32(policy.compaction)
    more = (blocks.guest_large == 1) * np.float32(policy.prefer)
    worth = worth + np.abs(worth) * more if np.count_nonzero(more) else worth

    recounting = ~large & (memory.recount_s > -np.inf)
    small = ~large & ~recounting
    wanted = small & hot
    if terms.scarce:
        put(finding, Finding.SCARCE, wanted)
    with np.errstate(invalid="ignore"):
        poor = wanted & ~(worth > 0)
        spare = np.zeros_like(poor)
        if not (terms.scarce or terms.none_free or policy.spare_share <= 0):
            spare = small & (surely >= policy.spare) & (poor | ~hot)
    poor &= ~spare
    wanted |= spare
    put(finding, Finding.NOT_WORTH, poor)
    put(finding, Finding.SETTLING, (wanted | (large & chilly)) & ~settled)
    put(finding, Finding.NOT_ELIGIBLE, ~large & ~blocks.eligible)
    late = memory.retry_s > now_s
    put(finding, Finding.WAITS, late & (wanted | large | recounting))
    known = _known(finding, blocks, memory, terms)
    free = ~late & ~(terms.only | terms.waits)[blocks.target]
    ready = known & free

    may = wanted & ~poor & settled & blocks.eligible & ready & (not terms.scarce)
    put(finding, Finding.BUDGET, may)  # unless they are chosen
    held = large & ready & settled
    stays = held & ~chilly
    reached = np.fmin(estimate * np.float32(1 + policy.margin), np.float32(PAGES - 1))
    kept = np.maximum(reached, estimate + np.float32(0.5)) * (more + np.float32(1))
    kept -= select(~hot & (memory.base >= 0), np.float32(policy.fill) * taken, np.zeros_like(taken))
    score = select(may, worth, select(stays, kept, np.full(len(kept), np.nan, np.float32)))
    counted, pending, failed = _recounts(blocks, memory, recounting & free, terms)
    counted = counted[:0] if terms.scarce else counted
    finding[pending] = Finding.RECOUNT
    return Judgement(
        finding=finding,
        score=score,
        fill=fill,
        may=may,
        spare=(may & spare) | (large & ~hot & (memory.base >= 0)),
        could_fill=_sum(fill, small & blocks.eligible & (blocks.populated >= 0) & ~terms.only[blocks.target]),
        stays=stays,
        cold=np.flatnonzero(held & chilly),
        counted=counted,
        counted_score=kept[counted],
        pending=pending,
        failed=failed,
        countable=large & settled & free,
        known=ready,
    )


def _sum(column: NDArray[np.float32], where: Mask) -> float:
    return float(select(where, column, np.zeros_like(column)).sum())


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


def _known(finding: NDArray[np.uint8], blocks: Blocks, memory: Memory, terms: _Terms) -> Mask:
    """Whether its estimate may be acted upon; writes why not to `finding`."""
    unknown = np.isnan(memory.estimate)
    stale = memory.counted_s < terms.now_s - terms.policy.fresh_s
    few = memory.counts < terms.policy.least_counts
    put(finding, Finding.FEW_COUNTS, few)
    put(finding, Finding.STALE, stale)
    put(finding, Finding.UNKNOWN, unknown)
    for mask, kind in ((terms.waits, Finding.TARGET_WAITS), (terms.only, Finding.COUNTED_ONLY)):
        if mask.any():
            put(finding, kind, mask[blocks.target])
    found: Mask = ~(unknown | stale | few)
    return found


def _recounts(blocks: Blocks, memory: Memory, recounting: Mask, terms: _Terms) -> tuple[Rows, Rows, int]:
    """(counted since they were demoted for it, and good enough to be large; not counted yet; how many were counted and
    are not good enough). A count belongs to it when all of its period was after the demotion."""
    policy = terms.policy
    rows = np.flatnonzero(recounting)
    begun_s = memory.fine_s[rows] - terms.windows_s[blocks.target[rows]]
    counted = begun_s >= memory.recount_s[rows]
    overdue = ~counted & (memory.recount_s[rows] < terms.now_s - policy.fresh_s)
    good = memory.estimate[rows] + policy.certainty * memory.error[rows] >= policy.low
    return rows[counted & good], rows[~counted & ~overdue], int(np.count_nonzero(counted & ~good))
