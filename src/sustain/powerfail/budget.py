"""How much may be unshipped, so that it still gets away on the battery, and how commits are slowed to keep it
so. Pure.

The budget of a destination is the seconds that can be used times a low percentile of the bandwidth that was
measured to it. It is the least of what is known: nothing known of the battery means no seconds, not many.
"""

from collections import deque
from dataclasses import dataclass

from sustain.powerfail.decide import Power, PowerMemory

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """Seconds held back, and where delays begin, as shares of the budget."""

    margin_s: float = 10.0
    latency_s: float = 2.0  # to notice, to stop the command, to hand over
    reserve_s: float = 0.0  # besides what the source itself calls low
    first_threshold: float = 0.5
    second_threshold: float = 0.9
    delay_limit_s: float = 0.05  # just below the second threshold
    assumed_runtime_s: float | None = None  # where the source gives no runtime; None: then there is no budget


def usable_s(memory: PowerMemory, policy: BudgetPolicy, now_ns: int) -> tuple[float | None, str]:
    """Seconds of battery that a drain may count on, and why. 0 when low or forced; None: nobody knows.

    The least of what the battery says now (less the age of the reading) and, in an outage, of a countdown of
    what it said when the battery took over: estimates that rise under load are not believed. A source that is
    lost while the mains are on takes no charge out of the battery: what it said last stands, and that is said.
    """
    good = memory.good
    if memory.power in (Power.LOW, Power.FORCED_SHUTDOWN):
        return 0.0, f"the power is {memory.power}"
    if good is None:
        return None, "nothing is known of the power"
    said_s = good.runtime_s if good.runtime_s is not None else policy.assumed_runtime_s
    if said_s is None:
        return None, "the source gives no runtime"
    why = f"the battery says {said_s:.0f} s" if good.runtime_s is not None else f"{said_s:.0f} s are assumed"
    if good.on_battery:
        said_s -= (now_ns - good.read_ns) / _NS
    elif memory.power is Power.UNKNOWN:
        why = f"the battery said {said_s:.0f} s, {(now_ns - good.read_ns) / _NS:.0f} s ago"
    if memory.countdown_s is not None and memory.outage_ns is not None:
        left_s = memory.countdown_s - (now_ns - memory.outage_ns) / _NS
        if left_s < said_s:
            said_s, why = left_s, f"{memory.countdown_s:.0f} s were said when the battery took over"
    held_s = (good.runtime_low_s or 0.0) + policy.margin_s + policy.latency_s + policy.reserve_s
    return max(0.0, said_s - held_s), f"{why}, {held_s:.0f} s are held back"


class Bandwidth:
    """Measured bandwidth to one destination, in bytes per second; the newest samples count."""

    def __init__(self, samples: int = 64) -> None:
        self._samples: deque[float] = deque(maxlen=samples)

    def note(self, transferred_bytes: int, duration_s: float) -> None:
        """A transfer during which the sender had always something to send. Too short ones say nothing."""
        if transferred_bytes > 0 and duration_s > 0:
            self._samples.append(transferred_bytes / duration_s)

    def low(self, percentile: float = 5.0) -> float | None:
        """The bandwidth that was reached in all but `percentile` percent of the samples; None: never measured."""
        if not self._samples:
            return None
        ordered = sorted(self._samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percentile / 100))]


def budget_bytes(seconds: float, bandwidth: float | None) -> int:
    """What can be drained in `seconds`; 0 when the bandwidth was never measured."""
    return 0 if bandwidth is None else max(0, int(seconds * bandwidth))


def delay_s(unshipped_bytes: int, budget: int, policy: BudgetPolicy) -> float | None:
    """How long a commit waits before it may go on; None: until there is less unshipped.

    Nothing below the first threshold, then more and more, steeply towards the second.
    """
    if unshipped_bytes <= 0:
        return 0.0
    first, second = budget * policy.first_threshold, budget * policy.second_threshold
    if unshipped_bytes >= second:
        return None
    if unshipped_bytes <= first:
        return 0.0
    share = (unshipped_bytes - first) / (second - first)
    return policy.delay_limit_s * share * share
