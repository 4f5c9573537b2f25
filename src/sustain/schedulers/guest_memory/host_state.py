"""How short of memory the host is: a state with bounds to enter it and others to leave it. Pure.

Used by `decide` and `admission`. Five states, after ESX: high (plenty), clear, soft (work towards the goal, by the
cheapest ways), hard (also by host swap, and faster), low (as fast as can be). What counts is the memory that the
kernel calls available: a Linux host keeps its free memory low on purpose.

The goal is minFree as ESX has it (6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16, 1 % of the rest:
899 MB at 28 GiB), unless the operator sets one. By default a state begins below 400 % (clear), 64 % (soft), 32 %
(hard) and 16 % (low) of minFree; with a goal of the operator's, soft begins a tenth below that, if this is more. With
bounds of the operator's alone, the goal is a tenth of it above soft, if this is more than minFree.
"""

from sustain.errors import ConfigError
from sustain.schedulers.guest_memory.model import Bounds, Host, Policy
from sustain.schedulers.guest_memory.plan import HostState

_SCALE = ((4 << 30, 0.06), (8 << 30, 0.04), (16 << 30, 0.02), (float("inf"), 0.01))
_LEAVES_CLEAR = 1.1
_ENTERS_SOFT = 0.9  # of a goal that the operator set
ORDER: tuple[HostState, ...] = ("high", "clear", "soft", "hard", "low")


def min_free_bytes(total_bytes: float) -> float:
    """What a host of that size should have available."""
    found, rest = 0.0, total_bytes
    for width, share in _SCALE:
        part = min(rest, width)
        found += part * share
        rest -= part
    return found


def aim_bytes(policy: Policy) -> float | None:
    """What the operator wants available, at least, whatever the host's size; None: that alone says it."""
    wanted = [policy.goal_free_bytes] if policy.goal_free_bytes is not None else []
    if policy.bounds is not None:
        wanted.append(policy.bounds.soft_bytes / _ENTERS_SOFT)
    return max(wanted, default=None)


def bounds(host: Host, policy: Policy) -> tuple[float, Bounds] | None:
    """(goal, bounds); None where the host's size is needed for them, and unknown."""
    goal, given = policy.goal_free_bytes, policy.bounds
    if given is not None and goal is not None:
        return goal, given
    if host.total_bytes is None:
        return None
    least = min_free_bytes(host.total_bytes)
    soft = 0.64 * least if goal is None else max(0.64 * least, _ENTERS_SOFT * goal)
    goal = least if goal is None else max(goal, 0.64 * least)
    derived = Bounds(
        clear_bytes=max(4 * least, 1.25 * goal),
        soft_bytes=min(soft, goal),
        hard_bytes=0.32 * least,
        low_bytes=0.16 * least,
    )
    if given is None:
        return goal, derived
    # Without a goal of the operator's, one above that bound: what is left at the goal would not be left otherwise.
    return max(goal, given.soft_bytes / _ENTERS_SOFT), given


def next_state(before: HostState, available_bytes: float, goal_bytes: float, at: Bounds) -> HostState:
    """The state now. A worse one begins at once; it is left only when there is more than it began with."""
    enters = (float("inf"), at.clear_bytes, at.soft_bytes, at.hard_bytes, at.low_bytes)
    leaves = (float("inf"), _LEAVES_CLEAR * at.clear_bytes, goal_bytes, at.soft_bytes, at.hard_bytes)
    fallen = max(index for index, bound in enumerate(enters) if index == 0 or available_bytes < bound)
    if before == "unknown":
        return ORDER[fallen]
    now = ORDER.index(before)
    while now > fallen and available_bytes >= leaves[now]:
        now -= 1
    return ORDER[max(now, fallen)]


def check(policy: Policy) -> None:
    """Raises ConfigError for a policy that cannot be meant."""
    for what, fine, hint in (
        ("idle_tax", 0 <= policy.idle_tax < 1, "from 0 (shares alone) to less than 1; 0.75 is usual"),
        ("step", 0 < policy.step <= 1, "a share of the guest's size; 0.05 is usual"),
        ("headroom", policy.headroom >= 0, "a share of the working set; 0.10 is usual"),
        ("rise_s", policy.rise_s > 0, "a time"),
        ("fall_s", policy.fall_s > 0, "a time"),
        ("fresh_s", policy.fresh_s > 0, "a time; three periods are usual"),
        ("stall_limit", policy.stall_limit > 0, "a share of time; 0.01 is usual"),
        ("goal_free_bytes", (policy.goal_free_bytes or 0) >= 0, "a size"),
    ):
        if not fine:
            raise ConfigError(f"policy: {what} cannot be {getattr(policy, what)}", hint=hint)
    at = policy.bounds
    if at is not None and not at.clear_bytes >= at.soft_bytes >= at.hard_bytes >= at.low_bytes > 0:
        raise ConfigError(
            "policy: the bounds do not fall from clear to low", hint="clear >= soft >= hard >= low > 0"
        )
    if at is not None and policy.goal_free_bytes is not None and policy.goal_free_bytes < at.soft_bytes:
        raise ConfigError(
            "policy: the goal is below the bound of soft", hint="what is left at the goal begins below it"
        )
    for name, one in {"": policy.default, **policy.guests}.items():
        if one.shares <= 0 or one.reservation_bytes < 0 or (one.limit_bytes or 0) < 0:
            raise ConfigError(
                f"policy of guest {name!r}: shares must be positive, sizes not negative", hint=""
            )
        if one.limit_bytes is not None and one.limit_bytes < one.reservation_bytes:
            raise ConfigError(
                f"policy of guest {name!r}: its limit is below its reservation", hint="limit >= reservation"
            )
