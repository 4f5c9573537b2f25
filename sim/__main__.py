"""`python -m sim failover`, `python -m sim replication`: run seeds; a seed that fails prints its story. `python -m sim
packages`: power-aware placement on a simulated host (`--help` tells more)."""

import argparse
import importlib
import sys
from types import ModuleType
from typing import Any

from sim.packages.command import main as packages


def main() -> int:
    if sys.argv[1:2] == ["packages"]:
        return packages(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("what", choices=("failover", "replication", "packages"))
    parser.add_argument("--seeds", type=int, default=300, metavar="N", help="how many (300)")
    parser.add_argument("--first", "--seed", type=int, default=0, metavar="SEED", help="the first one (0)")
    parser.add_argument("--variant", default="correct", help="'correct', 'all', or a broken one by name")
    parser.add_argument("--story", action="store_true", help="print the story even if nothing is wrong")
    parser.add_argument("--list", action="store_true", help="list the broken variants")
    args = parser.parse_args()
    sim = importlib.import_module(f"sim.{args.what}")
    variants = {each.name: each for each in (*sim.VARIANTS, sim.CORRECT)}
    if args.list:
        for variant in sim.VARIANTS:
            print(f"{variant.name:<22} {variant.why}; caught within {variant.within} seeds")
        return 0
    if args.variant == "all":
        return _all(sim)
    if args.variant not in variants:
        parser.error(f"no variant {args.variant}; --list shows them")
    return _run(sim, args, variants[args.variant])


def _run(sim: ModuleType, args: argparse.Namespace, variant: Any) -> int:
    total = None
    for seed in range(args.first, args.first + args.seeds):
        outcome = sim.run_seed(seed, variant)
        total = outcome if total is None else total + outcome
        if outcome.violation or args.story:
            print("\n".join(outcome.story))
        if outcome.violation:
            print(f"\nseed {seed}: {outcome.violation}")
            print(f"again: python -m sim {args.what} --variant {variant.name} --seed {seed} --seeds 1")
            return 1
    print(f"{args.seeds} simulated runs{'' if total is None else f', {total}'}: nothing wrong")
    return 0


def _all(sim: ModuleType) -> int:
    missed = 0
    for variant in sim.VARIANTS:
        runs = (sim.run_seed(seed, variant) for seed in range(variant.within))
        caught = next((out for out in runs if out.violation), None)
        said = "NOT CAUGHT" if caught is None else f"seed {caught.seed}: {caught.violation}"
        missed += caught is None
        print(f"{variant.name:<22} {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
