"""Simulated processes whose use of each page is known: what large pages cover, by the order in which blocks get them.

All of it is simulated (`sim/large_pages`): 4096 blocks (8 GiB), counted as often as by
default (`PERIODS_S`). `coverage` is the share of accesses
that fall in large pages, all used pages being accessed alike. Ours sees counts as DAMON gives them (32 samples of each
block, so with its error) and, beside that, exact ones; everything else is our default policy, phase one of a minute
with nothing mapped large included. Peers have the same budget; they get no counts and begin at once
(`bench/peers/paging.py`). The oracle knows the truth.

Asked: at budgets of 10, 25 and 50 % of all blocks, the coverage, and that of each large page spent, beside the
oracle's: by the second alone whoever maps fewer would win. On a load
most of whose blocks are hardly there, without a budget: memory that is filled, beside a system that maps
everything large, and the coverage that is left; a row beside it fills nothing but what pays by itself.
And how long it takes to 90 % of the final coverage, from the start, and from a change of all heat. The load that moves
is shown with both ways of recounting large blocks: what is used a little stays large where only idleness is seen, since
a large block has one accessed bit.

What a large page brings in time is not in it: `large_pages_speed` measures that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from sim.large_pages.loads import LOADS, MOVES_S
from sim.large_pages.world import Controller, Ours, World

from bench.harness import Answer
from bench.peers.paging import KHUGEPAGED_PACE, AddressOrder, Oracle, RandomOrder
from sustain.schedulers.large_pages.counting import PERIODS_S
from sustain.schedulers.large_pages.model import BLOCK_BYTES
from sustain.schedulers.large_pages.policy import Policy

QUESTION = "accesses covered by large pages, by the order in which blocks get them (simulated)"
_SAMPLES = 32
_BUDGETS = (0.10, 0.25, 0.50)
_GIB = float(1 << 30)
Table = dict[str, dict[str, float | None]]
Make = Callable[[World, int], Controller]  # from a world and a budget in blocks


@dataclass(frozen=True)
class Run:
    """What came of one."""

    coverage: tuple[float, ...]  # after each period
    large: int
    bloat_bytes: float
    period_s: float

    def reached_s(self, after_s: float = 0.0) -> float | None:
        """From `after_s` to 90 % of the final coverage; None: there is none."""
        first = round(after_s / self.period_s)
        wanted = 0.9 * self.coverage[-1]
        below = [number for number, each in enumerate(self.coverage[first:]) if each < wanted]
        return None if not wanted else (below[-1] + 2 if below else 1) * self.period_s

    @property
    def mean(self) -> float:
        """Of the last fifth: estimates move, and so may what is large."""
        last = self.coverage[-max(1, len(self.coverage) // 5) :]
        return float(np.mean(last))


def run(load: str, make: Make, budget: float, seconds: float, samples: int = _SAMPLES, seed: int = 1) -> Run:
    """One policy on one load. `budget`: of all blocks."""
    period_s = PERIODS_S["damon" if samples else "page-idle"]
    world = World(LOADS[load](seed), period_s=period_s, samples=samples, seed=seed)
    controller = make(world, int(budget * len(world.large)))
    covered = []
    for _ in range(round(seconds / world.period_s)):
        world.step(controller)
        covered.append(world.coverage)
    return Run(tuple(covered), int(world.large.sum()), world.bloat_bytes, world.period_s)


def ours(**policy: object) -> Make:
    """With the default policy but for these."""
    return lambda _, budget: Ours(
        msgspec.structs.replace(Policy(**policy), budget_bytes=budget * BLOCK_BYTES)  # type: ignore[arg-type]
    )


PEERS: dict[str, Make] = {
    "address order": lambda _, budget: AddressOrder(budget),
    "khugepaged's pace": lambda world, budget: AddressOrder(budget, round(KHUGEPAGED_PACE * world.period_s)),
    "random order": lambda _, budget: RandomOrder(budget, 7),
    "oracle": lambda world, budget: Oracle(budget, world),
}


def by_budget(load: str, seconds: float) -> dict[str, dict[str, Run]]:
    """Runs by budget and policy."""
    makes = {"sustain": ours(), **PEERS}
    found = {
        f"{budget:.0%}": {name: run(load, make, budget, seconds) for name, make in makes.items()}
        for budget in _BUDGETS
    }
    for budget in _BUDGETS:
        found[f"{budget:.0%}"]["exact counts"] = run(load, ours(), budget, seconds, samples=0)
    return found


def answer(quick: bool = False) -> Answer:
    """Coverage for each large page, beside the oracle's, on the load with scattered heat at 25 %."""
    seconds = 300.0 if quick else 1800.0
    runs = {load: by_budget(load, seconds) for load in ("scattered", "high", "sparse")}
    middle = runs["scattered"]["25%"]
    found = Answer(
        question=QUESTION,
        unit="share of accesses at 25 %",
        ours=middle["sustain"].mean,
        peers={name: middle[name].mean for name in ("address order", "random order")},
        limit={"oracle": middle["oracle"].mean},
        runs=1,
        quick=quick,
        notes=["simulated throughout; seeded, so one run is all there is"],
    )
    for load, budgets in runs.items():
        found.details[f"coverage: {load}"] = {
            budget: {name: each.mean for name, each in by_name.items()} for budget, by_name in budgets.items()
        }
        for budget, by_name in budgets.items():
            of_oracle = _each(by_name["sustain"]) / _each(by_name["oracle"])
            found.ask(
                f"{load}, budget {budget}: coverage per large page, 0.95 of the oracle's",
                of_oracle,
                lambda value: value >= 0.95,
            )
            whole = by_name["sustain"].mean / by_name["oracle"].mean
            found.ask(
                f"{load}, budget {budget}: coverage, 0.95 of the oracle's", whole, lambda value: value >= 0.95
            )
    found.details["seconds to 90 % of the final coverage, at 25 %"] = {
        load: {name: each.reached_s() for name, each in budgets["25%"].items()}
        for load, budgets in runs.items()
    }
    _sparse(found, seconds)
    _moving(found, 400.0 if quick else 2 * MOVES_S)
    return found


