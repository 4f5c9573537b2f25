"""SIGKILL of a SQLite application at any moment: SQLite's own check, and every acknowledged transaction."""

import random
import threading
from pathlib import Path

import pytest

import sustain
from tests.crash.databases import Model
from tests.crash.processes import Victim, rounds, seed

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(7200)
def test_application_killed_at_random(tmp_path: Path, durability: str) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    path = tmp_path / "app.sus"
    sustain.create(path, size="8MiB", log_size="2MiB", durability=durability).close()
    model, pause, acknowledged = Model(), threading.Event(), 0
    for _ in range(rounds(20)):
        with Victim("tests.crash.sqlite_writer", path, log=tmp_path / "writer.log") as writer:
            if dice.random() < 0.7:
                writer.wait_for("open")
                writer.wait_for("commit", writer.last["open"] + int(dice.expovariate(1 / 60)))
            else:  # in its start, its recovery, or the first transaction of all
                pause.wait(dice.uniform(0, 0.5))
            said = writer.kill()
        acknowledged = max(acknowledged, said.get("commit", 0))
        # Sometimes the recovery is left to the next one, which may be killed in it; a reader must not mind.
        with sustain.open(path, readonly=dice.random() < 0.5, verify="full") as store:
            n = model.check(store)
        assert acknowledged <= n <= acknowledged + 1, f"acknowledged {acknowledged}, recovered {n}"
        acknowledged = n
    assert acknowledged > 0
