"""Commits under a battery's budget: the words that bound them, and what an application sees of it."""

import signal
import threading
import time
from pathlib import Path

import pytest

import sustain
from sustain._native import Control, LogTail, boottime_ns

LIMIT_S = 60.0  # on a machine that is busy with other things


@pytest.fixture
def store(path: Path) -> sustain.Store:
    sustain.create(path, size="2MiB", log_size="2MiB", durability="memory").close()
    return sustain.open(path, log_timeout=0.05)


def _until_a_commit_waits(control: Control) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        words = control.words()
        if words is not None and words["waiting_since_ns"]:
            return
        assert time.monotonic() < deadline, "no commit waits"
        time.sleep(0.001)


def test_what_is_said_of_the_power_and_taken_back(store: sustain.Store, path: Path) -> None:
    control, tail = Control(str(path), writable=True), LogTail(str(path))
    words = control.words()
    assert words is not None
    assert (words["usable_ns"], words["power_at_ns"], words["power_state"]) == (None, 0, 0)
    assert tail.power() == (None, 0, 0)
    before_ns = boottime_ns()
    control.set_power(3, 5_000_000_000)
    usable_ns, at_ns, state = tail.power()
    assert (usable_ns, state) == (5_000_000_000, 3)
    assert before_ns <= at_ns <= boottime_ns()
    assert store.words()["limit_lsn"] == 1, "no credit, until a shipper gives some"
    control.set_power(1, None)
    assert tail.power()[0] is None
    assert store.words()["limit_lsn"] == 0
    control.set_power(4, 0)
    assert tail.power()[0] == 0
    tail.set_limits(10, 20, 30, 40)
    words = store.words()
    assert (words["budget_bytes"], words["delay_lsn"]) == (10, 20)
    assert (words["limit_lsn"], words["delay_limit_ns"]) == (30, 40)
    control.clear_power()
    words = store.words()
    assert (words["usable_ns"], words["power_at_ns"], words["limit_lsn"], words["delay_lsn"]) == (
        None,
        0,
        0,
        0,
    )
    tail.close()
    control.close()


def test_a_destination_shows_its_bandwidth_and_budget_once_they_are_known(
    store: sustain.Store, path: Path
) -> None:
    tail = LogTail(str(path))
    slot = tail.claim_slot("tcp://127.0.0.1:1", required=False)
    (shown,) = store.destinations()
    assert (shown["bandwidth_bytes_per_s"], shown["budget_bytes"]) == (None, None)
    tail.update_slot(slot, bandwidth_bytes_per_s=1000, budget_bytes=0)
    (shown,) = store.destinations()
    assert (shown["bandwidth_bytes_per_s"], shown["budget_bytes"]) == (1000, 0)
    tail.close()


def test_past_the_budget_a_commit_fails_and_its_changes_are_kept(store: sustain.Store, path: Path) -> None:
    tail, users = LogTail(str(path)), store.map("users")
    store.commit()
    users[b"a"] = b"1"
    tail.set_limits(0, 1, 1, 0)
    with pytest.raises(sustain.BudgetExceeded) as caught:
        store.commit()
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert users[b"a"] == b"1"
    with pytest.raises(sustain.BudgetExceeded), store.transaction():
        users[b"a"] = b"2"
    assert b"a" not in users, "a transaction that fails is rolled back, with what was before it"
    users[b"b"] = b"3"
    tail.set_limits(0, 0, 0, 0)
    store.commit()
    store.close()
    tail.close()
    with sustain.open(path) as again:
        assert dict(again.map("users").items()) == {b"b": b"3"}


def test_a_commit_that_waits_goes_on_when_the_limit_rises(store: sustain.Store, path: Path) -> None:
    store.close()
    control, tail = Control(str(path)), LogTail(str(path))
    with sustain.open(path, log_timeout=600.0) as waiting:
        waiting.map("users")[b"a"] = b"1"
        tail.set_limits(0, 1, 1, 0)
        done = threading.Event()
        thread = threading.Thread(target=lambda: (waiting.commit(), done.set()), daemon=True)
        thread.start()
        _until_a_commit_waits(control)
        assert not done.is_set()
        tail.set_limits(0, 1 << 40, 1 << 40, 0)
        assert done.wait(LIMIT_S)
        thread.join(LIMIT_S)
    tail.close()


def test_a_signal_gets_through_to_a_commit_that_waits(store: sustain.Store, path: Path) -> None:
    store.close()
    control, tail = Control(str(path)), LogTail(str(path))

    class Asked(Exception):
        pass

    def ask(*_: object) -> None:
        raise Asked

    def interrupt() -> None:
        _until_a_commit_waits(control)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ask)
    try:
        with sustain.open(path, log_timeout=600.0) as waiting:
            waiting.map("users")[b"a"] = b"1"
            tail.set_limits(0, 1, 1, 0)
            thread = threading.Thread(target=interrupt, daemon=True)
            thread.start()
            with pytest.raises(Asked):
                waiting.commit()
            thread.join(LIMIT_S)
            assert waiting.map("users")[b"a"] == b"1"
    finally:
        signal.signal(signal.SIGUSR1, before)
        tail.close()


def test_a_receiver_forgets_the_limits_of_a_former_primary(store: sustain.Store, path: Path) -> None:
    from sustain._native import Replica

    tail = LogTail(str(path))
    tail.set_limits(1, 1, 1, 1)
    tail.close()
    store.close()
    replica = Replica(str(path))
    words = replica.words()
    assert (words["limit_lsn"], words["delay_lsn"], words["budget_bytes"]) == (0, 0, 0)
    replica.close()
    control = Control(str(path), writable=True)
    control.set_power(1, 1_000_000_000)
    tail = LogTail(str(path))
    tail.set_limits(1 << 30, 1 << 30, 1 << 31, 1)
    tail.close()
    replica = Replica(str(path))
    assert replica.words()["limit_lsn"] == 1, "the power is watched: no credit yet"
    replica.close()
    control.close()
