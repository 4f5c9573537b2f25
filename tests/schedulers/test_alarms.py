"""Alarms: stalls ring, what is refused is said once, and a loop is woken no faster than it lets itself be."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host import pressure
from sustain.schedulers.alarms import Alarm, Alarms, Triggers
from sustain.schedulers.journal import Journal
from sustain.schedulers.loop import Loop, due
from sustain.testing.scheduler import Dials, DialScheduler, Turned, TurnPlan
from sustain.testing.triggers import FakeTriggers

HOST, BOX = Path("/proc/pressure/memory"), Path("/box/memory.pressure")
ALARM, BOXED = Alarm("the host", HOST, 0.1, 2.0), Alarm("guest box", BOX, 0.1, 2.0, "7")


class Watcher:
    """Alarms over fake triggers, and how often they rang."""

    def __init__(self) -> None:
        self.triggers = FakeTriggers()
        self.said: list[str] = []
        self._rang = threading.Semaphore(0)
        self.alarms = Alarms(self._rang.release, self.said.append, lambda: self.triggers)

    def until_it_rings(self) -> None:
        assert self._rang.acquire(timeout=30)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.alarms.close()


def test_a_stall_rings(watcher: Watcher) -> None:
    watcher.alarms.watch([ALARM])
    watcher.triggers.until_it_holds(HOST)
    assert watcher.triggers.added == [(HOST, 100_000, 2_000_000)]
    for _ in range(3):
        watcher.triggers.fire(HOST)
        watcher.until_it_rings()
    assert watcher.alarms.watched == ("the host",)
    assert watcher.said == []


def test_it_watches_what_it_is_told_now(watcher: Watcher) -> None:
    watcher.alarms.watch([ALARM])
    watcher.triggers.until_it_holds(HOST)
    watcher.alarms.watch([ALARM, BOXED])
    watcher.triggers.until_it_holds(HOST, BOX)
    watcher.triggers.fire(BOX)
    watcher.until_it_rings()
    watcher.alarms.watch([BOXED])
    watcher.triggers.until_it_holds(BOX)


def test_a_cgroup_of_the_same_path_is_watched_anew(watcher: Watcher) -> None:
    watcher.alarms.watch([BOXED])
    watcher.triggers.until_it_holds(BOX)
    watcher.triggers.remove(BOX)
    watcher.triggers.until_it_holds()
    watcher.alarms.watch([BOXED._replace(life="8")])
    watcher.triggers.until_it_holds(BOX)
    watcher.triggers.fire(BOX)
    watcher.until_it_rings()
    assert watcher.alarms.problems == ()


def test_what_is_refused_is_said_once_and_the_rest_is_watched(watcher: Watcher) -> None:
    watcher.triggers.refuse = {HOST: "Invalid argument"}
    watcher.alarms.watch([ALARM, BOXED])
    watcher.triggers.until_it_holds(BOX)
    for _ in range(3):
        watcher.alarms.watch([ALARM])
        watcher.triggers.until_it_holds()
        watcher.alarms.watch([ALARM, BOXED])
        watcher.triggers.until_it_holds(BOX)
    watcher.triggers.fire(BOX)
    watcher.until_it_rings()
    assert watcher.alarms.watched == ("guest box",)
    assert watcher.alarms.problems == (f"the host: {HOST}: Invalid argument",)
    assert watcher.said == [
        f"pressure of the host is not watched, its period alone counts: {HOST}: Invalid argument (a test wants it so)"
    ]


def test_closed_it_holds_nothing_and_its_thread_has_ended(watcher: Watcher) -> None:
    watcher.alarms.watch([ALARM])
    watcher.triggers.until_it_holds(HOST)
    watcher.alarms.close()
    assert watcher.triggers.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "alarms"]


@pytest.mark.parametrize("make", [FakeTriggers, pressure.Triggers])
def test_the_fake_wakes_refuses_and_holds_as_the_real_ones(make: type[Triggers]) -> None:
    path = Path("/proc/pressure/memory")
    if pressure.read(path).some_us is None:
        pytest.skip("this kernel has no PSI")
    triggers = make()
    try:
        triggers.wake()
        assert triggers.wait() == (frozenset(), frozenset())
        triggers.add("host", path, 1_000_000, 2_000_000)
        assert triggers.keys == {"host"}
        if isinstance(triggers, FakeTriggers):
            triggers.refuse = {Path("/none"): "No such file or directory"}
        with pytest.raises(HostError, match="/none"):
            triggers.add("other", Path("/none"), 1_000_000, 2_000_000)
        triggers.drop("host")
        assert triggers.keys == frozenset()
        waiting = threading.Thread(target=triggers.wait)
        waiting.start()
        triggers.wake()
        waiting.join(30)
        assert not waiting.is_alive()
    finally:
        triggers.close()


DialLoop = Loop[Dials, int, TurnPlan, Turned]


class Ticking:
    """A loop of an hour's period in its thread, and its ticks one by one."""

    def __init__(self, directory: Path, least_wait_s: float = 0.0) -> None:
        (directory / "dials").mkdir()
        (directory / "dials/a").write_text("5")
        self.scheduler = DialScheduler(directory / "dials", Journal(directory / "journal"), period_s=3600)
        self.scheduler.least_wait_s = least_wait_s
        self.said: list[str] = []
        self._ticked = threading.Semaphore(0)
        self.loop: DialLoop = Loop(
            self.scheduler,
            SystemClock(),
            tell=self.said.append,
            listeners=[lambda loop, tick: self._ticked.release()],
        )
        self._thread = threading.Thread(target=self.loop.run)

    def until_it_ticks(self) -> None:
        assert self._ticked.acquire(timeout=60)

    def __enter__(self) -> "Ticking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_a_stall_of_this_machine_makes_a_loop_tick(tmp_path: Path) -> None:
    """By CPU pressure, since that can be made at will."""
    path = Path("/proc/pressure/cpu")
    if pressure.read(path).some_us is None:
        pytest.skip("this kernel has no PSI")
    ticking = Ticking(tmp_path)
    ticking.scheduler.watched = (
        Alarm("processors", path, 0.05, 2.0),
        Alarm("nobody", tmp_path / "pressure", 0.05, 2.0),
    )
    spin = [sys.executable, "-c", "while True: pass"]
    with ticking:
        ticking.until_it_ticks()
        workers = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            ticking.until_it_ticks()
        finally:
            for each in workers:
                each.kill()
                each.wait()
        assert ticking.loop.counts.hurried >= 1
        assert ticking.loop.alarms.watched == ("processors",)
        assert "nobody" in ticking.loop.alarms.problems[0]
    assert ["nobody" in line for line in ticking.said].count(True) == 1