def _each(run: Run) -> float:
    """Coverage for each large page."""
    return run.mean / max(1, run.large)


def _sparse(found: Answer, seconds: float) -> None:
    """Without a budget: memory filled, and coverage."""
    everything = {"sustain": ours(), "nothing to spare": ours(spare_share=0.0)}
    rows = {name: run("sparse", make, 1.0, seconds) for name, make in everything.items()}
    rows["all large"] = run("sparse", PEERS["address order"], 1.0, seconds)
    found.details["sparse, without a budget"] = {
        name: {"coverage": each.mean, "filled GiB": each.bloat_bytes / _GIB, "large": each.large}
        for name, each in rows.items()
    }
    less = 1 - rows["sustain"].bloat_bytes / rows["all large"].bloat_bytes
    found.ask("sparse: memory filled, at least 76 % less than all large", less, lambda value: value >= 0.76)
    found.ask("sparse: coverage at the same time", rows["sustain"].mean, lambda value: value >= 0.90)


def _moving(found: Answer, seconds: float) -> None:
    """All heat goes elsewhere, at a budget that holds it: how long until that is followed."""
    makes = {
        "sustain": ours(),
        "idleness alone": ours(recount="idleness"),
        "recounts, 5 % at a time": ours(recount_share=0.05),
        **PEERS,
    }
    table: Table = {}
    for name, make in makes.items():
        came = run("moving", make, 0.25, seconds)
        before = came.coverage[: math.ceil(MOVES_S / came.period_s) - 1]
        table[name] = {
            "before": before[-1],
            "at the end": came.mean,
            "s to 90 % from the start": _first_s(before, came.period_s),
            "s to 90 % from the change": came.reached_s(MOVES_S) if seconds > MOVES_S else None,
        }
    found.details["moving, at 25 %"] = table


def _first_s(covered: Sequence[float], period_s: float) -> float | None:
    """When 90 % of the last was there."""
    reached = [number for number, each in enumerate(covered) if each >= 0.9 * covered[-1] > 0]
    return (reached[0] + 1) * period_s if reached else None
