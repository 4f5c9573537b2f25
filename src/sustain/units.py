"""Sizes and durations as people write them: "256MiB", "3s", "500ms". Pure.

Used by the command line, by `sustain.create` and wherever a person reads a figure. Sizes are binary (KiB,
MiB, …); the decimal units (kB, MB, …) mean powers of 1000, as the standard has it, because guessing one for
the other loses up to ten per cent silently. A bare number of bytes or seconds needs no unit.
"""

import math
import re

from sustain.errors import ConfigError

_BINARY = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DECIMAL = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS = {name.lower(): factor for name, factor in (_BINARY | _DECIMAL).items()}
_SIZE_UNITS |= {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0}
_DURATION_UNITS |= {"h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ]*)\s*", re.IGNORECASE)


def parse_size(value: int | str, what: str = "size") -> int:
    """Bytes of `value`: an int, or text such as "256MiB", "1.5GiB", "64M" (binary), "10MB" (decimal).

    `what` names the quantity in the error. Raises ConfigError for anything else, and for fractions of a byte.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError(f"{what} {value} is negative", hint=_SIZE_HINT)
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{what} {value!r} is not a size", hint=_SIZE_HINT)
    whole, _, fraction = match[1].partition(".")
    scaled = int(whole or "0") * factor * 10 ** len(fraction) + int(fraction or "0") * factor
    size_bytes, rest = divmod(scaled, int(10 ** len(fraction)))
    if rest:
        raise ConfigError(f"{what} {value!r} is not a whole number of bytes", hint=_SIZE_HINT)
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """`size_bytes` for a person, in binary units with three significant digits: "256 MiB", "1.5 GiB", "17
    B"."""
    value, unit = float(size_bytes), "B"
    for name, factor in _BINARY.items():
        if abs(size_bytes) < factor and name != "B":
            break
        value, unit = size_bytes / factor, name
    return f"{_three_digits(value)} {unit}"


def parse_duration(value: float | str, what: str = "duration") -> float:
    """Seconds of `value`: a number, or text such as "3s", "500ms", "2m", "1.5h". Raises ConfigError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{what} {value} is not a time span", hint=_DURATION_HINT)
        return float(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    factor = _DURATION_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{what} {value!r} is not a duration", hint=_DURATION_HINT)
    return float(match[1]) * factor


def to_ns(duration_s: float) -> int:
    """Nanoseconds of `duration_s`."""
    return round(duration_s * 1e9)


def format_duration(duration_s: float) -> str:
    """`duration_s` for a person: "120 µs", "3.2 ms", "4.5 s", "12 min", "3.1 h", "2 d"."""
    size = abs(duration_s)
    if size == 0:
        return "0 s"
    for limit, factor, unit in (
        (1e-3, 1e6, "µs"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7200.0, 1 / 60, "min"),
        (172800.0, 1 / 3600, "h"),
    ):
        if size < limit:
            return f"{_three_digits(duration_s * factor)} {unit}"
    return f"{_three_digits(duration_s / 86400)} d"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_SIZE_HINT = "write a number with a unit, such as 256MiB, 1.5GiB or 4096"
_DURATION_HINT = "write a number with a unit, such as 500ms, 3s or 2m"
