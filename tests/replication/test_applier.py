"""The applier's promises: one piece at a time, in order, and an error stops what comes behind."""

import threading

import pytest

from sustain.errors import StoreCorrupt
from sustain.replication.applier import Applier

from .conftest import LIMIT_S


def test_drain_waits_for_what_is_being_applied() -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def apply(length: int) -> None:
        begun.set()
        assert go.wait(LIMIT_S)
        done.append(length)

    applier = Applier(apply, lambda: None)
    applier.submit(7)
    assert begun.wait(LIMIT_S)
    assert not applier.idle
    threading.Timer(0.05, go.set).start()
    applier.drain()
    assert done == [7]
    assert applier.idle
    applier.submit(8)
    applier.close()
    assert done == [7, 8]


def test_an_error_reaches_the_receiving_thread() -> None:
    failed = threading.Event()

    def apply(_length: int) -> None:
        raise StoreCorrupt("wrong record")

    applier = Applier(apply, failed.set)
    applier.submit(1)
    assert failed.wait(LIMIT_S)
    for _ in range(2):
        with pytest.raises(StoreCorrupt):
            applier.drain()
    with pytest.raises(StoreCorrupt):
        applier.submit(1)
    applier.close()


def test_closing_one_that_never_worked() -> None:
    Applier(lambda _length: None, lambda: None).close()
