"""Which processes are looked at, and how they are counted, as the operator says.

Used by the agent's configuration file, of which it is a part, and by `scheduler`.
"""

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.large_pages import policy
from sustain.schedulers.large_pages.counting import PERIODS_S, Ways
from sustain.schedulers.large_pages.find import Wanted, may_be_called
from sustain.schedulers.large_pages.find import check as check_targets
from sustain.schedulers.large_pages.policy import Policy


class LargePagesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. Nobody is looked at who is not named."""

    targets: tuple[Wanted, ...] = ()
    counting: Ways = "auto"  # page-idle where the kernel has it, else DAMON
    count_period_s: float | None = (
        None  # of one count; what is used within it counts once; None: the way's (PERIODS_S)
    )
    keep: bool = False  # what was mapped large stays so when the scheduler ends
    policy: Policy = Policy()


def check(config: LargePagesConfig) -> None:
    """Raises ConfigError for what cannot be meant."""
    check_targets(config.targets)
    policy.check(config.policy)
    for name in config.policy.targets:
        if not may_be_called(config.targets, name):
            raise ConfigError(
                f"large_pages: policy.targets.{name}: no target is called that",
                hint="a policy goes by the name of a target, or of one process that it finds (db.4711)",
            )
    period_s = config.count_period_s or max(PERIODS_S.values())
    if period_s < 1:
        raise ConfigError("large_pages: count_period: less than a second", hint="10s is a good period")
    if config.policy.fresh_s < 2 * period_s:
        raise ConfigError(
            "large_pages: policy.fresh is less than two counting periods, so nothing would ever be done",
            hint="several counting periods are usual",
        )
