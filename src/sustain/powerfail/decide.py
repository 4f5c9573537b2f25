"""From readings to what is the matter: on AC, on battery, flapping, low, forced shutdown, unknown. Pure.

One reading never stops a workload. An outage is believed once the battery has been seen in use for the
debounce time and in two readings; "low" needs two readings as well, because batteries that fail a self-test
say it for a moment. A source that is lost while the mains were on makes the state unknown, and nothing more;
one that is lost in an outage leaves the outage standing, with the runtime counting down from what was said
last. An order to shut down (FSD) is never taken back.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from sustain.powerfail.readings import PowerReading

_NS = 1_000_000_000


class Power(StrEnum):
    """What is the matter."""

    UNKNOWN = "unknown"
    ON_AC = "on AC"
    FLAPPING = "flapping"
    ON_BATTERY = "on battery"
    LOW = "low"
    FORCED_SHUTDOWN = "forced shutdown"

    @property
    def outage(self) -> bool:
        """Whether it is a real outage, on which to act."""
        return self in (Power.ON_BATTERY, Power.LOW, Power.FORCED_SHUTDOWN)


@dataclass(frozen=True, slots=True)
class PowerPolicy:
    """How long things must last to be believed. Seconds."""

    debounce_s: float = 5.0  # on battery, before it is an outage
    settle_s: float = 10.0  # on AC, before an outage is over
    stale_s: float = 15.0  # without a reading that can be believed
    flap_window_s: float = 60.0
    flap_changes: int = 4  # changes of the supply within the window that make it flap


@dataclass(frozen=True, slots=True)
class PowerMemory:
    """What is remembered from one reading to the next. Times are CLOCK_BOOTTIME, nanoseconds."""

    power: Power = Power.UNKNOWN
    reason: str = "no reading yet"
    since_ns: int = 0  # when `power` became so
    good: PowerReading | None = None  # the last reading that can be believed
    supply_since_ns: int = 0  # when the supply (AC, battery) changed last
    changes_ns: tuple[int, ...] = ()
    battery_readings: int = 0  # in a row
    low_readings: int = 0  # in a row
    outage_ns: int | None = None  # when the battery took over, in the outage that is going on
    countdown_s: float | None = None  # the runtime that was said then
    forced: bool = False


def decide(reading: PowerReading, memory: PowerMemory, policy: PowerPolicy, now_ns: int) -> PowerMemory:
    """What is the matter after `reading`, and why. `now_ns` is CLOCK_BOOTTIME, not before the reading."""
    seen = _note(reading, memory, policy, now_ns)
    power, reason = _judge(reading, seen, policy, now_ns)
    if power in (Power.ON_AC, Power.UNKNOWN):
        seen = replace(seen, outage_ns=None, countdown_s=None)
    since_ns = memory.since_ns if power is memory.power else now_ns
    return replace(seen, power=power, reason=reason, since_ns=since_ns)


def _note(reading: PowerReading, memory: PowerMemory, policy: PowerPolicy, now_ns: int) -> PowerMemory:
    """The facts, without a judgement."""
    window_ns = int(policy.flap_window_s * _NS)
    kept = tuple(at for at in memory.changes_ns if now_ns - at <= window_ns)
    if reading.problem or reading.on_battery is None:
        return replace(memory, changes_ns=kept)
    changed = memory.good is None or memory.good.on_battery != reading.on_battery
    if changed and memory.good is not None:
        kept = (*kept, reading.read_ns)
    outage_ns = memory.outage_ns
    countdown_s = memory.countdown_s
    if reading.on_battery and outage_ns is None:
        outage_ns, countdown_s = reading.read_ns, reading.runtime_s
    if reading.on_battery and countdown_s is None:
        countdown_s = reading.runtime_s
    return replace(
        memory,
        good=reading,
        supply_since_ns=reading.read_ns if changed else memory.supply_since_ns,
        changes_ns=kept,
        battery_readings=memory.battery_readings + 1 if reading.on_battery else 0,
        low_readings=memory.low_readings + 1 if reading.low else 0,
        outage_ns=outage_ns,
        countdown_s=countdown_s,
        forced=memory.forced or reading.forced,
    )


def _judge(reading: PowerReading, seen: PowerMemory, policy: PowerPolicy, now_ns: int) -> tuple[Power, str]:
    good = seen.good
    if seen.forced:
        return Power.FORCED_SHUTDOWN, "the power source has ordered a shutdown, which is never taken back"
    if good is None:
        return Power.UNKNOWN, reading.problem or "the source does not say what supplies the host"
    lost_s = (now_ns - good.read_ns) / _NS
    if lost_s > policy.stale_s:
        why = reading.problem or "no reading"
        if seen.power.outage:
            return (
                seen.power,
                f"the source was lost {lost_s:.0f} s ago, in an outage, which therefore stands: {why}",
            )
        return Power.UNKNOWN, f"nothing to be believed for {lost_s:.0f} s: {why}"
    # As far as readings show: silence proves nothing.
    lasted_s = (good.read_ns - seen.supply_since_ns) / _NS
    if good.on_battery:
        if seen.low_readings >= 2:
            return Power.LOW, "the source calls the battery low, in two readings"
        if seen.power.outage:
            # LOW stands: a battery that recovers a little without its load is no fuller for that.
            return seen.power, f"on battery for {lasted_s:.0f} s"
        if lasted_s >= policy.debounce_s and seen.battery_readings >= 2:
            return Power.ON_BATTERY, f"on battery for {lasted_s:.0f} s, debounce {policy.debounce_s:g} s"
        return Power.FLAPPING, f"on battery for {lasted_s:.1f} s, an outage from {policy.debounce_s:g} s on"
    if seen.power.outage and lasted_s < policy.settle_s:
        return seen.power, f"AC is back for {lasted_s:.1f} s, believed from {policy.settle_s:g} s on"
    if len(seen.changes_ns) >= policy.flap_changes:
        return (
            Power.FLAPPING,
            f"{len(seen.changes_ns)} changes of the supply within {policy.flap_window_s:g} s",
        )
    return Power.ON_AC, f"on AC for {lasted_s:.0f} s"
