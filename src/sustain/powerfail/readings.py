"""What a power source said at one moment, whatever it is. Pure.

Made by `sources`, judged by `decide`. A value that the source does not give is None, never zero; a source
that cannot be believed gives a reading with a `problem`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Status words of Network UPS Tools (docs/new-drivers.txt, "Status data"); others are ignored.
_ON_LINE, _ON_BATTERY, _LOW, _FORCED = "OL", "OB", "LB", "FSD"


@dataclass(frozen=True, slots=True)
class PowerReading:
    """One look at a power source."""

    read_ns: int  # CLOCK_BOOTTIME, when the answer had arrived
    on_battery: bool | None = None  # None: it does not say
    low: bool = False  # the source calls the battery low
    forced: bool = False  # the source has ordered a shutdown
    charge_percent: float | None = None
    runtime_s: float | None = None  # how long the battery will last, by its own estimate
    runtime_low_s: float | None = None  # at which the source will call it low
    status: str = ""  # in the source's own words
    problem: str = ""  # why nothing else here may be believed; "" when it may


def unknown(read_ns: int, problem: str) -> PowerReading:
    """The source could not be asked, or its answer could not be understood."""
    return PowerReading(read_ns, problem=problem)


def from_nut(variables: Mapping[str, str], read_ns: int) -> PowerReading:
    """The reading that variables of Network UPS Tools make.

    FSD means "on battery and low" whatever else stands beside it: that is how upsd tells everybody to shut down.
    """
    status = variables.get("ups.status", "")
    flags = set(status.split())
    forced = _FORCED in flags
    if not forced and _ON_LINE not in flags and _ON_BATTERY not in flags:
        return PowerReading(
            read_ns, status=status, problem=f"ups.status is {status!r}, which names no supply"
        )
    on_battery = forced or _ON_BATTERY in flags
    return PowerReading(
        read_ns,
        on_battery=on_battery,
        low=forced or (on_battery and _LOW in flags),
        forced=forced,
        charge_percent=number(variables.get("battery.charge")),
        runtime_s=number(variables.get("battery.runtime")),
        runtime_low_s=number(variables.get("battery.runtime.low")),
        status=status,
    )


def number(text: str | None) -> float | None:
    """A figure that is not negative; None when it is absent or no such figure."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
