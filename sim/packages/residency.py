"""Shares of time in idle states, of cores and packages, from how much cores are used and how often they wake. Pure.

Used by `machine` and `published`. The model: a core that is used the share u of time and woken λ times a second has
idle intervals of the mean m = (1 - u)/λ, exponentially distributed: wake-ups come from timers and interrupts that know
nothing of each other. An interval shorter than a state's target residency T does not reach it (the governor is taken
to foresee that), and of one that does, the exit E is spent waking. The share of time in the state is so

    (1 - u) · (1 + (T - E)/m) · exp(-T/m)

since ∫ (x - E)·exp(-x/m)/m dx from T on is (T + m - E)·exp(-T/m). A package is idle while all its cores are: for the
share Π(1 - u) of time, in intervals that the first waking core ends, so of the mean 1/Σ(1/m); it gets no deeper than
all of its cores may. A coordinated state asks that of the cores of all packages.

`aligned`, from 0 to 1, leads over to cores that work and wake at the same times: the idle share is then that of the
most used core, and the wake-ups are those of the core that has most. Rejected: a simulation event by event, which takes
minutes for a month and needs the same distributions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.packages.hardware import Host, IdleState

Floats = NDArray[np.float64]
_MOST_PER_S = 1e9  # wake-ups of a core that is never idle


@dataclass(frozen=True)
class Residency:
    """Shares of time. Of cores (packages x cores): in C1 and in the deep state; of packages: in PC2 and PC6."""

    c1: Floats
    deep: Floats
    pc2: Floats
    pc6: Floats


def residency(host: Host, use: Floats, wakeups_per_s: Floats, aligned: float = 0.0) -> Residency:
    """`use` (of time, 0 to 1) and `wakeups_per_s` of each core: packages x cores."""
    idle = np.clip(1.0 - use, 0.0, 1.0)
    ends_per_s = np.minimum(wakeups_per_s / np.maximum(idle, 1e-12), _MOST_PER_S)  # 1/m
    deep = idle * _reached(host.deep, ends_per_s)
    own_idle, own_ends = _together(idle, ends_per_s, aligned, axis=1)
    shallow = own_idle * _reached(host.deep, own_ends)  # all cores are deep
    if host.coordinated:
        all_idle, all_ends = _together(idle, ends_per_s, aligned, axis=None)
        pc6 = np.full(len(use), all_idle * _reached(host.deep.of_package, all_ends))
    else:
        pc6 = own_idle * _reached(host.deep.of_package, own_ends)
    pc2 = np.maximum(shallow - pc6, 0.0) if host.pc2 else np.zeros(len(use))
    return Residency(c1=idle - deep, deep=deep, pc2=pc2, pc6=pc6)


def _reached(state: IdleState, ends_per_s: Any) -> Any:
    """The share of idle time in a state, of intervals with that rate of ending."""
    return (1.0 + (state.target_s - state.exit_s) * ends_per_s) * np.exp(-state.target_s * ends_per_s)


def _together(idle: Floats, ends_per_s: Floats, aligned: float, axis: int | None) -> tuple[Any, Any]:
    """The share of time in which all of them are idle, and the rate at which that ends."""
    share = (1.0 - aligned) * idle.prod(axis) + aligned * idle.min(axis)
    ends = (1.0 - aligned) * ends_per_s.sum(axis) + aligned * ends_per_s.max(axis)
    return share, np.minimum(ends, _MOST_PER_S)
