"""Recorded demand of guests from a file: our own recordings, CSV, or Parquet as OpenDC has its traces.

Used by `guest_memory_policies`. What a file is, is told by what it begins with, not by its name:

- a recording of `sustain record`: demand is what the guest's memory is used for (active pages and what nobody can take;
  of a guest that tells no more, all that is not free);
- CSV with the columns `seconds`, `guest`, `demand`, in any unit: each guest is measured by its own highest;
- Parquet with the same three columns, or OpenDC's `id`, `duration` (ms) and `cpu_usage` (MHz): a row for each piece of
  time, in order. That is demand for processors; it stands for demand for memory, and whoever shows it must say so. All
  guests begin at once.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import RecordingError
from sustain.schedulers.guest_memory.model import Figures, Observation
from sustain.schedulers.recording import Recording

_OURS = ("seconds", "guest", "demand")
_OPENDC = ("id", "duration", "cpu_usage")
_HINT = (
    "a recording of `sustain record`, CSV or Parquet with seconds, guest and demand, or OpenDC's fragments"
)


@dataclass(frozen=True)
class Trace:
    """`points`: (seconds, demand from then on) of each guest, in order, beginning at 0."""

    points: dict[str, list[tuple[float, float]]]
    demand: str  # what became demand, in words

    def guests(self, most: int) -> list[str]:
        """Those with the longest traces."""
        return sorted(self.points, key=lambda name: (-self.points[name][-1][0], name))[:most]

    def sampled(self, name: str, every_s: float, seconds: float) -> list[float]:
        """Its demand at 0, `every_s`, … before `seconds`; its last one goes on."""
        points, at, found = self.points[name], 0, []
        for number in range(max(1, int(seconds / every_s))):
            while at + 1 < len(points) and points[at + 1][0] <= number * every_s:
                at += 1
            found.append(points[at][1])
        return found


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


def _made(path: Path, series: dict[str, list[tuple[float, float]]], demand: str) -> Trace:
    if not series:
        raise RecordingError(f"{path}: nobody's demand is in it", hint=_HINT)
    begin = min(min(points)[0] for points in series.values())
    points = {name: sorted((at - begin, value) for at, value in each) for name, each in series.items()}
    return Trace(points, demand)


def _csv(path: Path) -> Trace:
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
        missing = [name for name in _OURS if name not in (rows.fieldnames or ())]
        if missing:
            raise RecordingError(f"{path}: has no column {', '.join(missing)}", hint=_HINT)
        for row in rows:
            try:
                series[row["guest"]].append((float(row["seconds"]), float(row["demand"])))
            except (TypeError, ValueError):
                raise RecordingError(
                    f"{path}: line {rows.line_num}: seconds and demand must be numbers", hint=_HINT
                ) from None
    return _made(path, series, "the column demand")


def _recording(path: Path) -> Trace:
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seen in Recording(path, Observation, "guest-memory"):
        for guest in seen.guests:
            used = _used(guest.figures)
            if used is not None:
                series[guest.name].append((seen.at_s, used))
    return _made(path, series, "what the guests used their memory for")


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
    picked = [tuple(row[column] for column in columns) for row in rows]
    if any(value is None for row in picked for value in row):
        raise RecordingError(f"{path}: a value of {', '.join(wanted)} is missing", hint=_HINT)
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    if wanted is _OURS:
        for at, guest, demand in picked:
            series[str(guest)].append((float(at), float(demand)))
        return _made(path, series, "the column demand")
    ends: dict[str, float] = defaultdict(float)
    for guest, duration, usage in picked:
        name = str(guest)
        series[name].append((ends[name], float(usage)))
        ends[name] += float(duration) / 1000
    return _made(path, series, "cpu_usage: demand for processors, which stands for demand for memory")
