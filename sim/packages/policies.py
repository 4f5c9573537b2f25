"""Peers for placing groups on packages, each a pure function of what was seen: Seen → shares.

Used by `run`. `shares` (groups x packages) says which part of each group runs where; rows make 1. A group is placed
whole by all but the kernel's spread. What each is taken from:

- `spread`: what Linux does with threads that may run anywhere: all packages carry the same share. Its memory is always
  where it runs, which favours it.
- `static_mean`, `static_peak`: first fit in descending order, once, by each group's mean or highest demand of the whole
  run, which an operator would have to know beforehand.
- `irqbalance`: the rule of irqbalance's `--powerthresh` (`update_migration_status`) with groups in the place of
  interrupts, packages in that of CPUs, and a threshold of one: while no package's load is above the mean of all by a
  standard deviation, and one in use is below it by as much (or all are alike), that one is put into power save and its
  groups go to the least loaded; as soon as one is above, all get work again. It knows no capacity.
- `threshold`: Beloglazov and Buyya's rule of two fixed thresholds: from a package above 0.8 groups are moved, the
  smallest that suffices first; one below 0.5 is emptied if all its groups fit elsewhere below 0.8; each goes where
  watts rise least, which on like packages is the fullest that has room (best fit, descending).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.packages.residency import Floats

Places = NDArray[np.int64]  # a package of each group
OVERLOAD = 0.8
UNDERLOAD = 0.5


@dataclass(frozen=True)
class Seen:
    """What a peer may know at the beginning of an interval. Use is in cores, of the interval before."""

    step: int
    use: Floats  # of each group
    shares: Floats | None  # as they are; None: nothing is placed yet
    packages: int
    cores: int  # of each package
    mean: Floats  # of each group, of the whole run: for static packing
    peak: Floats


Policy = Callable[[Seen], Floats]


def spread(seen: Seen) -> Floats:
    return np.full((len(seen.use), seen.packages), 1.0 / seen.packages)


def static_mean(seen: Seen) -> Floats:
    return _static(seen, seen.mean)


def static_peak(seen: Seen) -> Floats:
    return _static(seen, seen.peak)


def irqbalance(seen: Seen) -> Floats:
    if seen.shares is None or seen.step == 0:
        return to_shares(_level(seen.use, seen.packages), seen.packages)
    at = places(seen.shares)
    load = loads(at, seen.use, seen.packages)
    saved = np.bincount(at, minlength=seen.packages) == 0  # in power save
    mean, deviation = load.mean(), load.std()
    under = load + deviation <= mean + 1e-12
    over = ~under & (load - deviation >= mean)
    if over.any():
        return to_shares(_level(seen.use, seen.packages), seen.packages) if saved.any() else seen.shares
    least = under & ~saved
    if not least.any() or saved.sum() + 1 == seen.packages:
        return seen.shares
    leaving = np.flatnonzero(least)[load[least].argmin()]
    kept = np.flatnonzero(~saved & (np.arange(seen.packages) != leaving))
    for group in sorted(np.flatnonzero(at == leaving), key=lambda group: -seen.use[group]):
        to = kept[load[kept].argmin()]
        at[group] = to
        load[to] += seen.use[group]
    return to_shares(at, seen.packages)


def threshold(seen: Seen) -> Floats:
    limit = OVERLOAD * seen.cores
    if seen.shares is None or seen.step == 0:
        return to_shares(_level(seen.use, seen.packages), seen.packages)
    at = places(seen.shares)
    load = loads(at, seen.use, seen.packages)
    for package in np.flatnonzero(load > limit).tolist():
        while load[package] > limit:
            here = np.flatnonzero((at == package) & (seen.use > 0))
            if len(here) < 2:
                break
            enough = here[seen.use[here] >= load[package] - limit]
            group = enough[seen.use[enough].argmin()] if len(enough) else here[seen.use[here].argmax()]
            to = _best_fit(seen.use[group], load, limit, package)
            if to is None:
                break
            load[package] -= seen.use[group]
            load[to] += seen.use[group]
            at[group] = to
    for package in np.argsort(load, kind="stable"):
        here = np.flatnonzero(at == package)
        if not len(here) or load[package] >= UNDERLOAD * seen.cores:
            continue
        tried, then = load.copy(), at.copy()
        tried[package] = np.inf  # takes nothing
        working = np.bincount(at, minlength=seen.packages) > 0
        tried[~working] = np.inf  # none is woken for this
        for group in sorted(here, key=lambda group: -seen.use[group]):
            to = _best_fit(seen.use[group], tried, limit, int(package))
            if to is None:
                break
            tried[to] += seen.use[group]
            then[group] = to
        else:
            tried[package] = 0.0
            load, at = np.where(np.isinf(tried), load, tried), then
    return to_shares(at, seen.packages)


def _static(seen: Seen, sizes: Floats) -> Floats:
    if seen.shares is not None:
        return seen.shares
    return to_shares(first_fit(sizes, seen.packages, OVERLOAD * seen.cores), seen.packages)


def first_fit(sizes: Floats, packages: int, limit: float) -> Places:
    """A package of each group, in descending order of size; what fits nowhere goes to the least loaded."""
    load, at = np.zeros(packages), np.zeros(len(sizes), np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        fits = np.flatnonzero(load + sizes[group] <= limit)
        at[group] = fits[0] if len(fits) else load.argmin()
        load[at[group]] += sizes[group]
    return at


def _level(sizes: Floats, packages: int) -> Places:
    """A package of each group, in descending order of size, always the least loaded."""
    load, at = np.zeros(packages), np.zeros(len(sizes), np.int64)
    count = np.zeros(packages)
    for group in np.argsort(-sizes, kind="stable"):
        at[group] = np.lexsort((count, load))[0]
        load[at[group]] += sizes[group]
        count[at[group]] += 1
    return at


def _best_fit(size: float, load: Floats, limit: float, but: int) -> int | None:
    """The fullest package that has room; an empty one only if no other has."""
    room = np.flatnonzero(load + size <= limit)
    room = room[room != but]
    return int(room[load[room].argmax()]) if len(room) else None


def places(shares: Floats) -> Places:
    """The package on which most of each group runs."""
    found: Places = shares.argmax(axis=1)
    return found


def to_shares(at: Places, packages: int) -> Floats:
    """Of groups that are placed whole."""
    found: Floats = np.eye(packages)[at]
    return found


def loads(at: Places, sizes: Floats, packages: int) -> Floats:
    """The sum of sizes on each package."""
    return np.bincount(at, sizes, packages).astype(np.float64)


POLICIES: dict[str, Policy] = {
    "spread": spread,
    "static, mean": static_mean,
    "static, peak": static_peak,
    "irqbalance": irqbalance,
    "threshold": threshold,
}
