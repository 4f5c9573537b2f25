"""Simulated hosts of several packages: energy, time above the head-room, slowdown and moves, by who places groups.

All of it is simulated (`sim/packages`; how far its watts are from measured ones: `python -m sim packages --validate`).
The same groups and the same host for each policy: ours with its defaults, told what `sustain packages test` finds on
the model; Linux's spread over all packages; packing once, by each group's mean or highest demand, which it is told
beforehand; irqbalance's rule; two thresholds (0.8 and 0.5). All look once a minute (ours more often while it measures),
and demand changes every five. The optimum knows each interval beforehand and moves for nothing, so nobody reaches it;
`gap` is the share of its energy by which the truth may be still lower. Savings are beside the spread. Ours plans for
0.75 of a package and peers pack to 0.8, so there is an optimum for each of these head-rooms, and ours is judged by
both.

What favours whom: static packing is told the future. Nobody has placed anything at the beginning, so a first placement
counts as a move of each group, for each policy. Ours lets the kernel balance a group over several packages, and each
group whose packages change counts as a move, by however little; what the kernel moves among them is in `parts`, as is
the share of each group that ran elsewhere after a move. For a group that is placed whole both are the same.

Loads: where SUSTAIN_BENCH_VM_TRACE names a file (`bench/traces.py` says of which kinds; for example Bitbrains'
fragments from OpenDC), all groups in it, for thirty days; and four that are made up from a seed
(`sim/packages/groups.py`). Hosts: 4 x 28 cores whose packages sleep each on their own (hypothetical: Xeons are
documented to coordinate), and 2 x 28 cores of the same that do coordinate; there nobody can save by packing.
"""

import os
from pathlib import Path

from sim.packages.command import controller
from sim.packages.groups import LOADS, Load
from sim.packages.hardware import HOSTS, Host
from sim.packages.optimum import Optimum
from sim.packages.policies import OVERLOAD, POLICIES
from sim.packages.run import Outcome, drive
from sim.packages.traces import recorded

from bench.harness import Answer
from sustain.schedulers.packages.policy import Policy

QUESTION = "energy, slowdown and moves by who places groups on packages (simulated)"
_DAYS = 30
_LOOK_S = 60.0
_INDEPENDENT, _COORDINATED = "independent-4", "8180-2"
_OWN = Policy().headroom
_OPTIMA = {"optimum": OVERLOAD, f"optimum, {_OWN:g}": _OWN}  # by the head-room that they keep
Table = dict[str, dict[str, float]]


def compare(load: Load, host: Host) -> tuple[dict[str, Outcome], dict[str, float]]:
    """What came of each policy, and the optima's gaps."""
    found = {
        name: drive(load, host, controller(name, load, host), tick_s=_LOOK_S)
        for name in ("sustain", *POLICIES)
    }
    gaps = {}
    for name, headroom in _OPTIMA.items():
        optimum = Optimum(load, host, headroom)
        found[name] = drive(load, host, optimum, free_moves=True)
        gaps[name] = optimum.gap
    return found, gaps


def figures(came: dict[str, Outcome], gaps: dict[str, float]) -> Table:
    """A row for each policy."""
    spread = came["spread"]
    rows = {
        name: {
            "W": each.mean_w,
            "saving": each.saving(spread),
            "above": each.above,
            "slower": each.slower(spread),
            "late": each.late,
            "moves/h": each.moves_per_hour,
            "parts/h": each.parts_per_hour,
            "parked": each.parked,
        }
        for name, each in came.items()
    }
    for name, gap in gaps.items():
        rows[name]["gap"] = gap
    return rows


def loads(quick: bool) -> tuple[dict[str, Load], str]:
    """By name, and what is to be said of them."""
    found = {name: make(1) for name, make in LOADS.items()}
    named = os.environ.get("SUSTAIN_BENCH_VM_TRACE")
    if not named:
        note = (
            "no trace: SUSTAIN_BENCH_VM_TRACE names a file (of which kind, and where from: bench/README.md)"
        )
    else:
        trace = recorded(Path(named), seconds=_DAYS * 86400.0)
        found = {"trace": trace, **found}
        cores = trace.demand.sum(axis=1)
        note = (
            f"trace: {len(trace.names)} groups, {trace.seconds / 86400:g} days, {cores.mean():.1f} cores wanted on "
            f"average, {cores.max():.1f} at most; 2600 of its unit (MHz) are a core"
        )
    if quick:
        found = {name: load.first(3 * 3600.0) for name, load in found.items()}
    return found, note


def answer(quick: bool = False) -> Answer:
    """Saving on the trace, or on varying load where there is none."""
    known, note = loads(quick)
    host = HOSTS[_INDEPENDENT]
    all_came = {name: compare(load, host) for name, load in known.items()}
    first = next(iter(known)) if "trace" in known else "varying"
    came, _ = all_came[first]
    spread = came["spread"]
    found = Answer(
        question=QUESTION,
        unit="share of energy saved",
        ours=came["sustain"].saving(spread),
        peers={name: came[name].saving(spread) for name in POLICIES if name != "spread"},
        limit={name: came[name].saving(spread) for name in _OPTIMA},
        runs=1,
        quick=quick,
        details={f"{name}, on {_INDEPENDENT}": figures(*each) for name, each in all_came.items()},
        notes=["simulated throughout; seeded, so one run is all there is", f"figures above: {first}", note],
    )
    for name, (each, _) in all_came.items():
        _judge(found, name, each)
    _coordinated(found, known)
    return found


def _judge(found: Answer, name: str, came: dict[str, Outcome]) -> None:
    ours, spread, threshold = came["sustain"], came["spread"], came["threshold"]
    for optimum, headroom in _OPTIMA.items():
        best = came[optimum].saving(spread)
        part = ours.saving(spread) / best if best > 0.005 else None
        found.ask(f"{name}: saving, 0.9 of the optimum's at {headroom:g}", part, lambda value: value >= 0.9)
    found.ask(f"{name}: slower than spread", ours.slower(spread), lambda value: value <= 0.01)
    found.ask(f"{name}: time above 80 % of a package", ours.above, lambda value: value <= 0.01)
    moves = ours.moves / threshold.moves if threshold.moves else None
    found.ask(f"{name}: moves, a tenth of the threshold rule's", moves, lambda value: value <= 0.1)


def _coordinated(found: Answer, known: dict[str, Load]) -> None:
    """Where packing cannot save: half of the load, two packages."""
    host = HOSTS[_COORDINATED]
    for name, load in known.items():
        came, gaps = compare(load.scaled(0.5), host)
        found.details[f"{name}, half of it, on {_COORDINATED}"] = figures(came, gaps)
        found.ask(
            f"{name}, coordinated: saving, not negative (0.1 % of noise)",
            came["sustain"].saving(came["spread"]),
            lambda value: value >= -0.001,
        )
