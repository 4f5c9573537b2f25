"""SIGKILL of a writer at any moment: what recovery yields is a prefix that holds every commit that returned."""

import random
from pathlib import Path

import pytest

import sustain
from tests.crash.model import Model, check
from tests.crash.processes import Victim, rounds, seed

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("durability", ["memory", "disk"])
@pytest.mark.timeout(3600)
def test_writer_killed_at_random(tmp_path: Path, durability: str) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    dice = random.Random(chosen)
    path = tmp_path / "app.sus"
    # The smallest log, so that it wraps often.
    sustain.create(path, size="4MiB", log_size="2MiB", durability=durability).close()
    model = Model()
    acknowledged = 0
    for _ in range(rounds(20)):
        with Victim("tests.crash.writer", path, "--rollbacks", log=tmp_path / "writer.log") as writer:
            if dice.random() < 0.6:
                writer.wait_for("open")
                # Commits take microseconds to milliseconds: waiting for one of them is a random moment already.
                writer.wait_for("commit", writer.last["open"] + int(dice.expovariate(1 / 300)))
            else:  # in its start or its recovery
                _pause(dice.uniform(0, 0.5))
            said = writer.kill()
        acknowledged = max(acknowledged, said.get("commit", 0))
        # Sometimes the recovery is left to the next writer, which may be killed in it; a reader must not mind.
        readonly = dice.random() < 0.5
        with sustain.open(path, readonly=readonly, verify="full") as store:
            n = check(store, model)
        assert acknowledged <= n <= acknowledged + 1, f"acknowledged {acknowledged}, recovered {n}"
        acknowledged = n
    assert acknowledged > 0


def _pause(seconds: float) -> None:
    import threading

    threading.Event().wait(seconds)
