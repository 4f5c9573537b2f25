"""`python -m sim failover`: run seeds; a seed that fails prints its story. `python -m sim packages`: power-aware
placement on a simulated host (`--help` tells more)."""

import argparse
import sys

from sim.failover import VARIANTS, run_seed
from sim.failover.broken import CORRECT
from sim.packages.command import main as packages


def main() -> int:
    if sys.argv[1:2] == ["packages"]:
        return packages(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("what", choices=("failover", "packages"))
    parser.add_argument("--seeds", type=int, default=300, metavar="N", help="how many (300)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first one (0)")
    parser.add_argument("--variant", default="correct", help="'correct', 'all', or a broken one by name")
    parser.add_argument("--story", action="store_true", help="print the story even if nothing is wrong")
    parser.add_argument("--list", action="store_true", help="list the broken variants")
    args = parser.parse_args()
    if args.list:
        for variant in VARIANTS:
            print(f"{variant.name:<22} {variant.why}; caught within {variant.within} seeds")
        return 0
    if args.variant == "all":
        return _all()
    variant = next((each for each in VARIANTS if each.name == args.variant), CORRECT)
    promotions = commits = outages = kept = handovers = 0
    for seed in range(args.first, args.first + args.seeds):
        outcome = run_seed(seed, variant)
        promotions += outcome.promotions
        commits += outcome.commits
        outages += outcome.outages
        kept += outcome.kept
        handovers += outcome.handovers
        if outcome.violation or args.story:
            print("\n".join(outcome.story))
        if outcome.violation:
            print(f"\nseed {seed}: {outcome.violation}")
            print(f"again: python -m sim failover --variant {variant.name} --first {seed} --seeds 1")
            return 1
    print(
        f"{args.seeds} simulated runs, {promotions} promotions, {commits} commits, {outages} outages, of which {kept} "
        f"put a battery's promise to the test, {handovers} handovers as asked: nothing wrong"
    )
    return 0


def _all() -> int:
    missed = 0
    for variant in VARIANTS:
        runs = (run_seed(seed, variant) for seed in range(variant.within))
        caught = next((out for out in runs if out.violation), None)
        said = "NOT CAUGHT" if caught is None else f"seed {caught.seed}: {caught.violation}"
        missed += caught is None
        print(f"{variant.name:<22} {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
