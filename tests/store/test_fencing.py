"""The lease's deadline and the fence lie in the data path: past them nothing is acknowledged, whoever asks."""

from pathlib import Path

import pytest

import sustain
from sustain._native import Control, LogTail, boottime_ns

_FAR_NS = 3_600_000_000_000


@pytest.fixture
def held(path: Path) -> tuple[sustain.Store, Control]:
    """An open store with one commit, under a lease that is good for an hour."""
    store = sustain.create(path, size="8MiB", log_size="2MiB")
    store.map("m")[b"k"] = b"before"
    store.commit()
    control = Control(str(path), writable=True)
    control.set_lease(1, boottime_ns() + _FAR_NS)
    return store, control


def test_a_commit_past_the_deadline_is_refused_and_one_before_is_not(
    held: tuple[sustain.Store, Control],
) -> None:
    store, control = held
    store.map("m")[b"k"] = b"in time"
    position = store.commit()
    control.set_lease(1, boottime_ns())
    store.map("m")[b"k"] = b"too late"
    with pytest.raises(sustain.StoreFenced) as caught:
        store.commit()
    assert caught.value.hint
    assert store.position == position
    with sustain.open(store.path, readonly=True) as reader:
        assert reader.map("m")[b"k"] == b"in time"


def test_a_newer_epoch_elsewhere_fences(held: tuple[sustain.Store, Control]) -> None:
    store, control = held
    control.set_fence(2)
    control.set_fence(1)  # it never falls
    store.map("m")[b"k"] = b"of an old epoch"
    with pytest.raises(sustain.StoreFenced):
        store.commit()


def test_copies_do_not_count_past_the_deadline(held: tuple[sustain.Store, Control]) -> None:
    store, control = held
    tail = LogTail(store.path)
    tail.update_slot(tail.claim_slot("tcp://127.0.0.1:1", False), acked=store.position)
    store.wait(store.position, copies=1, timeout=5)
    control.set_lease(1, boottime_ns())
    with pytest.raises(sustain.StoreFenced):
        store.wait(store.position, copies=1, timeout=5)
    tail.close()
