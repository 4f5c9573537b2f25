"""How late timers of threads of our own may be; numbers that mean others by now."""

import os

import pytest

from sustain.errors import HostError
from sustain.host import threads, timer_slack
from sustain.host.affinity import Written
from sustain.host.processes import Identity
from tests.host.threaded import Program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="timers of others need root")


def who(tid: int) -> Identity:
    thread = threads.one(tid)
    assert thread is not None
    return thread.who


def test_one_thread_is_set_and_no_other() -> None:
    with Program() as program:
        set_, left = who(program.start()), who(program.start())
        usual = timer_slack.read(who(program.pid))
        assert timer_slack.read(set_) == timer_slack.read(left) == usual
        assert timer_slack.write(set_, 10_000_000) is Written.DONE
        assert (timer_slack.read(set_), timer_slack.read(left)) == (10_000_000, usual)
        assert timer_slack.write(set_, 10_000_000) is Written.SAME


def test_one_that_has_ended_or_is_another() -> None:
    with Program() as program:
        thread = who(program.start())
        usual = timer_slack.read(thread)
        another = Identity(thread.pid, thread.start_ticks + 1)
        assert timer_slack.read(another) is None
        assert timer_slack.write(another, 1) is Written.GONE
        assert timer_slack.read(thread) == usual is not None
    assert timer_slack.read(thread) is None
    assert timer_slack.write(thread, 1) is Written.GONE


def test_no_time_is_no_slack() -> None:
    with Program() as program, pytest.raises(HostError, match="0 ns") as raised:
        timer_slack.write(who(program.pid), 0)
    assert raised.value.hint == "1 ns is the least"
