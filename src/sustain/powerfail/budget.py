"""How much may be unshipped, so that it still gets away on the battery, and how commits are slowed to keep it
so. Pure.

Used by the supervisor (seconds), the shipper (bandwidth, limits for the engine) and `sustain status`. The budget
of a destination is the seconds that can be used times a low percentile of the bandwidth that was measured to it.
It gives credit from what the destination has acknowledged; a destination of which that, or the bandwidth, is not
known gives none. Without a battery that is watched there is no budget, and no limit.

The limit is a position in the log and not an amount, so that the writer compares its own end with one word and
needs to know of no destination: a limit that it read too early only allows less.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sustain.powerfail.decide import Power, PowerMemory

_NS = 1_000_000_000
_MOST = (1 << 63) - 1  # positions and bytes in the control words
# The power's state by its number in the control words (docs/formats/store.md).
POWER_STATES = (
    Power.UNKNOWN,
    Power.ON_AC,
    Power.FLAPPING,
    Power.ON_BATTERY,
    Power.LOW,
    Power.FORCED_SHUTDOWN,
)


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


def usable_now_s(usable_ns: int | None, said_ns: int, power: Power, now_ns: int) -> float | None:
    """Seconds of battery left of `usable_ns`, which the supervisor said at `said_ns`; None: nobody knows.

    On battery they run down whether or not it says more, so a supervisor that has died does not leave a budget
    that nobody can keep. Times are CLOCK_BOOTTIME.
    """
    if usable_ns is None:
        return None
    if power in (Power.ON_AC, Power.UNKNOWN):
        return usable_ns / _NS
    return max(0, usable_ns - max(0, now_ns - said_ns)) / _NS


class Bandwidth:
    """Measured bandwidth to one destination, in bytes per second; the newest samples count.

    A low percentile alone would take several bad samples to believe that a link has become slow; so the last few
    count whatever the percentile says, and a fall tightens at once, while a rise has to last.
    """

    def __init__(self, samples: int = 64) -> None:
        self._samples: deque[float] = deque(maxlen=samples)

    @property
    def count(self) -> int:
        """Samples that there are."""
        return len(self._samples)

    def note(self, transferred_bytes: int, duration_s: float) -> None:
        """A transfer during which the sender had always something to send. Too short ones say nothing."""
        if transferred_bytes >= 0 and duration_s > 0:
            self._samples.append(transferred_bytes / duration_s)

    def low(self, percentile: float = 5.0, newest: int = 3) -> float | None:
        """The bandwidth that was reached in all but `percentile` percent of the samples (but in all but one, if
        there are at least five), and in each of the `newest` few; None: never measured."""
        if not self._samples:
            return None
        ordered = sorted(self._samples)
        count = len(ordered)
        outliers = max(int(count * percentile / 100), 1 if count >= 5 else 0)
        recent = list(self._samples)[max(0, count - newest) :] if newest else []
        return min([ordered[min(count - 1, outliers)], *recent])


@dataclass(frozen=True, slots=True)
class Reach:
    """A destination as the budget sees it; None = unknown."""

    acked: int | None  # position that it holds durably
    bandwidth: float | None  # bytes per second
    required: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The words that the engine obeys. All zero: there is no limit."""

    budget_bytes: int = 0
    delay_lsn: int = 0
    limit_lsn: int = 0
    delay_limit_ns: int = 0


NO_LIMITS = Limits()
ALONE = Limits(0, _MOST, _MOST, 0)  # a battery is watched, but there is nobody to drain to


def limits(seconds: float | None, reaches: Sequence[Reach], policy: BudgetPolicy) -> Limits:
    """How far commits may go, so that `seconds` are enough to bring everything to every required destination, or
    to some destination where none is required. None: no battery is watched, and there is no limit.

    Where no destination has a whole copy and none is required, nothing is held back either: no budget would bring
    anything away, and a host that took over from one that is gone must not wait for it.
    """
    if seconds is None:
        return NO_LIMITS
    if all(each.acked is None and not each.required for each in reaches):
        return ALONE
    required = [each for each in reaches if each.required]
    credits = [_credit(seconds, each, policy) for each in required or reaches]
    known = [each for each in credits if each is not None]
    delay_limit_ns = int(policy.delay_limit_s * _NS)
    if not known or (required and len(known) < len(credits)):
        return Limits(0, 1, 1, delay_limit_ns)  # before the first byte: everything waits
    pick = min if required else max
    return Limits(
        budget_bytes=pick(known, key=lambda each: each[0])[2],
        delay_lsn=pick(delay for _, delay, _ in known),
        limit_lsn=pick(limit for limit, _, _ in known),
        delay_limit_ns=delay_limit_ns,
    )


def _credit(seconds: float, reach: Reach, policy: BudgetPolicy) -> tuple[int, int, int] | None:
    """(limit, position from which on commits are delayed, budget in bytes) as far as `reach` goes."""
    if reach.acked is None or reach.bandwidth is None:
        return None
    budget = budget_bytes(seconds, reach.bandwidth)
    limit = min(_MOST, max(1, reach.acked + int(budget * policy.second_threshold)))
    return limit, min(limit, max(1, reach.acked + int(budget * policy.first_threshold))), budget


def budget_bytes(seconds: float, bandwidth: float | None) -> int:
    """What can be drained in `seconds`; 0 when the bandwidth was never measured."""
    return 0 if bandwidth is None else int(min(_MOST, max(0.0, seconds * bandwidth)))
