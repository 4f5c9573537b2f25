"""Figures of one interval, made of two looks at cumulative counters. Pure.

Used by `decide` and the simulator's checks. A counter that went back began anew, so its interval is unknown; so is that
of a processor that was not there before. A package's counters are read rarely while it is parked: its figures are of
the time between the last two readings, and are absent when there was no new one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.packages.model import Cpus, Observation, Package

_LEAST_S = 0.05  # shorter intervals say nothing


@dataclass(frozen=True)
class Rates:
    """Of the time between two looks. By package, a figure that is unknown is not there."""

    passed_s: float
    busy: dict[int, float]  # processors of it in use, on average
    awake: dict[int, float]  # share of time that its busiest processor worked: it was awake at least so much
    residency: dict[int, dict[str, float]]  # by state, shares of time
    power_w: dict[int, float]
    read_for_s: dict[int, tuple[float, float]]  # of those residencies: how long, and how long ago that ended
    used: NDArray[np.float64]  # by group, processors in use; NaN: unknown
    pressure: float | None = None


@dataclass(frozen=True)
class Look:
    """What of an observation the next one is compared with."""

    now_s: float
    cpus: Cpus
    packages: dict[int, Package]
    names: tuple[str, ...]
    lives: tuple[str, ...]
    used_s: NDArray[np.float64]


def look(seen: Observation) -> Look:
    """What is to be kept of it."""
    packages = {each.number: each for each in seen.packages}
    return Look(seen.now_s, seen.cpus, packages, seen.groups.name, seen.groups.life, seen.groups.used_s)


def rates(before: Look, seen: Observation) -> Rates | None:
    """None: too little time has passed."""
    passed_s = seen.now_s - before.now_s
    if passed_s < _LEAST_S:
        return None
    busy, awake = use_between(before.cpus, seen.cpus, passed_s)
    residency: dict[int, dict[str, float]] = {}
    power_w: dict[int, float] = {}
    read_for_s: dict[int, tuple[float, float]] = {}
    for package in seen.packages:
        was = before.packages.get(package.number)
        if was is None:
            continue
        shares = residency_between(was, package)
        if shares is not None:
            assert was.read_s is not None
            assert package.read_s is not None
            residency[package.number] = shares
            read_for_s[package.number] = package.read_s - was.read_s, max(0.0, seen.now_s - package.read_s)
        watts = power_between(was, package)
        if watts is not None:
            power_w[package.number] = watts
    used = _used(before, seen, passed_s)
    return Rates(passed_s, busy, awake, residency, power_w, read_for_s, used, seen.pressure)


def residency_between(first: Package, second: Package) -> dict[str, float] | None:
    """Share of time in each state between two readings; None: not read anew, or not measurable."""
    if first.read_s is None or second.read_s is None or first.source != second.source:
        return None
    passed_s = second.read_s - first.read_s
    if passed_s < _LEAST_S or not second.residency_s:
        return None
    found = {}
    for state, seconds in second.residency_s.items():
        spent_s = seconds - first.residency_s.get(state, np.inf)
        if not spent_s >= 0:
            return None
        found[state] = min(1.0, spent_s / passed_s)
    return found


def power_between(first: Package, second: Package) -> float | None:
    """Watts between two readings; None: not read anew, or not measurable. A package without power is none."""
    if first.energy_j is None or second.energy_j is None or first.power_source != second.power_source:
        return None
    if first.energy_read_s is None or second.energy_read_s is None:
        return None
    passed_s, spent_j = second.energy_read_s - first.energy_read_s, second.energy_j - first.energy_j
    return spent_j / passed_s if passed_s >= _LEAST_S and spent_j > 0 else None


def use_between(before: Cpus, now: Cpus, passed_s: float) -> tuple[dict[int, float], dict[int, float]]:
    """By package: processors in use, and the share of time that the busiest one worked; without those unknown."""
    was = _rows(before.number, now.number)
    worked_s = now.busy_s - np.append(before.busy_s, np.nan)[was]
    rested_s = now.idle_s - np.append(before.idle_s, np.nan)[was]
    asleep_s = now.asleep_s - np.append(before.asleep_s, np.nan)[was]
    with np.errstate(invalid="ignore"):
        # Of what the kernel has accounted, which lags behind the clock by a tick or so.
        whole_s = worked_s + rested_s
        accounted = whole_s > 0.5 * passed_s
        share = np.clip(worked_s / np.where(accounted, whole_s, passed_s), 0.0, 1.0)
        up = np.where(asleep_s >= 0, np.clip(1.0 - asleep_s / passed_s, 0.0, 1.0), share)
    busy, awake = {}, {}
    for package in np.unique(now.package).tolist():
        rows = now.package == package
        shares = share[rows]
        if np.all(np.isfinite(shares) & (worked_s[rows] >= 0)):
            busy[package] = float(shares.sum())
            awake[package] = float(np.max(np.minimum(up, share)[rows]))
    return busy, awake


def _rows(before: NDArray[np.int32], now: NDArray[np.int32]) -> NDArray[np.intp]:
    """Where each of `now` was in `before`, both ascending; one beyond its end for what is new."""
    found = np.searchsorted(before, now)
    padded = np.append(before, -1)
    return np.where(padded[found] == now, found, len(before))


def _used(before: Look, seen: Observation, passed_s: float) -> NDArray[np.float64]:
    groups = seen.groups
    if groups.name == before.names and groups.life == before.lives:
        was_s = before.used_s
    else:
        index = {key: at for at, key in enumerate(zip(before.names, before.lives, strict=True))}
        rows = np.array([index.get(key, -1) for key in zip(groups.name, groups.life, strict=True)], np.intp)
        padded = np.append(before.used_s, np.nan)
        was_s = padded[rows]
    used = (groups.used_s - was_s) / passed_s
    with np.errstate(invalid="ignore"):
        return np.where(used >= 0, used, np.nan)
