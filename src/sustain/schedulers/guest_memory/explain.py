"""Where every figure of a plan comes from, in words. Pure.

Used by `sustain memory explain GUEST`.
"""

from sustain.schedulers.guest_memory.host_state import ORDER
from sustain.schedulers.guest_memory.model import Policy
from sustain.schedulers.guest_memory.plan import MECHANISMS, GuestPlan, Plan
from sustain.units import format_duration, format_size

_SOURCES = {
    "guest-agent": "counted by the guest's kernel, read through its agent",
    "balloon": "told by the balloon's driver: free and available memory only",
    "cgroup": "counted by this host's kernel for the cgroup",
    "sampling": "estimated by the host from a sample of pages",
    "none": "nobody tells them",
}


def explain(plan: Plan, name: str, policy: Policy) -> str:
    """The plan for one guest, line by line. Raises KeyError for a guest that is not in it."""
    return "\n".join((*_host(plan), "", *_guest(plan.guest(name), policy)))


def _host(plan: Plan) -> list[str]:
    host = plan.host
    lines = [
        f"host            {host.state}",
        f"  available     {_size(host.available_bytes)}, by its kernel (MemAvailable)",
        f"  goal          {_size(host.goal_bytes)}: the policy's goal_free_bytes, or minFree by the host's size",
        f"  capacity      {_size(host.capacity_bytes)} = held by all guests + available - goal",
        f"  states        clear below {_size(host.clear_bytes)}, soft below {_size(host.soft_bytes)}, "
        f"hard below {_size(host.hard_bytes)}, low below {_size(host.low_bytes)}",
    ]
    if host.state in ORDER[2:]:
        lines.append(f"                works towards the goal until {_size(host.goal_bytes)} are available")
    return lines + [f"  problem       {each}" for each in host.problems]


def _guest(one: GuestPlan, policy: Policy) -> list[str]:
    own = policy.guests.get(one.name, policy.default)
    limit = (
        "its size"
        if own.limit_bytes is None
        else f"the least of its size and its limit {_size(own.limit_bytes)}"
    )
    age = "unknown" if one.age_s is None else format_duration(max(0.0, one.age_s))
    lines = [
        f"guest           {one.name}",
        f"  size          {_size(one.size_bytes)}; its balloon leaves it {_size(one.balloon_bytes)}",
        f"  holds         {_size(one.held_bytes)} of the host's memory",
        f"  page classes  {_SOURCES.get(one.source, one.source)}; age {age} (at most {policy.fresh_s:g} s is used)",
        f"  active        {_size(one.active_bytes)} = active anonymous + active buffers + unreclaimable, or all "
        "that is not free",
        f"  working set   {_size(one.working_set_bytes)}: that over time, up within {policy.rise_s:g} s, down within "
        f"{policy.fall_s:g} s" + _doubted(one),
        f"  needs         {_size(one.needs_bytes)}: {policy.headroom:.0%} of headroom more, or room for a rise like "
        f"its largest within {policy.rise_s:g} s of late",
        f"  waits         {_share(one.stall)} of the time for memory (limit {policy.stall_limit:.1%}); "
        f"swaps in {_size(one.swap_in_bytes_per_s)}/s, reads {_size(one.refault_bytes_per_s)}/s again",
        f"  least         {_size(one.floor_bytes)}: the greater of its reservation {_size(own.reservation_bytes)} and "
        "what its kernel cannot give",
        f"  by balloon    left {_size(one.kept_bytes)} whatever happens: what it cannot give or swap, with "
        f"{_size(one.hidden_bytes)} that it lists nowhere; more where its balloon does not deflate by itself",
        f"  most          {_size(one.most_bytes)}: {limit}",
        f"  wants         {_size(one.wanted_bytes)} = holds + what it lacks",
        f"  entitled to   {_size(one.entitlement_bytes)}: {one.shares:g} shares, idle memory charged "
        f"{1 / (1 - policy.idle_tax):.3g} times, if all guests wanted all they may have",
        f"  target        {_size(one.target_bytes)}: its part of what there is, between what cannot be taken now and "
        "what it wants",
    ]
    if one.held_bytes is not None and one.target_bytes is not None and one.held_bytes > one.target_bytes:
        costs = ", ".join(f"{name} {_cost(getattr(one, f'{name}_cost_s'))}" for name in MECHANISMS)
        lines.append(f"  cost by way   {costs}: estimate of the time it would wait later")
    if one.mechanism is None:
        lines.append("  nothing is to be done")
    else:
        way = "gives" if one.change_bytes > 0 else "takes"
        lines.append(f"  {one.mechanism:<13} {way} {_size(abs(one.change_bytes))} in this step")
    return lines + [f"  because       {each}" for each in one.reasons]


def _doubted(one: GuestPlan) -> str:
    """What having waited adds to its working set."""
    if one.pressed:
        return ", and all that it has, since it is pressed"
    if one.doubted_bytes is None or one.measured_bytes is None or one.doubted_bytes <= one.measured_bytes:
        return ""
    return (
        f" ({_size(one.measured_bytes)}), and {_size(one.doubted_bytes)} that are left of all it had when it was "
        f"pressed, forgotten within {format_duration(one.spared_s or 0.0)}"
    )


def _size(value: float | None) -> str:
    if value is None or value == float("inf"):
        return "unknown" if value is None else "no limit"
    return format_size(int(value))


def _share(value: float | None) -> str:
    return "an unknown part" if value is None else f"{value:.2%}"


def _cost(value: float | None) -> str:
    return "cannot" if value is None else format_duration(value)
