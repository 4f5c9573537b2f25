"""Whole hosts of the product on simulated machines: nothing wrong in a thousand seeds (half of them here, half in
`test_simulation_more`), and the same story each time.

More seeds: `python -m sim replication --seeds 100000`.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim.replication import run_seed, seams

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("SUSTAIN_SIM_SEEDS", "1000"))
SHARDS = 10


def nothing_goes_wrong(first: int, step: int) -> None:
    """Seeds `first`, `first` + `step`, … below SEEDS."""
    promotions = commits = looks = runs = 0
    for seed in range(first, SEEDS, step):
        outcome = run_seed(seed)
        assert not outcome.violation, "\n".join(outcome.story)
        promotions += outcome.promotions
        commits += outcome.commits
        looks += outcome.looks
        runs += 1
    assert promotions > runs, "the runs hardly take over; nothing was tried"
    assert commits > 10 * runs, "hardly anything is committed"
    assert looks > 5 * runs, "stores are hardly looked at"


@pytest.mark.parametrize("shard", range(0, SHARDS, 2))
def test_nothing_goes_wrong(shard: int) -> None:
    nothing_goes_wrong(shard, SHARDS)


def test_a_seed_always_tells_the_same_story() -> None:
    """In this process, and in another with other hashes."""
    story = run_seed(3).story
    assert run_seed(3).story == story
    again = subprocess.run(
        [sys.executable, "-m", "sim", "replication", "--seed", "3", "--seeds", "1", "--story"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert again.stdout.splitlines()[:-1] == story


def test_everything_is_put_back_as_it_was() -> None:
    import threading
    import time

    run_seed(1)
    for module in seams.THREADS:
        assert module.threading is threading
    for module in seams.CLOCKS:
        assert module.time is time


# Modules of the product that wait for something, and are not part of simulated hosts.
_NOT_SIMULATED = {
    "replication/authority": "makes certificates",
    "replication/fetch": "stores that arrive are not simulated",
    "replication/getter": "of a fetch",
    "replication/giver": "of a fetch",
    "replication/tls": "simulated links are closed networks",
}


def waits(source: str) -> set[str]:
    """What a module imports that waits, or tells the time."""
    wanted = {"threading", "time", "select", "socket", "queue"}
    return {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in wanted
    }


def test_no_module_waits_in_real_time() -> None:
    """Whatever of `replication` imports threads, time or sockets is simulated, or is known not to be."""
    replaced = {"threading": seams.THREADS, "time": seams.CLOCKS, "socket": seams.SOCKETS}
    assert waits("import time\nimport os") == {"time"}
    for path in sorted((ROOT / "src/sustain/replication").glob("*.py")):
        if f"replication/{path.stem}" in _NOT_SIMULATED:
            continue
        for name in waits(path.read_text(encoding="utf-8")) & set(replaced):
            simulated = {each.__name__.rpartition(".")[2] for each in replaced[name]}
            assert path.stem in simulated, f"{path.name} imports {name}"
