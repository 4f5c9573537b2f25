"""What comes out of `decide`: a Plan, which carries its reasons. Pure.

Used by `decide`, which makes it; by `explain`, the command line and the metrics, which show it; by `act`, which carries
`Plan.actions` out.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from sustain.schedulers.packages.model import Action, Finding, Observation, Verdict
from sustain.schedulers.packages.state import State


class PackagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is found of one package."""

    number: int
    kind: str  # its class
    since_s: float  # it has been of that class for so long
    load: float | None  # share of its capacity in use
    capacity: float
    residency: dict[str, float]  # by state, share of time; {}: not measurable
    independence: dict[str, str]  # by state
    independent: (
        float | None
    )  # share of time in states known to be independent; None: none is, or not measurable
    power_w: float | None
    parked: bool  # by us
    reasons: tuple[str, ...]  # why it is emptied, or is not


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Groups that are not moved, for one reason."""

    why: str
    count: int
    names: tuple[str, ...]  # the first few


class TrialPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The transaction that is under way."""

    package: int
    unit: str
    step: str
    for_s: float  # it has been under way
    left: tuple[str, ...]  # steps to come
    samples: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Of the host."""

    demand: float | None  # processors in use, on average
    needed: float | None  # that room is kept for
    capacity: float  # of packages that are awake
    room: float | None  # of it, that may be planned for, less what is needed
    power_w: float | None
    groups: int
    placed: int
    outside: float | None  # processors used by what belongs to no group
    saved_j: float
    saved_s: float


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do, why, and why not more."""

    at_s: float
    seen: Observation
    actions: tuple[Action, ...]
    packages: tuple[PackagePlan, ...]
    left: tuple[GroupPlan, ...]  # groups that are not moved
    trial: TrialPlan | None
    totals: Totals
    verdict: str  # in one sentence: what is done, or "not saving because …"
    proved: tuple[Finding, ...]  # found by this look, to be kept
    judged: tuple[Verdict, ...]  # trials that ended with this plan, to be kept
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(
            {
                "at_s": self.at_s,
                "verdict": self.verdict,
                "totals": self.totals,
                "packages": self.packages,
                "left": self.left,
                "trial": self.trial,
                "actions": self.actions,
                "findings": self.seen.findings,
                "verdicts": self.judged,
                "problems": self.problems,
            }
        )
        return found


@dataclass(frozen=True)
class Decision:
    """One decision."""

    plan: Plan
    state: State
