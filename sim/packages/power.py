"""Watts of a simulated host, from the state of its packages. Pure, and simulated: a real host's watts are measured.

Used by `machine` and `published`. Of package p, with the constants of `hardware.Watts`:

    awake·awake_w + PC2·pc2_w + PC6·pc6_w + a·(active_w + boost_w·a/cores) + poll·poll_w + second·smt_w + c1·c1_w

where awake, PC2 and PC6 are shares of time that make 1, and a, poll, second and c1 mean numbers of its cores (of
second threads) in that state; base_w of the host comes on top. Leaving a deep state costs what the package draws awake
for the time of the exit: that time is not in the residency (`residency`). The form is that of the lines measured on
Rome (TU Dresden 2021: a step for the first thread awake, then so much for each core); the term with a² is the rise of
clock and voltage with load that SPECpower's levels show.
"""

from dataclasses import dataclass, field

import numpy as np

from sim.packages.hardware import Host
from sim.packages.residency import Floats


@dataclass(frozen=True)
class PackageStates:
    """Of each package: mean numbers of cores (`smt`: of second threads) and shares of time."""

    active: Floats
    c1: Floats
    pc2: Floats
    pc6: Floats
    polling: Floats = field(default_factory=lambda: np.zeros(1))
    smt: Floats = field(default_factory=lambda: np.zeros(1))


def package_w(host: Host, states: PackageStates) -> Floats:
    """Watts of each package."""
    of = host.watts
    awake = 1.0 - states.pc2 - states.pc6
    found: Floats = (
        awake * of.awake_w
        + states.pc2 * of.pc2_w
        + states.pc6 * of.pc6_w
        + states.active * (of.active_w + of.boost_w * states.active / host.cores)
        + states.polling * of.poll_w
        + states.smt * of.smt_w
        + states.c1 * of.c1_w
    )
    return found


def host_w(host: Host, states: PackageStates) -> float:
    """Watts of all of it."""
    return float(host.watts.base_w + package_w(host, states).sum())
