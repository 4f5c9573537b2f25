"""`python -m sim packages`: run policies over a load on a simulated host; `--validate` shows how far the model is from
what others have measured."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sim.packages import published
from sim.packages.groups import LOADS, Load
from sim.packages.hardware import HOSTS, Host
from sim.packages.optimum import Optimum
from sim.packages.ours import Ours
from sim.packages.policies import POLICIES
from sim.packages.run import Controller, Outcome, Peer, drive
from sim.packages.traces import recorded
from sustain.errors import SustainError

_KNOWN = ("sustain", *POLICIES, "optimum")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sim packages", description=__doc__)
    parser.add_argument("--host", choices=tuple(HOSTS), default="independent-4", help="(independent-4)")
    parser.add_argument(
        "--load", choices=tuple(LOADS), default="varying", help="made up, from a seed (varying)"
    )
    parser.add_argument("--trace", type=Path, metavar="PATH", help="recorded demand instead")
    parser.add_argument(
        "--step", type=float, default=300.0, metavar="SECONDS", help="of a recorded load (300)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is made up (1)")
    parser.add_argument("--hours", type=float, help="no more than that of the load")
    parser.add_argument("--scale", type=float, default=1.0, help="times the demand (1)")
    parser.add_argument("--policy", choices=_KNOWN, action="append", help="again for more (all)")
    parser.add_argument(
        "--tick", type=float, metavar="SECONDS", help="how often policies look (at each point)"
    )
    parser.add_argument("--list", action="store_true", help="list the hosts")
    parser.add_argument("--validate", action="store_true", help="the model beside published figures")
    parser.add_argument("--results", type=Path, metavar="CSV", help="SPECpower's results, for --validate")
    args = parser.parse_args(argv)
    try:
        if args.list:
            return _list()
        if args.validate:
            return _validate(args.results)
        load = recorded(args.trace, step_s=args.step) if args.trace else LOADS[args.load](args.seed)
        if args.hours:
            load = load.first(args.hours * 3600)
        return _run(load.scaled(args.scale), HOSTS[args.host], args.policy or _KNOWN, args.tick)
    except SustainError as error:
        print(f"{error}\n{error.hint}" if error.hint else error, file=sys.stderr)
        return 1


def controller(name: str, load: Load, host: Host) -> Controller:
    """A fresh one by its name."""
    if name == "sustain":
        return Ours(load, host)
    return Optimum(load, host) if name == "optimum" else Peer(POLICIES[name])


def _run(load: Load, host: Host, names: Sequence[str], tick_s: float | None) -> int:
    cores = load.demand.sum(axis=1)
    print(
        f"simulated: {load.name}, {len(load.names)} groups, {load.seconds / 3600:g} h, {cores.mean():.1f} cores wanted "
        f"(at most {cores.max():.1f}), on {host.name}: {host.packages} x {host.cores} cores, "
        f"{'coordinated' if host.coordinated else 'independent'}{', ' if host.note else ''}{host.note}"
    )
    print(
        f"{'':14}{'W':>9}{'saving':>9}{'above':>9}{'slower':>9}{'late':>9}{'moves/h':>9}{'parts/h':>9}{'parked':>8}"
    )
    spread = _one("spread", load, host, tick_s)
    for name in names:
        came = spread if name == "spread" else _one(name, load, host, tick_s)
        print(
            f"{name:14}{came.mean_w:>9.1f}{came.saving(spread):>9.2%}{came.above:>9.2%}{came.slower(spread):>9.2%}"
            f"{came.late:>9.2%}{came.moves_per_hour:>9.2f}{came.parts_per_hour:>9.2f}{came.parked:>8.2f}",
            flush=True,
        )
    print(
        "all of it simulated; saving and slower: beside spread; above: time above 80 % of a package's cores; moves: of "
        "groups; parts: what of them ran elsewhere than before, also what the kernel moved"
    )
    return 0


def _one(name: str, load: Load, host: Host, tick_s: float | None) -> Outcome:
    return drive(load, host, controller(name, load, host), tick_s=tick_s, free_moves=name == "optimum")


def _list() -> int:
    for host in HOSTS.values():
        kind = "coordinated" if host.coordinated else "independent"
        print(f"{host.name:14} {host.packages} x {host.cores} cores, {host.deep.name}, {kind}; {host.note}")
    return 0


def _validate(results: Path | None) -> int:
    of, off = "", 0
    for point in published.points(results):
        if point.fit != of:
            of = point.fit
            print(f"\n{of}: {published.FITS[of]}")
        far = abs(point.deviation) > 0.05
        off += far
        print(
            f"  {point.host:12}{point.what:76}{point.published:9.3f} published{point.simulated:9.3f} simulated "
            f"{point.unit:2}{point.deviation:+7.1%}{' off' if far else ''}"
        )
    print(f"\n{off} off by more than 5 %:" if off else "\nnone off by more than 5 %")
    for name, why in published.EXPLAINED.items() if off else ():
        print(f"  {name}: {why}")
    return 0
