"""What comes out of `decide`: a Plan, and the answer to what was found of each block. Pure.

Used by `decide`, which makes it; by `explain`, `heat`, the command line and the metrics, which show it; by `act`, which
carries `Plan.actions` out. What is found of each block is a code in a column; its words are made when somebody asks.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.model import Action, Collapse, Demote, Observation
from sustain.schedulers.large_pages.state import Memory, State


class Finding(IntEnum):
    """What was found of a block; the first that applies."""

    COUNTED_ONLY = 0  # phase one: its target is only counted yet
    UNKNOWN = 1  # never counted
    STALE = 2  # counted too long ago
    FEW_COUNTS = 3
    NOT_ELIGIBLE = 4
    TARGET_WAITS = 5  # its target refused
    WAITS = 6  # an action on it failed lately
    RECOUNT = 7  # mapped small for a recount, and not counted again yet
    LOW = 8  # small, and rightly so
    SETTLING = 9  # it changed lately
    NOT_WORTH = 10  # what has to be filled or compacted for it is more than it brings
    SCARCE = 11  # memory is scarce: nothing is mapped large
    BLOAT = 12  # the bloat budget has no room for it
    NO_PAGES = 13  # large pages were not to be had lately
    BUDGET = 14  # others are better, or their target's own
    RATE = 15  # to be mapped large, or small, but not in this plan: processor time, or the most actions of a plan
    COLLAPSE = 16
    COUNTED = 17  # mapped large again after a recount
    KEPT = 18  # large, and rightly so
    COLD = 19  # demoted: too few of its pages are accessed
    REPLACED = 20  # demoted: others are better by more than the margin, or the budget is smaller than it was
    PRESSURE = 21  # demoted: memory is scarce
    RECOUNTED = 22  # demoted for a while, to see which of its pages are accessed


class TargetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is found of one target. `coverage`: of the accessed pages that are estimated, those in large pages."""

    name: str
    pid: int
    life: str
    counting: str
    phase: int  # 1: only counted; 2: mapped by priority
    counts: int  # counting periods seen
    blocks: int
    eligible: int
    large: int
    wanted: int  # that are large and stay, or would be if there were no budget
    own: int | None  # of the budget, by shares; None: there is no budget
    accessed_pages: float | None  # by estimate, in a counting period
    coverage: float | None
    bloat_bytes: float
    problems: tuple[str, ...] = ()


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What is found of all."""

    blocks: int
    large: int
    budget: int | None
    accessed_pages: float | None
    coverage: float | None
    bloat_bytes: float
    scarce: bool
    allowance_s: float  # processor time that may be spent now
    collapse_s: float  # expected of one
    demote_s: float


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do, why, and what was found of every block and target."""

    at_s: float
    seen: Observation
    memory: Memory
    actions: tuple[Action, ...]
    finding: NDArray[np.uint8]  # of each block
    score: NDArray[np.float32]  # its worth in pages, by which blocks are chosen; NaN: it is no candidate
    targets: tuple[TargetPlan, ...]
    totals: Totals
    problems: tuple[str, ...]

    def count(self, *kinds: Finding) -> int:
        """Blocks of which that was found."""
        return int(np.isin(self.finding, [int(kind) for kind in kinds]).sum())

    @property
    def collapses(self) -> tuple[Collapse, ...]:
        return tuple(each for each in self.actions if isinstance(each, Collapse))

    @property
    def demotions(self) -> tuple[Demote, ...]:
        return tuple(each for each in self.actions if isinstance(each, Demote))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all but the blocks."""
        found: dict[str, Any] = msgspec.to_builtins(
            {
                "at_s": self.at_s,
                "totals": self.totals,
                "targets": self.targets,
                "findings": {
                    kind.name.lower(): int(number)
                    for kind, number in zip(
                        Finding, np.bincount(self.finding, minlength=len(Finding)), strict=True
                    )
                },
                "actions": self.actions,
                "problems": self.problems,
            }
        )
        return found


@dataclass(frozen=True)
class Decision:
    """One decision."""

    plan: Plan
    state: State
