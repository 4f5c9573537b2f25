"""A full image, a log too small for one commit: one clear error each, and nothing changed by the failed
call."""

import os
from pathlib import Path

import numpy as np
import pytest

import sustain


@pytest.fixture
def small(path: Path) -> sustain.Store:
    return sustain.create(path, size="2MiB", log_size="8MiB", durability="memory")


def _clear(error: pytest.ExceptionInfo[sustain.StoreError], path: Path) -> None:
    assert str(path) in str(error.value)
    assert error.value.hint


def test_a_full_map(small: sustain.Store, path: Path) -> None:
    users = small.map("m")
    with pytest.raises(sustain.StoreFull) as caught:
        users.update((b"%d" % number, b"v" * 100) for number in range(100_000))
    _clear(caught, path)
    written = len(users)
    assert written > 5000
    assert b"%d" % written not in users
    assert sum(1 for _ in users) == written
    small.commit()
    for number in range(0, written, 2):
        del users[b"%d" % number]
    small.commit()
    for number in range(written // 4):
        users[b"%d" % (number * 2)] = b"w" * 100  # room that was given back is used again
    small.commit()
    small.close()
    with sustain.open(path, verify="full") as again:
        assert len(again.map("m")) == written - (written + 1) // 2 + written // 4


def test_replacing_a_value_that_does_not_fit_keeps_the_old_one(small: sustain.Store) -> None:
    users = small.map("m")
    users[b"k"] = b"old"
    with pytest.raises(sustain.StoreFull):
        users[b"k"] = b"v" * (4 << 20)
    assert users[b"k"] == b"old"
    assert len(users) == 1


def test_a_full_array(small: sustain.Store, path: Path) -> None:
    with pytest.raises(sustain.StoreFull) as caught:
        small.array("a", (1 << 20,), "i8")
    _clear(caught, path)
    assert small.objects() == []
    array = small.array("a", (1000,), "i8")
    array[:] = 5
    del array
    with pytest.raises(sustain.StoreFull):
        small.array("a", (1 << 20,))
    assert small.array("a").tolist() == [5] * 1000


def test_a_shape_past_counting_is_full(small: sustain.Store) -> None:
    for shape in ((1 << 61,), (1 << 40, 1 << 40), (1 << 62, 8)):
        with pytest.raises((sustain.StoreFull, OverflowError)):
            small.array("a", shape, "i8")
    assert small.objects() == []


def test_a_full_file(small: sustain.Store, path: Path) -> None:
    blob = small.file("f")
    blob.pwrite(b"kept", 0)
    with pytest.raises(sustain.StoreFull) as caught:
        blob.pwrite(b"x" * (4 << 20), 2)
    _clear(caught, path)
    assert blob.pread(10, 0) == b"kept"
    assert blob.size == 4


def test_many_small_objects_until_full(small: sustain.Store) -> None:
    made = 0
    while True:
        try:
            small.file(f"object {made}").pwrite(b"x" * 5000, 0)
        except sustain.StoreFull:
            break
        made += 1
    assert made > 20
    for number in range(made):
        assert small.file(f"object {number}").size == 5000


def test_a_commit_larger_than_the_log(path: Path) -> None:
    with sustain.create(path, size="32MiB", log_size="2MiB", durability="memory") as store:
        array = store.array("a", (1 << 20,), "i8")
        array[0] = 1
        before = store.commit()
        array[:] = np.frombuffer(os.urandom(8 << 20), "i8")
        with pytest.raises(sustain.LogTooSmall) as caught:
            store.commit()
        _clear(caught, path)
        assert store.position == before
        store.rollback()
        assert array[0] == 1
        assert array[1:].sum() == 0
        for begin in range(0, 1 << 20, 1 << 16):  # in smaller steps it works
            array[begin : begin + (1 << 16)] = begin + 1
            store.commit()
    with sustain.open(path) as store:
        assert store.array("a")[(1 << 20) - 1] == 15 * (1 << 16) + 1


def test_zeroing_needs_little_log(path: Path) -> None:
    """Freed and zeroed pages are one record, not their bytes."""
    with sustain.create(path, size="32MiB", log_size="16MiB", durability="memory") as store:
        blob = store.file("f")
        for begin in range(0, 20 << 20, 4 << 20):
            blob.pwrite(b"x" * (4 << 20), begin)
            store.commit()
        before = store.commit()
        blob.truncate(0)
        assert store.commit() - before < 1 << 20
