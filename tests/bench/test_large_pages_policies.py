"""The simulated host for large pages, and the peers on it: what is true of each by its construction."""

import numpy as np
import pytest
from bench.large_pages_policies import PEERS, Run, ours, run
from sim.large_pages.loads import LOADS
from sim.large_pages.world import World

from sustain.schedulers.large_pages.model import PAGES


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_keeps_to_its_budget(name: str) -> None:
    assert run("high", PEERS[name], 0.1, 200.0).large <= 0.1 * 4096


def test_an_oracle_covers_most_and_address_order_comes_late_to_what_lies_high() -> None:
    best = run("high", PEERS["oracle"], 0.25, 100.0).coverage[-1]
    first = run("high", PEERS["address order"], 0.25, 100.0).coverage[-1]
    found = run("high", ours(), 0.25, 200.0).coverage[-1]
    assert first < 0.2 < found <= best


def test_everything_large_covers_everything_and_fills_all_that_is_not_there() -> None:
    came = run("sparse", PEERS["address order"], 1.0, 600.0)
    (load,) = LOADS["sparse"](1)
    assert came.coverage[-1] == 1.0
    assert came.bloat_bytes == (PAGES - load.present).sum() * 4096


def test_estimated_counts_are_off_by_what_they_say() -> None:
    world = World(LOADS["high"](1), samples=32)
    seen = world.seen()
    off = (seen.blocks.touched - world.used) / seen.blocks.error
    assert 0.8 < float(np.sqrt(np.mean(off**2))) < 1.2


def test_time_to_coverage_is_that_from_which_on_it_was_there() -> None:
    assert Run((0.0, 0.95, 0.5, 0.9, 1.0), 1, 0.0, 10.0).reached_s() == 40.0
    assert Run((1.0, 1.0, 0.2, 1.0), 1, 0.0, 10.0).reached_s(20.0) == 20.0
    assert Run((1.0, 1.0), 1, 0.0, 10.0).reached_s() == 10.0
    assert Run((0.0, 0.0), 1, 0.0, 10.0).reached_s() is None
