"""Calls with a time limit: what hangs takes one thread, is reported each time, and is forgotten when it comes back."""

import errno
import threading
import time

import pytest

from sustain.errors import HostError
from sustain.host.overdue import Caller


def test_results_and_errors_are_passed_on() -> None:
    caller = Caller("x", "")
    assert caller.call(lambda: 7, 5) == 7
    with pytest.raises(KeyError, match="no"):
        caller.call(lambda: {}["no"], 5)
    assert caller.call(threading.get_ident, 5) != threading.get_ident()
    assert not caller.hangs


def test_one_that_hangs_is_refused_at_once_until_it_comes_back() -> None:
    caller, end = Caller("x", "look at y"), threading.Event()
    before = threading.active_count()
    with pytest.raises(HostError, match=r"x: no answer for 0\.1 s") as caught:
        caller.call(end.wait, 0.1)
    assert (caught.value.hint, caught.value.errno) == ("look at y", errno.ETIMEDOUT)
    assert caller.hangs
    begun_s = time.monotonic()
    for _ in range(50):
        with pytest.raises(HostError, match="no answer"):
            caller.call(lambda: 1, 10)
    assert time.monotonic() - begun_s < 5
    assert threading.active_count() <= before + 1
    end.set()
    deadline_s = time.monotonic() + 10
    while caller.hangs:  # its thread comes back
        assert time.monotonic() < deadline_s
    assert caller.call(lambda: 2, 5) == 2


def test_calls_wait_for_each_other_within_their_limits() -> None:
    caller, end = Caller("x", ""), threading.Event()
    first = threading.Thread(target=caller.call, args=(end.wait, 30))
    first.start()
    while caller._running is None:
        assert first.is_alive()
    with pytest.raises(HostError):
        caller.call(lambda: 1, 0.05)
    second: list[int] = []
    other = threading.Thread(target=lambda: second.append(caller.call(lambda: 3, 30)))
    other.start()
    end.set()
    first.join(10)
    other.join(10)
    assert second == [3]
