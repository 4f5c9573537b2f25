"""What others have measured, and how far the model is from it. Everything "simulated" here is.

Used by `python -m sim packages --validate` and the tests. Each `Point` is one published figure beside the model's. A
model with as many constants as there are points proves nothing, so `FITS` says of each set how many of both there are,
and `fit_levels` and `fit_idle` show where the constants in `hardware` come from.

Where the model is off by more than 5 %, `EXPLAINED` says why.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.packages.hardware import HOSTS, Host
from sim.packages.machine import settle
from sim.packages.power import PackageStates, host_w, package_w
from sim.packages.residency import Floats, residency
from sustain.errors import RecordingError

# SPECpower_ssj2008, watts at 0, 10, … 100 % of the load that the server reached.
LEVELS: dict[str, tuple[float, ...]] = {
    "x5670-2": (66, 107, 120, 131, 143, 156, 173, 191, 211, 229, 247),
    "x5675-2": (58.4, 98, 109, 118, 128, 140, 153, 170, 189, 205, 222),
    "x3470-1": (41.6, 46.7, 52.3, 57.9, 65.4, 73, 80.7, 89.5, 99.6, 105, 113),
}
# The same, watts at rest with one package and with two: servers of different makers, medians where there are many.
IDLE: dict[str, tuple[float, float]] = {
    "8180": (38.8, 50.3),
    "7742": (64.2, 92.9),
    "9654": (66.9, 123.5),
    "8490h": (93.9, 160.0),
    "6787p": (123.0, 184.0),
}
FITS = {
    "rome": "5 constants (base, awake, C1, poll, second thread), 9 points on two lines and two steps",
    "parked": "3 constants (awake, PC2, wake-ups of an unused core), 4 watts and 1 residency, of two hosts",
    "levels": "4 constants (base, awake, active, boost), 11 points for each server",
    "results": "1 more for each processor (at full load), medians of 1 and of 2 packages; 4 packages are predicted",
    "idle": "6 constants (a base for all, and PC6 of each processor), 10 points",
}
EXPLAINED = {
    "9654": "the servers with one and with two of it differ by more than the second processor: with a base of its own "
    "instead of the one that all five share, that would be 10 W here, and 62 W for 6787p",
    "6787p": "servers with one of it rest between 90 W and 195 W in the same results, those with two between 157 W "
    "and 268 W: memory, fans and supplies of a server weigh more than 5 %; no median stands for them all",
    "7742": "at full load: medians of 241.5 W and 400 W would have a base of 83 W, not the 28.2 W that all share",
    "8490h": "at full load as 7742: 482 W is a single server's, servers with two lie between 718 W and 1043 W. Four "
    "packages are other servers (16 to 32 memory modules more, larger fans): at rest they draw half as much again",
    "8180": "four packages: as 8490h; none of the constants was fitted to them",
}


@dataclass(frozen=True)
class Point:
    """One figure: `published`, in `unit`, and the model's."""

    fit: str  # of FITS
    host: str
    what: str
    published: float
    simulated: float
    unit: str = "W"

    @property
    def deviation(self) -> float:
        return self.simulated / self.published - 1.0


@dataclass(frozen=True)
class Servers:
    """SPECpower's results of all servers with that many packages of a processor, in watts: at rest, at full load."""

    rest_w: tuple[float, ...]
    full_w: tuple[float, ...]


def points(results: Path | None = None) -> list[Point]:
    """All that is published; with a table of SPECpower's results also the medians in it."""
    known = [*rome(), *parked(), *levels(), *idle()]
    return known if results is None else known + servers_points(servers(results))


def rome(host: Host = HOSTS["rome-2"]) -> list[Point]:
    """Wall watts of 2 x 64 threads: states are set, as they were in the measurement; package states follow."""
    found = [
        ("all cores in C2", 99.05, 0, 0, 0),
        ("the first thread awake", 99.05 + 81, 1, 0, 0),
    ]
    found += [(f"{n} cores in C1", 180.22 + 0.091 * n, n, 0, 0) for n in (8, 32, 64)]
    found += [(f"{n} cores active", 180.04 + 0.332 * n, 0, n, 0) for n in (8, 64)]
    found += [(f"{n} cores active, both threads", 180.04 + 0.384 * n, 0, n, n) for n in (8, 64)]
    host = host.quiet()
    return [
        Point("rome", host.name, what, watts, _rome_w(host, c1, active, second))
        for what, watts, c1, active, second in found
    ]


def _rome_w(host: Host, c1: int, active: int, second: int) -> float:
    """Cores are counted from the first package on; C1 is a core that never stays idle long enough for C2."""
    number = np.arange(host.packages * host.cores).reshape(host.packages, host.cores)
    use = (number < active).astype(float)
    wakeups = np.where((number >= active) & (number < active + c1), 1e6, 0.0)
    came = residency(host, use, wakeups)
    states = PackageStates(
        active=np.zeros(host.packages),
        c1=came.c1.sum(axis=1),
        pc2=came.pc2,
        pc6=came.pc6,
        polling=use.sum(axis=1),
        smt=(number < second).sum(axis=1).astype(float),
    )
    return host_w(host, states)


