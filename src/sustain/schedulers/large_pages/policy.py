"""What the operator wants of large pages. Pure.

Used by `decide`; a part of the agent's configuration file. A field's unit is last in its name and is left out in the
file: `counting_s` is `counting = "1min"` there.
"""

import math
from typing import Literal

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.large_pages.model import PAGES, Target

Recount = Literal["idleness", "sample"]


class TargetPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for one target; where a name finds several processes, for each of them."""

    shares: float = 1000.0  # of what is divided by shares
    most_bytes: float | None = None  # mapped large, whatever the others need
    counted_only: bool = False  # phase one for ever: counted, and nothing of it mapped large or small


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for the host."""

    default: TargetPolicy = TargetPolicy()
    targets: dict[str, TargetPolicy] = {}

    # phase one, and how counts become an estimate
    counting_s: float = 60.0  # a new target is only counted for that long
    least_counts: int = 3  # and a block is not acted upon before it was counted that often
    weight: float = 0.4  # of a new count in the estimate, when it comes `weight_period_s` after the last one
    weight_period_s: float = 30.0
    fresh_s: float = 120.0  # what was counted longer ago is not acted upon
    recount: Recount = "sample"  # how blocks that are mapped large are counted
    recount_share: float = (
        0.01  # of them, demoted at a time for a recount, up to ten times that while they fail it
    )
    recount_rest_s: float = (
        300.0  # a block whose pages were told apart is not demoted for that again for that long
    )

    # when to map large, and when small again: accessed pages of 512
    high: float = 64.0
    spare: float = 32.0  # from so many on, too, as far as `spare_share` goes, while memory is not scarce
    low: float = 24.0
    certainty: float = 1.0  # standard errors by which an estimate must be beyond either
    margin: float = 0.25  # by which a block must be better than one whose place it takes
    residence_s: float = 120.0  # a block stays as it is for that long

    # what a large page may cost
    fill: float = 0.25  # pages accessed that are worth filling one that nobody has touched
    spare_share: float = 0.22  # of what mapping everything large would fill, that `spare` may bring bloat to
    compaction: float = 16.0  # the same for a large page that must be made by compaction
    prefer: float = 0.5  # how much more a block is worth that its guest maps large, too

    # how many
    budget_bytes: float | None = None  # all large pages of all targets together; None: no limit
    budget_share: float | None = None  # the same as a share of all eligible blocks
    bloat_bytes: float | None = (
        None  # filled by mapping large, and not accessed; None: no limit but the host's memory
    )
    by_shares: float = (
        0.5  # of the budget, that is divided by shares; the rest goes to the best blocks of all
    )
    processor_share: float = 0.10  # of one processor, that mapping large and small may take
    most_actions: int = 256  # in one plan

    # when memory is scarce
    scarce_bytes: float | None = (
        None  # available; None: one and a half of what the guest memory scheduler aims at
    )
    # What the guest memory scheduler aims at; None: by the host's size, or as its section says.
    aim_bytes: float | None = None
    pressure_limit: float = 0.10  # share of time that tasks wait for memory

    def of(self, target: Target) -> TargetPolicy:
        """By its own name, else by that of the configured target that found it."""
        return self.targets.get(target.name) or self.targets.get(target.wanted, self.default)


def check(policy: Policy) -> None:
    """Raises ConfigError for a policy that cannot be meant."""
    for what, fine, hint in (
        ("weight", 0 < policy.weight <= 1, "a share; 0.4 is usual"),
        ("weight_period_s", policy.weight_period_s > 0, "a time; 30s is usual"),
        ("counting_s", policy.counting_s >= 0, "a time; 1min is usual"),
        ("least_counts", 1 <= policy.least_counts <= 200, "from 1 to 200; 3 is usual"),
        ("fresh_s", policy.fresh_s > 0, "a time; several counting periods are usual"),
        ("recount_share", 0 < policy.recount_share <= 0.5, "a share; 0.01 is usual"),
        ("recount_rest_s", policy.recount_rest_s >= 0, "a time; 5min is usual"),
        ("high", 0 < policy.high <= PAGES, f"pages, up to {PAGES}; 64 is usual"),
        ("spare", 0 < policy.spare <= PAGES, f"pages, up to {PAGES}; 32 is usual"),
        ("low", 0 <= policy.low < policy.high, "less than `high`; 24 is usual"),
        (
            "spare",
            policy.low < policy.spare or not policy.spare_share,
            "more than `low`; 32 is usual, and a `spare_share` of 0 for none",
        ),
        ("certainty", policy.certainty >= 0, "a number of standard errors; 1 is usual"),
        ("margin", policy.margin >= 0, "a share; 0.25 is usual"),
        ("residence_s", policy.residence_s >= 0, "a time; 2min is usual"),
        ("fill", policy.fill >= 0, "pages for a page; 0.25 is usual"),
        ("spare_share", 0 <= policy.spare_share <= 1, "a share; 0.22 is usual"),
        ("compaction", policy.compaction >= 0, "pages; 16 is usual"),
        ("prefer", policy.prefer >= 0, "a share; 0.5 is usual"),
        ("budget_bytes", (policy.budget_bytes or 0) >= 0, "a size"),
        ("budget_share", 0 <= (policy.budget_share or 0) <= 1, "a share of all blocks"),
        ("bloat_bytes", (policy.bloat_bytes or 0) >= 0, "a size"),
        ("by_shares", 0 <= policy.by_shares <= 1, "a share of the budget; 0.5 is usual"),
        ("processor_share", 0 < policy.processor_share <= 1, "a share of one processor; 0.10 is usual"),
        ("most_actions", policy.most_actions >= 1, "a number; 256 is usual"),
        ("scarce_bytes", (policy.scarce_bytes or 0) >= 0, "a size"),
        ("aim_bytes", (policy.aim_bytes or 0) >= 0, "a size"),
        ("pressure_limit", 0 < policy.pressure_limit <= 1, "a share of time; 0.10 is usual"),
    ):
        if not fine:
            raise ConfigError(f"policy: {what} cannot be {getattr(policy, what)}", hint=hint)
    for name, one in {"": policy.default, **policy.targets}.items():
        if not 0 < one.shares < math.inf or (one.most_bytes or 0) < 0:
            raise ConfigError(
                f"policy of target {name!r}: shares must be positive, sizes not negative", hint=""
            )
