"""What the operator wants of power-aware placement. Pure.

Used by `decide`; a part of the agent's configuration file. A field's unit is last in its name and is left out in the
file: `pack_after_s` is `pack_after = "10min"` there, `memory_bytes_per_s` is `memory_per_s = "256MiB"`.
"""

import math
from typing import Literal

import msgspec

from sustain.errors import ConfigError

Trial = Literal["never", "independent", "unknown"]
Smt = Literal["avoid", "use"]


class GroupPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for one group; where a name finds several, for each of them."""

    movable: bool = True
    priority: int = 0  # higher ones get room first when groups are spread
    apart: str = ""  # groups of the same word are not on one package
    memory: bool = True  # its memory follows it
    slack_s: float | None = None  # where idle states are coordinated: timers may be late by that; None: not


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator wants for the host."""

    default: GroupPolicy = GroupPolicy()
    groups: dict[str, GroupPolicy] = {}

    # classes of packages: load is the share of processor time in use
    high: float = 0.80  # high load from here
    high_leave: float = 0.70  # and until here
    medium: float = 0.40
    medium_leave: float = 0.30
    efficient: float = 0.60  # of its idle time in independent states: power-efficient from here
    efficient_leave: float = 0.45
    parked: float = 0.80  # of all time in them, and no more than `parked_load` in use
    parked_load: float = 0.02
    average_s: float = 60.0  # over which load and residency are averaged, for classes

    # when to act
    pack_after_s: float = 600.0  # as long must a package be worth emptying before it is
    spread_after_s: float = 20.0  # as long must there be too little room before packages are woken
    rest_s: float = 1800.0  # a package that was woken, or whose trial failed, is let alone for that long
    headroom: float = 0.75  # of a package's capacity, that may be planned for
    smt: Smt = "avoid"  # capacity is one thread for each core; use: the others count as `smt_gain`
    smt_gain: float = 0.25  # of a core, that a second thread on it brings
    peak_s: float = 14400.0  # half-life of the highest demand that room is kept for
    pressure_limit: float = (
        0.20  # share of time that tasks wait for a processor, from which groups are spread
    )
    most_moves: int = 64  # in one plan
    move_cost_w: float = (
        1.0  # that each group which must move counts against a package, among those worth emptying
    )

    # what it must bring
    least_saving_w: float = 2.0
    least_residency: float = (
        0.05  # where watts are not measurable: of one package's time, in independent states
    )
    most_slowdown: float = 0.05  # that is expected from frequency, threads of one core and remote memory
    remote_slowdown: float = 0.30  # of a group all of whose memory is on another node
    metric_loss: float = 0.02  # of the workload's own metric, from which a trial is undone
    trial: Trial = "independent"  # which packages may be parked to measure what it saves
    pairs: int = 2  # times that parked and not parked are compared in a trial; once where the saving is known
    window_s: float = 120.0  # of each
    settle_s: float = 20.0  # after moving, before measuring
    confidence: float = 0.95
    verdict_fresh_s: float = 30 * 86400.0  # what a trial found holds so long; then it is measured again

    # how
    memory_bytes_per_s: float = 256 << 20  # that memory follows with; 0: it stays
    interrupts: bool = False  # devices' interrupts move, too
    parked_read_s: float = 20.0  # parked packages are read that rarely

    def of(self, group: str) -> GroupPolicy:
        """By its own name, else by that of the configured one that found it ("vms" for "vms.web1")."""
        found = self.groups.get(group)
        return found if found is not None else self.groups.get(group.partition(".")[0], self.default)


def check(policy: Policy) -> None:
    """Raises ConfigError for a policy that cannot be meant."""
    share = "a share of time"
    for what, fine, hint in (
        ("high", 0 < policy.high <= 1, f"{share}; 0.8 is usual"),
        ("high_leave", 0 < policy.high_leave <= policy.high, "no more than `high`; 0.7 is usual"),
        ("medium", 0 < policy.medium < policy.high, "less than `high`; 0.4 is usual"),
        ("medium_leave", 0 < policy.medium_leave <= policy.medium, "no more than `medium`; 0.3 is usual"),
        ("efficient", 0 < policy.efficient <= 1, f"{share}; 0.6 is usual"),
        ("efficient_leave", 0 < policy.efficient_leave <= policy.efficient, "no more than `efficient`"),
        ("parked", 0 < policy.parked <= 1, f"{share}; 0.8 is usual"),
        ("parked_load", 0 < policy.parked_load < policy.medium, f"{share}; 0.02 is usual"),
        ("average_s", policy.average_s > 0, "a time; 1min is usual"),
        ("spread_after_s", policy.spread_after_s >= 0, "a time; 20s is usual"),
        (
            "pack_after_s",
            policy.pack_after_s > policy.spread_after_s,
            "longer than `spread_after`; 10min is usual",
        ),
        ("rest_s", policy.rest_s >= 0, "a time; 30min is usual"),
        ("headroom", 0 < policy.headroom <= policy.high, "a share, no more than `high`; 0.75 is usual"),
        ("smt_gain", 0 <= policy.smt_gain <= 1, "a share of a core; 0.25 is usual"),
        ("peak_s", policy.peak_s > 0, "a time; 4h is usual"),
        ("pressure_limit", 0 < policy.pressure_limit <= 1, f"{share}; 0.2 is usual"),
        ("most_moves", policy.most_moves >= 1, "a number; 64 is usual"),
        ("move_cost_w", policy.move_cost_w >= 0, "watts; 1 is usual"),
        ("least_saving_w", policy.least_saving_w >= 0, "watts; 2 is usual"),
        ("least_residency", 0 <= policy.least_residency <= 1, f"{share}; 0.05 is usual"),
        ("most_slowdown", 0 <= policy.most_slowdown < 1, "a share; 0.05 is usual"),
        ("remote_slowdown", 0 <= policy.remote_slowdown < 1, "a share; 0.3 is usual"),
        ("metric_loss", 0 <= policy.metric_loss < 1, "a share; 0.02 is usual"),
        ("pairs", 1 <= policy.pairs <= 20, "from 1 to 20; 2 is usual"),
        ("window_s", policy.window_s >= 1, "a time; 2min is usual"),
        ("settle_s", policy.settle_s >= 0, "a time; 20s is usual"),
        ("confidence", 0.5 <= policy.confidence < 1, "a share; 0.95 is usual"),
        ("verdict_fresh_s", policy.verdict_fresh_s > 0, "a time; 30d is usual"),
        ("memory_bytes_per_s", policy.memory_bytes_per_s >= 0, "a size; 256MiB is usual"),
        (
            "parked_read_s",
            1 <= policy.parked_read_s <= policy.window_s / 3,
            "a time, at most a third of `window`: a trial needs three readings in one; 20s is usual",
        ),
    ):
        if not fine:
            raise ConfigError(f"packages: policy.{_key(what)} cannot be {getattr(policy, what)}", hint=hint)
    for name, one in {"": policy.default, **policy.groups}.items():
        if one.slack_s is not None and not 0 < one.slack_s < math.inf:
            where = f"groups.{name}" if name else "default"
            raise ConfigError(f"packages: policy.{where}.slack must be a time", hint="50ms, say")


def _key(field: str) -> str:
    """As it is called in the file."""
    return "memory_per_s" if field == "memory_bytes_per_s" else field.removesuffix("_s")
