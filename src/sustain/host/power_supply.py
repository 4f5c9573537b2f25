"""Batteries and mains adapters that the kernel knows: /sys/class/power_supply.

Documentation/ABI/testing/sysfs-class-power. Used by `powerfail.sources`. Supplies of devices (a mouse) are left out.
"""

from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError, PowerSourceError
from sustain.host import files


@dataclass(frozen=True, slots=True)
class Supplies:
    """All of them together; None = the kernel does not say."""

    on_battery: bool | None
    charge_percent: float | None  # of the batteries, on average
    runtime_s: float | None
    status: str


def read(root: Path = Path("/")) -> Supplies:
    """What supplies this host. Raises PowerSourceError when the kernel knows of no supply at all."""
    folder = root / "sys/class/power_supply"
    online: list[bool] = []
    batteries: list[Path] = []
    words: list[str] = []
    for each in sorted(folder.iterdir()) if folder.is_dir() else []:
        kind = _text(each / "type")
        if _text(each / "scope") == "Device":
            continue
        if kind == "Battery" and _text(each / "present") != "0":
            batteries.append(each)
            words.append(f"{each.name}: {_text(each / 'status') or 'unknown'}")
        elif kind in ("Mains", "USB", "UPS", "Wireless") and (value := _number(each / "online")) is not None:
            online.append(value > 0)
            words.append(f"{each.name}: {'online' if value > 0 else 'offline'}")
    if not words:
        raise PowerSourceError(
            f"{folder}: no battery and no mains adapter",
            hint="a host without a battery of its own is told of outages by its UPS: nut://HOST/UPS",
        )
    discharging = any(_text(each / "status") == "Discharging" for each in batteries)
    on_battery = not any(online) if online else (discharging if batteries else None)
    return Supplies(on_battery, _charge(batteries), _runtime_s(batteries), ", ".join(words))


def _charge(batteries: list[Path]) -> float | None:
    found = [value for each in batteries if (value := _number(each / "capacity")) is not None]
    return sum(found) / len(found) if found else None


def _runtime_s(batteries: list[Path]) -> float | None:
    """The kernel's own estimate, or energy over power; of several batteries, together."""
    said = [value for each in batteries if (value := _number(each / "time_to_empty_now"))]
    if said and len(said) == len(batteries):
        return max(said)
    energy = [_number(each / "energy_now") for each in batteries]
    power = [_number(each / "power_now") for each in batteries]
    if not batteries or None in energy or None in power:
        return None
    watts = sum(value for value in power if value is not None)  # both in millionths
    return sum(value for value in energy if value is not None) / watts * 3600 if watts > 0 else None


def _text(path: Path) -> str:
    try:
        return (files.text(path) or "").strip()
    except HostError:  # a battery that does not answer for once; what the others say counts
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