def test_who_is_hurried_all_the_time_does_not_spin(tmp_path: Path) -> None:
    """Hurried at each tick and between them: four ticks are three waits."""
    with Ticking(tmp_path, least_wait_s=0.2) as ticking:
        ticking.until_it_ticks()
        began_s = SystemClock().boottime_ns() / 1e9
        for _ in range(3):
            for _ in range(10):
                ticking.loop.hurry()
            ticking.until_it_ticks()
        last = ticking.loop.last
        assert last is not None
        assert last.at_s - began_s >= 2 * 0.2
        assert ticking.loop.counts.hurried >= 3


def test_a_scheduler_that_has_work_left_is_called_soon(tmp_path: Path) -> None:
    ticking = Ticking(tmp_path)
    ticking.scheduler.soon_s = 0.01
    with ticking:
        for _ in range(6):  # five turns, and one that finds nothing to do
            ticking.until_it_ticks()
        assert (tmp_path / "dials/a").read_text() == "0"
        assert ticking.loop.counts.hurried == 5
        assert ticking.loop.last is not None
        assert ticking.loop.last.wait_s == 3600


def test_a_dry_run_is_not_called_sooner(tmp_path: Path) -> None:
    ticking = Ticking(tmp_path)
    ticking.scheduler.soon_s = 0.01
    ticking.loop.acts = False
    tick = ticking.loop.tick()
    ticking.scheduler.close()
    assert tick.plan is not None
    assert tick.plan.actions
    assert tick.wait_s is None


_TIMES = st.floats(0, 1e5)


@given(_TIMES, _TIMES, st.none() | _TIMES, _TIMES, st.booleans())
def test_ticks_before_their_time_keep_their_distance(
    ended_s: float, until_next_s: float, wait_s: float | None, least_wait_s: float, hurried: bool
) -> None:
    next_s = ended_s + until_next_s
    at_s = due(ended_s, next_s, wait_s, least_wait_s, hurried)
    assert at_s <= next_s
    assert at_s == next_s or at_s >= ended_s + least_wait_s
    assert due(ended_s, next_s, wait_s, least_wait_s, True) <= at_s  # hurrying delays nothing
    if wait_s is None and not hurried:
        assert at_s == next_s


def test_what_cannot_be_begun_is_begun_with_the_next_call() -> None:
    triggers, made = FakeTriggers(), list[int]()

    def make() -> FakeTriggers:
        made.append(1)
        if len(made) == 1:
            raise OSError("no more files")
        return triggers

    alarms = Alarms(lambda: None, lambda _: None, make)
    with pytest.raises(OSError, match="no more files"):
        alarms.watch([ALARM])
    alarms.watch([ALARM])
    triggers.until_it_holds(HOST)
    alarms.close()
