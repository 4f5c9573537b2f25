"""The power is cut at the worst instant: an application commits flat out over a link that is far too slow for it, an
outage comes at random, the application is killed, and when the battery's seconds are over, so is everything else. The
standby has every commit.

All are real processes and are killed by SIGKILL; the link is throttled between them. SUSTAIN_OUTAGES sets the rounds.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import sustain
from sustain._native import Control
from sustain.powerfail.budget import POWER_STATES
from sustain.powerfail.decide import Power
from sustain.testing.link import Link

from .conftest import LIMIT_S, Lab, contents, fill, until
from .test_processes import Processes

SEED = int(os.environ.get("SUSTAIN_SEED", "20260103"))
OUTAGES = int(os.environ.get("SUSTAIN_OUTAGES", "6"))
ON_AC, ON_BATTERY = POWER_STATES.index(Power.ON_AC), POWER_STATES.index(Power.ON_BATTERY)

WRITER = """
import os, sys, threading
import sustain
store = sustain.open(sys.argv[1])
users, blob = store.map("users"), os.urandom(1500)
def write(number):
    count = 0
    while True:
        count += 1
        users[b"%d %d" % (number, count % 1000)] = blob[count % 700:] + b"%d" % count
        store.commit()
for number in range(int(sys.argv[2])):
    threading.Thread(target=write, args=(number,)).start()
"""


@pytest.fixture
def processes(lab: Lab) -> Iterator[Processes]:
    made = Processes(lab)
    yield made
    made.end()


def outage(
    lab: Lab, processes: Processes, rng: random.Random, promised: float = 1.0
) -> tuple[int, int, float]:
    """One life and death of a pair of hosts: (committed at the end, held by the standby, bytes that the link can take
    in the battery's time). `promised`: how many times that is what the battery says."""
    rate, usable_s = rng.uniform(1e6, 6e6), rng.uniform(1.0, 1.6)
    receiver, port = processes.receive()
    with closing(Control(lab.path("a"), writable=True)) as control, Link(("127.0.0.1", port)) as link:
        link.slow(rate)
        control.set_power(ON_AC, int(usable_s * promised * 1e9))
        shipper = processes.ship(link.address[1])
        begun = _committed(control)
        app = subprocess.Popen([sys.executable, "-c", WRITER, lab.path("a"), str(rng.randint(1, 4))])
        try:
            until(
                lambda: _committed(control) > begun + usable_s * promised * rate,
                "it commits more than the budget",
            )
            threading.Event().wait(rng.uniform(0.0, 1.0))
        finally:
            app.send_signal(signal.SIGKILL)
            outage_s = time.monotonic()
            app.wait(LIMIT_S)
        control.set_power(ON_BATTERY, int(usable_s * 1e9))
        threading.Event().wait(max(0.0, outage_s + usable_s - time.monotonic()))
        for process in (shipper, receiver):
            process.send_signal(signal.SIGKILL)
        for process in (shipper, receiver):
            process.wait(LIMIT_S)
        committed = _committed(control)
    with sustain.open(lab.path("b"), readonly=True) as standby:
        return committed, standby.position, usable_s * rate


def _committed(control: Control) -> int:
    words = control.words()
    assert words is not None
    return words["committed"]


def _prepare(lab: Lab, processes: Processes) -> None:
    """A replica that holds what there is, so that no outage meets a snapshot."""
    store = lab.create(size="32MiB", log_size="32MiB")
    position = fill(store, 0, 10)
    receiver, port = processes.receive()
    shipper = processes.ship(port)
    store.wait(position, copies=1, timeout=LIMIT_S)
    store.close()
    for process in (shipper, receiver):
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.crash
def test_nothing_committed_is_missing_when_the_battery_keeps_its_word(
    lab: Lab, processes: Processes, tmp_path: Path
) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    _prepare(lab, processes)
    for round_ in range(OUTAGES):
        committed, held, _ = outage(lab, processes, rng)
        assert held == committed, (
            f"SUSTAIN_SEED={SEED}, outage {round_}: {committed - held} bytes are missing"
        )
    with sustain.open(lab.path("a")) as primary, sustain.open(lab.path("b")) as standby:
        assert contents(standby) == contents(primary)
        standby.verify()


@pytest.mark.crash
def test_the_checker_sees_a_budget_that_is_not_kept(lab: Lab, processes: Processes) -> None:
    """The battery dies at a third of what it said: then something is missing, and the check above would see it."""
    _prepare(lab, processes)
    committed, held, room = outage(lab, processes, random.Random(SEED), promised=3.0)
    assert committed - held > 0.2 * room
