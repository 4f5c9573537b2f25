"""The other half of `test_simulation`, and every broken variant caught."""

import pytest
from sim.replication import VARIANTS, Variant, run_seed

from .test_simulation import SHARDS, nothing_goes_wrong


@pytest.mark.parametrize("shard", range(1, SHARDS, 2))
def test_nothing_goes_wrong(shard: int) -> None:
    nothing_goes_wrong(shard, SHARDS)


# Those that take more seeds to show are for `python -m sim replication --variant all`.
@pytest.mark.parametrize(
    "variant", [each for each in VARIANTS if each.within <= 60], ids=lambda each: each.name
)
def test_every_broken_variant_is_caught(variant: Variant) -> None:
    for seed in range(variant.within):
        if run_seed(seed, variant).violation:
            return
    pytest.fail(f"{variant.name} ({variant.why}) was not caught within {variant.within} seeds")