def parked() -> list[Point]:
    """Gold 6130 hosts on which one package is parked and a core of each other one spins, in watts of a package."""
    found = []
    for name, rest_w, others_w in (("gold-6130-2", 45.0, 46.2), ("gold-6130-4", 44.7, 49.5)):
        host = HOSTS[name]
        use, wakeups = _unused(host)
        use[:-1, 0] = 1.0
        came = residency(host, use, wakeups)
        polling = np.append(np.ones(host.packages - 1), 0.0)
        states = PackageStates(
            active=use.sum(axis=1) - polling,
            c1=came.c1.sum(axis=1),
            pc2=came.pc2,
            pc6=came.pc6,
            polling=polling,
        )
        watts = package_w(host, states)
        found.append(Point("parked", name, "the parked package", rest_w, float(watts[-1])))
        found.append(Point("parked", name, "the others, on average", others_w, float(watts[:-1].mean())))
        if name == "gold-6130-2":
            found.append(Point("parked", name, "PC2 of the parked package", 0.925, float(came.pc2[-1]), ""))
    return found


def _unused(host: Host) -> tuple[Floats, Floats]:
    """Use and wake-ups of cores on which nothing is placed."""
    shape = (host.packages, host.cores)
    return np.full(shape, host.background), np.full(shape, host.wakeups_per_s)


def levels() -> list[Point]:
    """SPECpower's load levels."""
    return [
        Point("levels", name, f"{10 * number} % load", watts, at_load_w(HOSTS[name], number / 10))
        for name, all_watts in LEVELS.items()
        for number, watts in enumerate(all_watts)
    ]


def at_load_w(host: Host, load: float) -> float:
    """Watts at a share of full load, the same on all packages."""
    _, _, states = settle(host.quiet(), np.full(host.packages, load * host.cores))
    return host_w(host, states)


def idle() -> list[Point]:
    """SPECpower's active idle."""
    found = []
    for name, both in IDLE.items():
        for packages, watts in enumerate(both, start=1):
            host = HOSTS[f"{name}-2"].with_packages(packages)
            found.append(Point("idle", name, f"at rest, {packages} package(s)", watts, at_load_w(host, 0.0)))
    return found


def fit_levels(host: Host, watts: Sequence[float]) -> Floats:
    """Least squares, relative: base with PC6, awake beside that (0 if it were negative), active, boost."""
    rows = []
    for number in range(len(watts)):
        _, came, states = settle(host.quiet(), np.full(host.packages, number / 10 * host.cores))
        rows.append([1.0, (1 - came.pc6).sum(), states.active.sum(), (states.active**2).sum() / host.cores])
    table = np.array(rows)
    found = _least(table, watts)
    if found[1] < 0:
        found = np.insert(_least(np.delete(table, 1, axis=1), watts), 1, 0.0)
    return found


def fit_idle() -> Floats:
    """Least squares, relative: the base of all servers, then what a package at rest adds, in the order of IDLE."""
    rows, watts = [], []
    for number, both in enumerate(IDLE.values()):
        for packages, each in enumerate(both, start=1):
            row = np.zeros(1 + len(IDLE))
            row[0], row[1 + number] = 1.0, packages
            rows.append(row)
            watts.append(each)
    return _least(np.array(rows), watts)


def _least(table: Floats, watts: Sequence[float]) -> Floats:
    relative = table / np.array(watts)[:, None]
    found: Floats = np.linalg.lstsq(relative, np.ones(len(watts)), rcond=None)[0]
    return found


def servers(results: Path) -> dict[tuple[str, int], Servers]:
    """The results by processor (of IDLE) and number of packages, of single servers (up to four packages). `results` is
    a table as cloud-carbon-footprint/ccf-coefficients has it. Raises RecordingError for what is no such table."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    hint = "SPECpower's results as CSV, as in cloud-carbon-footprint/ccf-coefficients"
    try:
        with results.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                words = {word.strip("(),").lower() for word in row["CPU Description"].split()}
                for name in IDLE.keys() & words:
                    if row["Chips"] in ("1", "2", "4"):
                        both = float(row["avg. watts @ active idle"]), float(row["avg. watts @ 100%"])
                        found[name, int(row["Chips"])].append(both)
    except OSError as error:
        raise RecordingError(f"{results}: {error.strerror}", hint=hint) from error
    except (KeyError, ValueError) as error:
        raise RecordingError(f"{results}: is no such table: {error}", hint=hint) from None
    return {
        key: Servers(tuple(rest for rest, _ in rows), tuple(full for _, full in rows))
        for key, rows in found.items()
    }


def servers_points(known: dict[tuple[str, int], Servers]) -> list[Point]:
    """Medians at rest and at full load."""
    found = []
    for (name, packages), each in sorted(known.items()):
        host = HOSTS[f"{name}-2"].with_packages(packages)
        for what, all_w, load in (("at rest", each.rest_w, 0.0), ("at full load", each.full_w, 1.0)):
            text = (
                f"{what}, {packages} package(s): {len(all_w)} servers, {min(all_w):g} W to {max(all_w):g} W"
            )
            found.append(Point("results", name, text, statistics.median(all_w), at_load_w(host, load)))
    return found


def fit_full(known: dict[tuple[str, int], Servers], base_w: float) -> dict[str, float]:
    """What a package draws at full load, by processor: least squares, relative, of servers with one and with two."""
    found = {}
    for name in IDLE:
        medians = {n: statistics.median(known[name, n].full_w) for n in (1, 2) if (name, n) in known}
        table = np.array([[n / watts] for n, watts in medians.items()])
        rest = np.array([1 - base_w / watts for watts in medians.values()])
        found[name] = float(np.linalg.lstsq(table, rest, rcond=None)[0][0])
    return found
