"""The real decisions over simulated hosts: nothing wrong in hundreds of seeds, and every broken variant caught.

More seeds: `python -m sim failover --seeds 100000`.
"""

import os

import pytest
from sim.failover import VARIANTS, Variant, run_seed

SEEDS = int(os.environ.get("SUSTAIN_SIM_SEEDS", "240"))
SHARDS = 8


@pytest.mark.parametrize("shard", range(SHARDS))
def test_nothing_goes_wrong(shard: int) -> None:
    promotions = outages = handovers = 0
    for seed in range(shard, SEEDS, SHARDS):
        outcome = run_seed(seed)
        assert not outcome.violation, "\n".join(outcome.story)
        promotions += outcome.promotions
        outages += outcome.outages
        handovers += outcome.handovers
    assert promotions > SEEDS // SHARDS, "the runs hardly take over; nothing was tried"
    assert outages > SEEDS // SHARDS // 2, "the power hardly fails"
    assert handovers > SEEDS // SHARDS // 4, "hardly anything is handed over"


def test_batteries_are_put_to_the_test() -> None:
    """Some of the runs end an outage with an empty battery that had been as good as its word."""
    assert any(run_seed(seed).kept for seed in range(SEEDS // 3))


# Those that take more seeds to show are for `python -m sim failover --variant all`.
@pytest.mark.parametrize(
    "variant", [each for each in VARIANTS if each.within <= 400], ids=lambda each: each.name
)
def test_every_broken_variant_is_caught(variant: Variant) -> None:
    known = () if variant.shows is None else (variant.shows,)
    for seed in (*known, *range(variant.within)):
        if run_seed(seed, variant).violation:
            return
    pytest.fail(f"{variant.name} ({variant.why}) was not caught within {variant.within} seeds")


def test_a_seed_always_tells_the_same_story() -> None:
    assert run_seed(3).story == run_seed(3).story
