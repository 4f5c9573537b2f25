"""Recorded demand of guests from a file: our own recordings, CSV, or Parquet as OpenDC has its traces.

Used by `guest_memory_policies` and the simulator of packages. What a file is, is told by what it begins with, not by
its name:

- a recording of `sustain record`: demand is what the guest's memory is used for (active pages and what nobody can take;
  of a guest that tells no more, all that is not free);
- CSV with the columns `seconds`, `guest`, `demand`, in any unit: each guest is measured by its own highest;
- Parquet with the same three columns, or OpenDC's `id`, `duration` (ms) and `cpu_usage` (MHz): a row for each piece of
  time, in order. That is demand for processors; where it stands for demand for memory, whoever shows it must say so.

All guests begin at once, each with its own first point, whenever that was: nobody knows what a guest would have wanted
before it was there. In a recording each start of a guest, and each boot of the system in it, is a guest.
"""

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sustain.errors import RecordingError
from sustain.schedulers.guest_memory.model import Figures, Guest, Observation
from sustain.schedulers.recording import Recording

_OURS = ("seconds", "guest", "demand")
_OPENDC = ("id", "duration", "cpu_usage")
_Series = dict[str, list[tuple[float, float]]]
_HINT = (
    "a recording of `sustain record`, CSV or Parquet with seconds, guest and demand, or OpenDC's fragments"
)


@dataclass(frozen=True)
class Trace:
    """`points`: (seconds, demand from then on) of each guest, in order, each guest beginning at 0."""

    points: _Series
    demand: str  # what became demand, in words

    def guests(self, most: int) -> list[str]:
        """Those with the longest traces, from their first point to their last."""
        return sorted(self.points, key=lambda name: (-self._lasts_s(name), name))[:most]

    def sampled(self, name: str, every_s: float, seconds: float) -> list[float]:
        """Its demand at 0, `every_s`, … before `seconds`; its last one goes on."""
        points, at, found = self.points[name], 0, []
        for number in range(max(1, int(seconds / every_s))):
            while at + 1 < len(points) and points[at + 1][0] <= number * every_s:
                at += 1
            found.append(points[at][1])
        return found

    def _lasts_s(self, name: str) -> float:
        return self.points[name][-1][0] - self.points[name][0][0]


def read(path: Path) -> Trace:
    """Raises RecordingError for what is none of these."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}", hint=_HINT) from error
    if begin == b"PAR1":
        return _parquet(path)
    return _recording(path) if begin.startswith(b"{") else _csv(path)


def _made(path: Path, series: _Series, demand: str) -> Trace:
    if not series:
        raise RecordingError(f"{path}: nobody's demand is in it", hint=_HINT)
    points = {}
    for name, each in series.items():
        begin = min(each)[0]
        points[name] = sorted((at - begin, value) for at, value in each)
    return Trace(points, demand)


def _number(value: Any, what: str, where: str, least: float = -math.inf) -> float:
    """Raises RecordingError for what is no number, not finite, or less than `least`."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RecordingError(f"{where}: {what} must be a number, and is {value!r}", hint=_HINT) from None
    if not math.isfinite(found):
        raise RecordingError(f"{where}: {what} must be finite, and is {value}", hint=_HINT)
    if found < least:
        raise RecordingError(f"{where}: {what} must be at least {least:g}, and is {value}", hint=_HINT)
    return found


def _add(series: _Series, where: str, seconds: Any, guest: Any, demand: Any) -> None:
    if guest is None:
        raise RecordingError(f"{where}: has no guest", hint=_HINT)
    at_s = _number(seconds, "seconds", where)
    series[str(guest)].append((at_s, _number(demand, "demand", where, 0.0)))


def _csv(path: Path) -> Trace:
    series: _Series = defaultdict(list)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
        try:
            missing = [name for name in _OURS if name not in (rows.fieldnames or ())]
            if missing:
                raise RecordingError(f"{path}: has no column {', '.join(missing)}", hint=_HINT)
            for row in rows:
                _add(series, f"{path}: line {rows.line_num}", *(row[name] for name in _OURS))
        except csv.Error as error:
            raise RecordingError(f"{path}: line {rows.line_num}: {error}", hint=_HINT) from None
    return _made(path, series, "the column demand")


def _recording(path: Path) -> Trace:
    series: _Series = defaultdict(list)
    starts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    before_s = -math.inf
    for line, seen in enumerate(Recording(path, Observation, "guest-memory"), start=2):
        where = f"{path}: line {line}"
        if seen.at_s < before_s:
            raise RecordingError(
                f"{where}: is {before_s - seen.at_s:g} s before the line above it: of another boot of the host",
                hint="a recording is of one boot; take those of others out of it",
            )
        before_s = seen.at_s
        for guest in seen.guests:
            used, number = _used(guest.figures), _start(guest, starts[guest.name])
            if used is not None:
                name = guest.name if not number else f"{guest.name}, start {number + 1}"
                _add(series, where, seen.at_s, name, used)
    return _made(path, series, "what the guests used their memory for")


def _start(guest: Guest, known: list[tuple[str, str]]) -> int:
    """Which of its starts (life, boot) this is, from 0; a boot that is not told yet is the last one of that life."""
    for number in reversed(range(len(known))):
        life, boot = known[number]
        if life == guest.life and (not boot or not guest.boot or boot == guest.boot):
            known[number] = (life, guest.boot or boot)
            return number
    known.append((guest.life, guest.boot))
    return len(known) - 1


def _used(figures: Figures) -> float | None:
    active, buffers = figures.active_anonymous_bytes, figures.active_buffer_bytes
    if active is not None and buffers is not None and figures.unreclaimable_bytes is not None:
        return active + buffers + figures.unreclaimable_bytes
    if figures.total_bytes is not None and figures.free_bytes is not None:
        return figures.total_bytes - figures.free_bytes
    return None


def _parquet(path: Path) -> Trace:
    try:
        import duckdb
    except ImportError:
        raise RecordingError(
            f"{path}: is Parquet, and duckdb is not there", hint="pip install duckdb"
        ) from None
    try:
        with duckdb.connect() as database:
            asked = database.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [each[0] for each in asked.description or ()]
            rows = asked.fetchall()
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raise RecordingError(f"{path}: is no Parquet that can be read: {said}", hint=_HINT) from None
    wanted = _OURS if set(_OURS) <= set(names) else _OPENDC
    if not set(wanted) <= set(names):
        raise RecordingError(f"{path}: has the columns {', '.join(names)}", hint=_HINT)
    columns = [names.index(name) for name in wanted]
    series: _Series = defaultdict(list)
    ends: dict[str, float] = defaultdict(float)
    for number, row in enumerate(rows, start=1):
        where, picked = f"{path}: row {number}", [row[column] for column in columns]
        if any(value is None for value in picked):
            raise RecordingError(f"{where}: a value of {', '.join(wanted)} is missing", hint=_HINT)
        if wanted is _OURS:
            _add(series, where, *picked)
            continue
        name = str(picked[0])
        lasts_ms = _number(picked[1], "duration", where, 0.0)
        series[name].append((ends[name], _number(picked[2], "cpu_usage", where, 0.0)))
        ends[name] += lasts_ms / 1000
    if wanted is _OURS:
        return _made(path, series, "the column demand")
    return _made(path, series, "cpu_usage: demand for processors, which stands for demand for memory")
