"""Findings in words. Pure.

Used by `decide` for the reasons of actions, and by `explain`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sustain.schedulers.large_pages.model import PAGES, Blocks
from sustain.schedulers.large_pages.plan import Finding
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import Memory
from sustain.units import format_duration


@dataclass(frozen=True)
class _Block:
    """One block as it is told of."""

    blocks: Blocks
    memory: Memory
    row: int
    score: float
    policy: Policy
    now_s: float

    @property
    def count(self) -> str:
        return pages(self.memory, self.row)

    @property
    def held(self) -> str:
        present = int(self.blocks.populated[self.row])
        return "an unknown number present" if present < 0 else f"{present} present"

    @property
    def wait(self) -> str:
        return format_duration(max(0.0, float(self.memory.retry_s[self.row]) - self.now_s))

    @property
    def least(self) -> float:
        """Used pages that it lacks for being large."""
        policy, memory = self.policy, self.memory
        surely = float(memory.estimate[self.row]) - policy.certainty * float(memory.error[self.row])
        return policy.spare if policy.spare_share > 0 and surely < policy.spare else policy.high

    def ago(self, name: str) -> str:
        at_s = float(getattr(self.memory, name)[self.row])
        return f"{format_duration(self.now_s - at_s)} ago" if np.isfinite(at_s) else "never"


_WORDS: dict[Finding, Callable[[_Block], str]] = {
    Finding.COUNTED_ONLY: lambda _: "its target is only counted yet (phase one)",
    Finding.UNKNOWN: lambda _: "it has never been counted, or only as a whole",
    Finding.STALE: lambda it: (
        f"counted {it.ago('counted_s')}; {format_duration(it.policy.fresh_s)} is too long"
    ),
    Finding.FEW_COUNTS: lambda it: (
        f"counted {it.memory.counts[it.row]} times, not yet {it.policy.least_counts}"
    ),
    Finding.NOT_ELIGIBLE: lambda _: (
        "its mapping does not cover all of it, or is of a kind that cannot be large"
    ),
    Finding.TARGET_WAITS: lambda _: "its target refused lately",
    Finding.WAITS: lambda it: f"an action on it failed; it is tried again in {it.wait}",
    Finding.RECOUNT: lambda _: "mapped small for a recount, which is not done yet",
    Finding.LOW: lambda it: f"{it.count}, less than {it.least:g}",
    Finding.SETTLING: lambda it: (
        f"{it.count}; it changed {it.ago('changed_s')}, and stays for {format_duration(it.policy.residence_s)}"
    ),
    Finding.NOT_WORTH: lambda it: f"{it.count}, {it.held}: what would be filled is more than it brings",
    Finding.SCARCE: lambda it: f"{it.count}, but memory is scarce: nothing is mapped large",
    Finding.BLOAT: lambda it: f"{it.count}, {it.held}: there is no room to fill the rest",
    Finding.NO_PAGES: lambda it: f"{it.count}, but large pages were not to be had lately",
    Finding.BUDGET: lambda it: (
        f"{it.count}, worth {it.score:.0f}: others are worth more, or their targets' own"
    ),
    Finding.RATE: lambda it: (
        f"{it.count}, to be mapped small: its turn comes later, by processor time or the most actions of a plan"
        if it.blocks.large[it.row]
        else f"{it.count}, to be mapped large: its turn comes later, by processor time, free places or the most "
        "actions of a plan"
    ),
    Finding.COLLAPSE: lambda it: (
        f"{it.count}, {it.held}: worth {it.score:.0f}"
        if it.score > 0
        else f"{it.count}, {it.held}: there is memory to spare for filling the rest"
    ),
    Finding.COUNTED: lambda it: f"{it.count} by its recount, not less than {it.policy.low:g}",
    Finding.KEPT: lambda it: f"{it.count}, not less than {it.policy.low:g}",
    Finding.COLD: lambda it: f"{it.count}, less than {it.policy.low:g}",
    Finding.REPLACED: lambda it: (
        f"{it.count}: others are worth more by {it.policy.margin:.0%} and more, or the budget is less"
    ),
    Finding.PRESSURE: lambda it: (
        f"{it.count}; memory is scarce, and it is not hot or holds pages that nobody uses"
    ),
    Finding.RECOUNTED: lambda it: f"to see which of its pages are accessed, last seen {it.ago('fine_s')}",
}


def why(
    kind: Finding, row: int, blocks: Blocks, memory: Memory, score: float, policy: Policy, now_s: float
) -> str:
    """One finding of one block in a line."""
    return _WORDS[kind](_Block(blocks, memory, row, score, policy, now_s))


def pages(memory: Memory, row: int) -> str:
    """The estimate of a block."""
    estimate, error = float(memory.estimate[row]), float(memory.error[row])
    if np.isnan(estimate):
        return "an unknown number of its pages is accessed"
    doubt = f" (standard error {error:.0f})" if error >= 0.5 else ""
    return f"{estimate:.0f} of {PAGES} pages accessed{doubt}"
