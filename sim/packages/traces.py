"""Recorded loads: recordings of our own, and the traces that `bench.traces` reads.

Used by `python -m sim packages`, the benchmark and the tests. Of a recording of the packages scheduler a group's demand
is the processor time that it used: what it would have used with more room, nobody recorded. Each life of a group is a
group; before and after it there is none of it. Of other traces all groups begin at once (`bench.traces`).
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from bench import traces
from sim.packages.groups import Load, made_load
from sustain.errors import RecordingError
from sustain.schedulers.packages.model import Observation
from sustain.schedulers.recording import Recording, read_header


def recorded(
    path: Path, per_core: float = 2600.0, step_s: float = 300.0, seconds: float | None = None
) -> Load:
    """The load in a file, in steps of `step_s`, the first `seconds` of it. Of what is no recording of ours, `per_core`
    of its unit is a core (OpenDC's is MHz; Bitbrains' hosts ran at 2.6 GHz). Raises RecordingError."""
    if _is_ours(path):
        return _ours(path, step_s, seconds)
    trace = traces.read(path)
    names = trace.guests(len(trace.points))
    lasts_s = max(points[-1][0] for points in trace.points.values()) + step_s
    lasts_s = lasts_s if seconds is None else min(lasts_s, seconds)
    demand = np.array([trace.sampled(name, step_s, lasts_s) for name in names]).T / per_core
    return made_load(path.name, names, demand, step_s)


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begins = file.read(1) == b"{"
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}", hint="name a trace or a recording") from error
    return begins and read_header(path).scheduler == "packages"


def _ours(path: Path, step_s: float, seconds: float | None) -> Load:
    looks: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    threads: dict[tuple[str, str], float] = defaultdict(float)
    memory: dict[tuple[str, str], float] = defaultdict(float)
    first_s = last_s = None
    for seen in Recording(path, Observation, "packages"):
        first_s, last_s = seen.now_s if first_s is None else first_s, seen.now_s
        groups = seen.groups
        table = np.nan_to_num(groups.memory_bytes.reshape(len(groups), -1)).sum(axis=1) if len(groups) else []
        for row, key in enumerate(zip(groups.name, groups.life, strict=True)):
            if np.isfinite(groups.used_s[row]):
                looks[key].append((seen.now_s, float(groups.used_s[row])))
                threads[key] = max(threads[key], float(groups.threads[row]))
                memory[key] = max(memory[key], float(table[row]))
    keys = [key for key, points in looks.items() if len(points) > 1]
    if not keys or first_s is None or last_s is None:
        raise RecordingError(f"{path}: no group is in it twice", hint="record for longer")
    lasts_s = last_s - first_s if seconds is None else min(last_s - first_s, seconds)
    grid_s = first_s + step_s * np.arange(max(1, int(lasts_s / step_s)) + 1)
    used = np.array([np.interp(grid_s, *np.array(looks[key]).T) for key in keys])
    demand = np.clip(np.diff(used, axis=1), 0.0, None).T / step_s
    lives: dict[str, int] = defaultdict(int)
    for name, _ in keys:
        lives[name] += 1
    names = tuple(name if lives[name] == 1 else f"{name}, {life}" for name, life in keys)
    most = np.maximum(np.array([threads[key] for key in keys]), np.ceil(demand.max(axis=0)))
    return Load(path.name, names, demand, most, np.array([memory[key] for key in keys]), step_s)
