"""When the next look cannot wait for its period, and whose stalls end the wait. Pure.

Used by the scheduler. The kernel rings for what it knows of: the host, and containers. How a virtual machine does it
cannot know; so while memory is being moved to one that waits for it, or to a host that is short of it, or an action is
still under way, the next look comes after `Urgency.period_s`. A guest that lacks memory which nobody can give is no
reason: nothing would come of looking more often.
"""

from collections.abc import Sequence

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.guest_memory.model import Effect
from sustain.schedulers.guest_memory.plan import Plan

_WINDOWS_S = (0.5, 10.0)  # that the kernel takes
_LEAST_PERIOD_S = 0.5


class Urgency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How soon looks follow each other under pressure, and what the kernel calls pressure."""

    period_s: float = 2.0
    watch: bool = True  # the pressure of the host and of containers
    stall_s: float = 0.1  # that some task waited for memory, within
    window_s: float = 2.0  # that much; what is no multiple of 2 s needs CAP_SYS_RESOURCE


def check(urgency: Urgency) -> None:
    """Raises ConfigError for what cannot be meant."""
    least, most = _WINDOWS_S
    for what, fine, hint in (
        ("period", urgency.period_s >= _LEAST_PERIOD_S, f"{_LEAST_PERIOD_S:g}s at least; 2s is usual"),
        ("window", least <= urgency.window_s <= most, "from 500ms to 10s; 2s needs no capability"),
        ("stall", 0 < urgency.stall_s < urgency.window_s, "more than nothing, and less than the window"),
    ):
        if not fine:
            value = getattr(urgency, f"{what}_s")
            raise ConfigError(f"guest_memory.urgency.{what}: cannot be {value:g} s", hint=hint)


def wait_s(plan: Plan, effects: Sequence[Effect], urgency: Urgency, period_s: float) -> float:
    """How soon to look again after that plan, of which that came."""
    short = plan.host_state in ("hard", "low") or bool((plan.columns["pressed"] > 0).any())
    if (short and plan.actions) or any(effect.under_way for effect in effects):
        return min(urgency.period_s, period_s)
    return period_s
