"""Which groups are placed, how their own metric is asked, and where what was found out is kept, as the operator says.

Used by the agent's configuration file, of which it is a part, and by the scheduler.
"""

import shlex
from typing import Literal

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.packages import policy
from sustain.schedulers.packages.find import Wanted, may_be_called
from sustain.schedulers.packages.find import check as check_groups
from sustain.schedulers.packages.policy import Policy


class PackagesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. Nobody is placed who is not named."""

    groups: tuple[Wanted, ...] = ()
    metrics: dict[str, str] = {}  # the workloads' own: a command that prints a number; more is better
    metric_timeout_s: float = 5.0  # that such a command may take
    libvirt: str | None = None  # URI of the libvirt that guests are placed by, with their pins; None: past it
    without_cpuset: Literal["refuse", "threads"] = "refuse"  # a cgroup: leave it, or bind its threads
    findings: str = ""  # file of what was found out about this host; "": packages-findings.json in state_dir
    policy: Policy = Policy()


def check(config: PackagesConfig) -> None:
    """Raises ConfigError for what cannot be meant."""
    check_groups(config.groups)
    policy.check(config.policy)
    for name in config.policy.groups:
        if not may_be_called(config.groups, name):
            raise ConfigError(
                f"packages: policy.groups.{name}: no group is called that",
                hint="a policy goes by the name of a group, or of one that it finds (vms.web1)",
            )
    for name, command in config.metrics.items():
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"packages: metrics.{name}: {error}", hint="quote as a shell does") from None
        if not words:
            raise ConfigError(f"packages: metrics.{name}: no command", hint="a program that prints a number")
    if config.metric_timeout_s <= 0:
        raise ConfigError("packages: metric_timeout: must be a time", hint="5s is usual")
