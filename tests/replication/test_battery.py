"""The power is cut at the worst instant: an application commits flat out over a link that is far too slow for it, an
outage comes at random, the application is killed; and when the link has carried what it can carry in the battery's
seconds, so is the rest of its host. The standby has every commit.

All are real processes. The battery's seconds are counted by what passed the throttled link, because a test machine that
is busy with something else must not make the battery shorter. SUSTAIN_OUTAGES sets the rounds.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

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
    lab: Lab, processes: Processes, link: Link, rng: random.Random, promised: float = 1.0
) -> tuple[int, int, float]:
    """One life and death of a host: (committed at the end, held by the standby, bytes that the link can take in the
    battery's time). `promised`: how many times that is what the battery says."""
    rate, usable_s = rng.uniform(1e6, 6e6), rng.uniform(1.0, 1.6)
    room = rate * usable_s
    receiver, port = processes.receive()
    link.target = (
        "127.0.0.1",
        port,
    )  # of one address for all rounds: a store has 16 destinations in its life
    link.flow()
    link.slow(rate)
    with closing(Control(lab.path("a"), writable=True)) as control:
        control.clear_power()  # as a supervisor does that begins: its link may be slower than the one before
        control.set_power(ON_AC, int(usable_s * promised * 1e9))
        shipper = processes.ship(link.address[1])
        begun = _committed(control)
        app = subprocess.Popen([sys.executable, "-c", WRITER, lab.path("a"), str(rng.randint(1, 4))])
        try:
            until(lambda: _committed(control) > begun + room, "it commits more than the budget")
            if promised > 1.0:
                until(lambda: _unshipped(control, link.url) > 2 * room, "it makes use of what was promised")
            threading.Event().wait(rng.uniform(0.0, 1.0))
        finally:
            app.send_signal(signal.SIGKILL)
            app.wait(LIMIT_S)
        carried = link.forwarded_bytes
        control.set_power(ON_BATTERY, int(usable_s * promised * 1e9))
        until(
            lambda: link.forwarded_bytes - carried > room or _unshipped(control, link.url) == 0,
            "the battery is empty, or all has arrived",
            limit_s=60.0,
        )
        shipper.send_signal(signal.SIGKILL)
        link.down()
        shipper.wait(LIMIT_S)
        committed = _committed(control)
    receiver.send_signal(signal.SIGTERM)  # its host has power: it takes in what has arrived
    assert receiver.wait(LIMIT_S) == 0
    with sustain.open(lab.path("b"), readonly=True) as standby:
        return committed, standby.position, room


def _unshipped(control: Control, url: str) -> int:
    committed = _committed(control)
    held = [each["acked"] or 0 for each in control.destinations() if each["url"] == url]
    return committed - max(held, default=0)


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
def test_nothing_committed_is_missing_when_the_battery_keeps_its_word(lab: Lab, processes: Processes) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    _prepare(lab, processes)
    with Link(("127.0.0.1", 0)) as link:
        for round_ in range(OUTAGES):
            committed, held, _ = outage(lab, processes, link, rng)
            missing = committed - held
            assert missing == 0, f"SUSTAIN_SEED={SEED}, outage {round_}: {missing} bytes are missing"
    with sustain.open(lab.path("a")) as primary, sustain.open(lab.path("b")) as standby:
        assert contents(standby) == contents(primary)
        standby.verify()


@pytest.mark.crash
def test_the_checker_sees_a_budget_that_is_not_kept(lab: Lab, processes: Processes) -> None:
    """The battery dies at a tenth of what it said: then something is missing, and the check above would see it."""
    _prepare(lab, processes)
    with Link(("127.0.0.1", 0)) as link:
        committed, held, room = outage(lab, processes, link, random.Random(SEED), promised=10.0)
    assert committed - held > 0.5 * room
