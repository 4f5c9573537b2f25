"""PATH.region.json: what the pre-copier is doing, for the supervisor and for people; PATH.power.json: what the
supervisor says of the power, for the pre-copier.

Both are replaced whole, so a reader sees one state or the next. Neither is made durable: after a power cut both
tell of a past that is over, and `sustain run` begins anew.

Rejected: control words in shared memory, as stores have them. A region is not our file, and nobody waits for
these values in microseconds.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain.errors import RegionIOError

_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One destination. `state`: connecting, streaming, sealed, failed, refused; `acked`: number of the seal held."""

    url: str
    state: str
    required: bool
    acked: int | None
    bandwidth_bytes_per_s: float | None
    behind_bytes: int | None
    sent_bytes: int
    error: str | None
    missing_pages: tuple[
        tuple[int, int], ...
    ] = ()  # (first, how many) while a seal is asked for: not known to be held
    missing_more: bool = False  # there are further ones


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """The file's shape (docs/json.md). `seal`: number of the next seal, in `final` and `sealed` of this one."""

    pid: int
    epoch: int
    phase: str
    seal: int
    dirty_bytes: int | None
    tracker: str
    tracker_why: str
    frozen_at_boottime_ns: int | None
    destinations: tuple[DestinationStatus, ...]
    usable_s: float | None
    budget_bytes: int | None
    still_share: float
    error: str | None
    updated_boottime_ns: int


class StatusFile:
    """Writes it, at most every 50 ms."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._next_s = 0.0
        self._last: dict[str, Any] | None = None

    def write(self, status: RegionStatus, *, now: bool = False) -> bool:
        """Whether it was written. `now`: a change of the phase is not kept back. Raises RegionIOError."""
        at_s = time.monotonic()
        if not now and at_s < self._next_s:
            return False
        fields = asdict(status)
        data = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        try:
            wholefile.replace(self._path, data, durable=False)
        except OSError as error:
            raise RegionIOError(
                f"{self._path}: {error.strerror}", hint="the directory must be writable and have room"
            ) from None
        self._next_s = at_s + _EVERY_S
        self._last = fields
        return True


def read_json(path: str | Path) -> dict[str, Any] | None:
    """What such a file says; None where there is none, or not a whole one."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def unused_number(path: str | Path, epoch: int) -> int:
    """The lowest number that a former pre-copier of this epoch has not sealed with, by its status; 0: there was
    none."""
    found = read_json(path) or {}
    number = found.get("seal")
    if found.get("epoch") != epoch or not isinstance(number, int) or isinstance(number, bool):
        return 0
    return number if found.get("phase") == "precopy" else number + 1


def usable_s(path: str | Path) -> float | None:
    """Seconds of battery that a drain may count on, as the supervisor says; None: unknown, or it never said."""
    found = (read_json(path) or {}).get("usable_s")
    if isinstance(found, bool) or not isinstance(found, (int, float)) or found < 0:
        return None
    return float(found)
