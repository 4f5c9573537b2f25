"""Bad networks: cut anywhere, stalled, slow, replayed. Resumed, nothing doubled, nothing lost."""

import os
import random
import time
from dataclasses import replace

import pytest

from sustain.errors import WaitTimeout
from sustain.replication.credentials import Credentials
from sustain.replication.ship import End
from sustain.testing.link import Link

from .conftest import LINK, Lab, contents, fill, until

SEED = int(os.environ.get("SUSTAIN_SEED", "20260101"))
IMPATIENT = replace(LINK, backoff_first_s=0.005, backoff_limit_s=0.02)
ROUNDS = int(os.environ.get("SUSTAIN_LINK_ROUNDS", "40"))


def test_cut_at_random_bytes(lab: Lab) -> None:
    """Each connection ends after a random number of bytes: in the handshake, a snapshot, a record, between
    records."""
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    store, receiver = lab.create(), lab.receiver()
    with Link(receiver.address) as link:
        budgets = [rng.randrange(20_000) if rng.random() < 0.7 else rng.randrange(400) for _ in range(ROUNDS)]
        link.cut_after(*budgets)
        running = lab.ship(link.url, required=True, link=IMPATIENT)
        number = 0
        while link.connections < ROUNDS:
            number = (number + 20) % 500
            fill(store, number, 20, rng.randbytes(rng.randrange(200)))
        position = fill(store, number, 1)
        store.wait(position, copies=1, timeout=60)
        expected = contents(store)
        running.stop()
    receiver.stop()
    standby = lab.open("b")
    assert standby.position == position
    assert contents(standby) == expected
    standby.verify()
    assert receiver.status()["orphans"] == []


def test_cut_at_each_byte_of_the_beginning(lab: Lab) -> None:
    """Every byte of a short session's beginning is a place to cut, one connection each."""
    store, receiver = lab.create(), lab.receiver()
    running = lab.ship(receiver)
    store.wait(fill(store, 0, 5), copies=1, timeout=20)
    running.stop()
    with Link(receiver.address) as link:
        link.cut_after(*range(1, 700, 7))
        position = fill(store, 5, 5)
        lab.ship(link.url, required=True, link=IMPATIENT)
        store.wait(position, copies=1, timeout=60)
        assert link.connections > 50
    assert receiver.status()["end"] == position


def test_a_stalled_connection_is_noticed_and_replaced(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(timeout_s=1.0)
    with Link(receiver.address) as link:
        lab.ship(link.url)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.stall()
        position = fill(store, 10, 10)
        with pytest.raises(WaitTimeout):
            store.wait(position, copies=1, timeout=0.2)
        link.flow()
        store.wait(position, copies=1, timeout=20)


def test_a_half_open_connection_does_not_keep_its_successor_out(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(timeout_s=60.0)  # the receiver itself will not notice
    with Link(receiver.address) as link:
        first = lab.ship(link.url)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.stall()  # the old connection stays open at the receiver, and silent
        first.stop()
        lab.ship(receiver)
        store.wait(fill(store, 10, 10), copies=1, timeout=20)
        assert receiver.status()["sessions"] >= 2


def test_a_slow_link_loses_nothing(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    with Link(receiver.address) as link:
        lab.ship(link.url, required=True)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.slow(400_000)
        position = fill(store, 10, 1000, b"y" * 100)
        store.wait(position, copies=1, timeout=60)
        assert contents(lab.open("b", readonly=True)) == contents(store)


def test_a_replayed_hello_gets_nowhere(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(credentials=Credentials(b"k" * 32))
    with Link(receiver.address) as link:
        lab.ship(link.url, link=replace(LINK, credentials=Credentials(b"k" * 32)))
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        before = receiver.status()["sessions"]
        answer = link.replay()
        assert b"authentication" in answer
        assert receiver.status()["sessions"] == before
        store.wait(fill(store, 10, 10), copies=1, timeout=20)


def test_a_standby_that_is_away_too_long_is_let_go_and_comes_back_by_snapshot(lab: Lab) -> None:
    store, receiver = lab.create(log_size="2MiB"), lab.receiver()
    with Link(receiver.address) as link:
        running = lab.ship(link.url, required=True, stall_s=0.3)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.down()
        # The log is pinned until it is three quarters full; then the application goes on without.
        position = fill(store, 10, 4000, b"z" * 1000)
        states = {each.state for each in store.status().destinations}
        assert states == {"needs-snapshot"}
        link.flow()
        store.wait(position, copies=1, timeout=60)
        expected = contents(store)
        assert running.stop().end is End.STOPPED
        assert sum("gets a snapshot" in line for line in running.said) >= 2
    receiver.stop()
    assert contents(lab.open("b")) == expected


def test_a_standby_that_is_not_required_pins_nothing(lab: Lab) -> None:
    store, receiver = lab.create(log_size="2MiB"), lab.receiver()
    with Link(receiver.address) as link:
        lab.ship(link.url)
        store.wait(fill(store, 0, 10), copies=1, timeout=20)
        link.stall()
        began = time.monotonic()
        position = fill(store, 10, 4000, b"z" * 1000)
        assert time.monotonic() - began < 30  # it would have met LogFull after a minute
        link.flow()
        store.wait(position, copies=1, timeout=60)


def test_a_snapshot_sends_only_pages_that_differ(lab: Lab) -> None:
    store, receiver = lab.create(size="32MiB", log_size="2MiB"), lab.receiver()
    blob = store.file("blob")
    rng = random.Random(SEED)
    for at in range(0, 16 << 20, 1 << 20):
        blob.pwrite(rng.randbytes(1 << 20), at)
        store.commit()
    with Link(receiver.address) as link:
        first = lab.ship(link.url)
        store.wait(store.commit(), copies=1, timeout=60)
        first.stop()
        whole = link.forwarded_bytes
        assert whole > 16 << 20
        # Far enough for the log to have forgotten where the standby is, in few pages.
        for _ in range(3000):
            blob.pwrite(rng.randbytes(1000), 0)
            store.commit()
        expected = blob.pread(16 << 20, 0)
        second = lab.ship(link.url)
        store.wait(store.commit(), copies=1, timeout=60)
        assert any("gets a snapshot" in line for line in second.said)
        second.stop()
        assert link.forwarded_bytes - whole < 6 << 20
    receiver.stop()
    standby = lab.open("b")
    standby.verify()
    assert standby.file("blob").pread(16 << 20, 0) == expected


def test_an_interrupted_snapshot_leaves_the_old_copy_whole(lab: Lab) -> None:
    store, receiver = lab.create(size="32MiB", log_size="2MiB"), lab.receiver()
    running = lab.ship(receiver)
    store.wait(fill(store, 0, 10), copies=1, timeout=20)
    running.stop()
    held = contents(lab.open("b", readonly=True))
    blob = store.file("blob")
    for at in range(0, 16 << 20, 1 << 20):
        blob.pwrite(random.Random(at).randbytes(1 << 20), at)
        store.commit()
    with Link(receiver.address) as link:
        link.cut_after(4 << 20)
        link.cut_after(*[600] * 200)
        again = lab.ship(link.url)
        until(lambda: link.connections >= 3, "the snapshot was cut")
        again.stop()
    receiver.stop()
    assert os.path.exists(lab.path("b") + ".incoming")
    standby = lab.open("b")
    assert contents(standby) == held
