"""One plan for a million blocks of 2 MiB (2 TiB) on one core: a look, state and policy in; findings and actions out.

Blocks are made up: 16 targets, heat at random, estimated counts that are new for every block (of large ones as a
whole), a budget of a quarter of the blocks, which is taken by a random quarter since three minutes, so that these may
be kept, replaced, recounted or cold. Where a block has gone since the look before, what is remembered of the others has
to be found again: that stands beside it. There is no peer that plans so; 100,000 and 10,000 blocks stand beside it,
too. Neither counting nor acting is in it.
"""

import time
from functools import partial

import msgspec
import numpy as np

from bench.harness import Answer, interleave, medians
from sustain.schedulers.large_pages.decide import decide
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Blocks, HostView, Observation, Target
from sustain.schedulers.large_pages.plan import Plan
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import State

QUESTION = "one plan for the large pages of 1,000,000 blocks"
_TARGETS = 16
_REACH_MS = 100.0
_GONE = "one of them gone since"
_POLICY = Policy(budget_share=0.25, counting_s=0.0)


def made_up(count: int, at_s: float, seed: int) -> Observation:
    """All blocks newly counted; a quarter of them large, the first ones of each target."""
    rng = np.random.default_rng(seed)
    target = np.sort(rng.integers(0, _TARGETS, count)).astype(np.int32)
    share = rng.binomial(32, rng.random(count) * 0.9) / 32
    large = rng.random(count) < 0.25
    blocks = Blocks(
        target=target,
        address=(np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(BLOCK_BYTES),
        touched=np.where(large, 512 * (share > 0), share * 512).astype(np.float32),
        error=np.full(count, 40, np.float32),
        age_s=np.ones(count, np.float32),
        populated=np.full(count, 512, np.int16),
        large=large,
        whole=large,
        eligible=np.ones(count, np.bool_),
        guest_large=np.full(count, -1, np.int8),
    )
    targets = tuple(
        Target(name=f"t{number}", pid=number + 1, started=1, counting="damon", window_s=10.0)
        for number in range(_TARGETS)
    )
    host = HostView(total_bytes=4e12, free_bytes=2e12, available_bytes=3e12, pressure=0.0)
    return Observation(now_s=at_s, blocks=blocks, targets=targets, host=host)


def prepared(count: int) -> tuple[Observation, State]:
    """A look, and the state after five before it: three in which all blocks were small, and two in which a quarter had
    been large for so long by now that it may be mapped small again."""
    first = made_up(count, 1000.0, 1)
    state: State | None = None
    rng, none = np.random.default_rng(2), np.zeros(count, np.bool_)
    share = rng.binomial(32, rng.random(count) * 0.9) / 32
    small = msgspec.structs.replace(
        first.blocks, touched=(share * 512).astype(np.float32), large=none, whole=none
    )
    for number in range(3):
        seen = msgspec.structs.replace(first, now_s=first.now_s + 30.0 * number - 300.0, blocks=small)
        state = decide(seen, state, _POLICY, seen.now_s).state
    for before_s in (180.0, 150.0):
        seen = msgspec.structs.replace(first, now_s=first.now_s - before_s)
        state = decide(seen, state, _POLICY, seen.now_s).state
    assert state is not None
    return first, state


def answer(quick: bool = False) -> Answer:
    """Milliseconds of one plan."""
    rounds = 3 if quick else 15
    sizes = (10_000, 1000) if quick else (1_000_000, 100_000, 10_000)
    inputs = {f"{size} blocks": prepared(size) for size in sizes}
    most = f"{sizes[0]} blocks"
    seen, state = inputs[most]
    there = np.arange(len(seen.blocks)) != len(seen.blocks) // 2
    inputs[_GONE] = msgspec.structs.replace(seen, blocks=seen.blocks.rows(there)), state
    plans: dict[str, Plan] = {}

    def measure(name: str) -> float:
        seen, state = inputs[name]
        begun = time.perf_counter()
        plans[name] = decide(seen, state, _POLICY, seen.now_s).plan
        return (time.perf_counter() - begun) * 1e3

    figures = medians(interleave(rounds, {name: partial(measure, name) for name in inputs}))
    plan = plans[most]
    found = Answer(
        question=QUESTION,
        unit="ms",
        ours=figures[most],
        peers={},
        limit={},
        runs=rounds,
        quick=quick,
        details={
            "by number of blocks": {name: {"ms": ms} for name, ms in figures.items()},
            "the plan": {
                "collapses": len(plan.collapses),
                "demotions": len(plan.demotions),
                **{name: number for name, number in plan.as_dict()["findings"].items() if number},
            },
        },
    )
    found.ask(f"1,000,000 blocks within {_REACH_MS:g} ms", found.ours, lambda value: value <= _REACH_MS)
    found.ask(f"the same, {_GONE}", figures[_GONE], lambda value: value <= _REACH_MS)
    return found
