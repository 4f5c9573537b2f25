"""A primary and its standbys, on a good network: snapshot, stream, resume, hand over."""

import threading
from dataclasses import replace

import numpy as np
import pytest

import sustain
from sustain.errors import StoreBusy, WaitTimeout
from sustain.replication.applier import Applier
from sustain.replication.ship import End

from .conftest import LINK, Lab, contents, fill, until


def test_a_new_standby_gets_a_snapshot_then_the_stream(lab: Lab) -> None:
    store = lab.create()
    fill(store, 0, 300)
    receiver = lab.receiver()
    running = lab.ship(receiver)
    store.wait(fill(store, 300, 1), copies=1, timeout=20)
    position = fill(store, 301, 300)
    store.wait(position, copies=1, timeout=20)
    expected = contents(store)
    assert running.stop().end is End.STOPPED
    receiver.stop()
    assert any("snapshot" in line for line in running.said)
    standby = lab.open("b")
    assert standby.position == position
    assert contents(standby) == expected
    standby.close()


def test_who_waits_for_copies_is_not_made_to_wait_for_the_linger_time(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    patient = replace(LINK, linger_s=60.0, heartbeat_s=60.0, timeout_s=180.0)
    lab.ship(receiver, link=patient)
    for first in range(50):
        store.wait(fill(store, first, 1), copies=1, timeout=20)


def test_arrays_and_files_arrive(lab: Lab) -> None:
    store = lab.create(size="16MiB")
    receiver = lab.receiver()
    lab.ship(receiver)
    array = store.array("balances", shape=(100_000,), dtype="i8")
    store.commit()
    array[::777] = 5
    store.file("blob").pwrite(b"hello" * 1000, 0)
    store.wait(store.commit(), copies=1, timeout=20)
    expected = array.copy()
    receiver.stop()
    standby = lab.open("b")
    assert np.array_equal(standby.array("balances"), expected)
    assert standby.file("blob").pread(5000, 0) == b"hello" * 1000


def test_a_restarted_shipper_resumes_without_a_snapshot(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    first = lab.ship(receiver)
    store.wait(fill(store, 0, 100), copies=1, timeout=20)
    first.stop()
    position = fill(store, 100, 100)
    second = lab.ship(receiver)
    store.wait(position, copies=1, timeout=20)
    second.stop()
    assert not any("snapshot" in line for line in second.said)


def test_a_restarted_receiver_resumes_without_a_snapshot(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    running = lab.ship(receiver, required=True)
    store.wait(fill(store, 0, 100), copies=1, timeout=20)
    port = receiver.address[1]
    receiver.stop()
    position = fill(store, 100, 100)
    again = lab.receiver(port=port)
    store.wait(position, copies=1, timeout=20)
    assert again.status()["end"] == position
    assert sum("gets a snapshot" in line for line in running.said) == 1


def test_a_restarted_application_is_followed(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    lab.ship(receiver)
    store.wait(fill(store, 0, 100), copies=1, timeout=20)
    store.close()
    store = lab.open("a")
    store.wait(fill(store, 100, 100), copies=1, timeout=20)
    assert len(contents(store)) == 200


def test_a_store_that_no_application_has_open_is_shipped(lab: Lab) -> None:
    store = lab.create()
    position = fill(store, 0, 50)
    store.close()
    receiver = lab.receiver()
    reason = lab.ship(receiver, until_drained=True, drain_timeout_s=20.0).join()
    assert reason.end is End.DRAINED
    assert reason.target == position
    assert receiver.status()["end"] == position


def test_several_standbys_and_wait_for_n_copies(lab: Lab) -> None:
    store = lab.create()
    receivers = [lab.receiver(name) for name in "bcd"]
    lab.ship(*receivers[:2])
    position = fill(store, 0, 100)
    store.wait(position, copies=2, timeout=20)
    with pytest.raises(WaitTimeout):
        store.wait(position, copies=3, timeout=0.05)
    assert {each.acked for each in store.status().destinations} == {position}


def test_a_snapshot_while_the_application_writes_all_over(lab: Lab) -> None:
    store = lab.create(size="64MiB", log_size="4MiB")
    array = store.array("a", shape=(4_000_000,), dtype="i8")
    for at in range(0, 4_000_000, 100_000):  # in pieces that the log can hold
        array[at : at + 100_000] = np.arange(100_000) + at
        store.commit()
    ended = threading.Event()
    rng = np.random.default_rng(7)
    receiver = lab.receiver()
    running = lab.ship(receiver)
    rounds = 0
    try:
        until(lambda: running.said, "the snapshot begins")
        while not ended.is_set():
            array[rng.integers(0, 4_000_000, 200)] = rng.integers(0, 1 << 60)
            store.commit()
            rounds += 1
            if receiver.status()["state"] == "streaming":
                ended.set()
    finally:
        ended.set()
    assert rounds > 1
    store.wait(store.commit(), copies=1, timeout=20)
    array[7] = 7
    store.wait(store.commit(), copies=1, timeout=20)
    expected = array.copy()
    receiver.stop()
    standby = lab.open("b")
    assert standby.verify() > 0
    assert np.array_equal(standby.array("a"), expected)


def test_takeover(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    running = lab.ship(receiver)
    position = fill(store, 0, 100)
    store.wait(position, copies=1, timeout=20)
    running.stop()
    assert receiver.promote(2) == position
    promoted = lab.open("b")
    assert contents(promoted) == contents(store)
    fill(promoted, 100, 1)
    assert promoted.info()["epoch"] == 2


def test_a_second_shipper_is_refused(lab: Lab) -> None:
    lab.create()
    receiver = lab.receiver()
    running = lab.ship(receiver)
    until(lambda: receiver.status()["state"] == "streaming", "it streams")
    with pytest.raises(StoreBusy) as caught:
        lab.ship(receiver).join()
    assert caught.value.hint or "pid" in str(caught.value)
    running.stop()


def test_status_of_a_receiver(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    status = receiver.status()
    assert (status["state"], status["has_store"], status["end"], status["primary"]) == (
        "listening",
        False,
        None,
        None,
    )
    lab.ship(receiver)
    position = fill(store, 0, 10)
    store.wait(position, copies=1, timeout=20)
    status = until(lambda: (s := receiver.status())["end"] == position and s, "status follows")
    assert status["state"] == "streaming"
    assert status["primary"]["name"] == "a"
    assert status["primary"]["behind_bytes"] == 0
    assert (status["epoch"], status["log_epoch"]) == (1, 1)


def test_a_read_only_open_of_a_standby_sees_a_committed_state(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver()
    lab.ship(receiver)
    position = fill(store, 0, 10)
    store.wait(position, copies=1, timeout=20)
    with sustain.open(lab.path("b"), readonly=True) as seen:
        assert contents(seen) == contents(store)
        store.wait(fill(store, 10, 10), copies=1, timeout=20)
        seen.refresh()
        assert len(contents(seen)) == 20


def test_a_required_standby_that_keeps_up_never_fills_the_log(lab: Lab) -> None:
    """Many logs' worth of commits: each must find room, because acknowledgements move the floor."""
    lab.create(log_size="2MiB").close()
    store, receiver = lab.open("a", log_timeout=10.0), lab.receiver()
    lab.ship(receiver, required=True)
    for value in range(8):
        position = fill(store, 0, 900, bytes([value]) * 1000)
    store.wait(position, copies=1, timeout=20)
    assert position > 6 << 20


def test_a_backlog_is_applied_while_it_is_received(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[int] = []
    submit = Applier.submit

    def counted(applier: Applier, length: int) -> None:
        submitted.append(length)
        submit(applier, length)

    monkeypatch.setattr(Applier, "submit", counted)
    store, receiver = lab.create(size="32MiB", log_size="64MiB"), lab.receiver()
    blob = store.file("blob")
    running = lab.ship(receiver)
    store.wait(store.commit(), copies=1, timeout=20)
    running.stop()
    rng = np.random.default_rng(3)
    for size in rng.integers(1, 200_000, 300):
        blob.pwrite(rng.bytes(int(size)), int(rng.integers(0, 8 << 20)))
        position = store.commit()
    running = lab.ship(receiver)
    store.wait(position, copies=1, timeout=60)
    assert not any("snapshot" in line for line in running.said)
    assert submitted
    expected = blob.pread(9 << 20, 0)
    receiver.stop()
    standby = lab.open("b")
    standby.verify()
    assert standby.file("blob").pread(9 << 20, 0) == expected
