"""Sensor, decision and actuator together on a real kernel, on a program whose use of its memory is known: nothing is
large at first, what is hot is found at the highest addresses and mapped large first, a change is followed, and a block
of which one page is used is left small. Runs in the lab (tests/lab/test_large_pages.py)."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sustain.clock import Clock, SystemClock
from sustain.host import page_idle
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.counting import Counter
from sustain.schedulers.large_pages.counting_damon import DamonCounter
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.schedulers.large_pages.decide import decide
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Effect
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.sense import Sensor
from sustain.schedulers.large_pages.state import State
from sustain.testing import FakeClock
from tests.host import test_damon_kernel as damon_here
from tests.schedulers.large_pages.touching import Toucher, touching

HOT_AT_THE_END = [1, 1, 0, 1, 40, 1, 300, 420, 512]
HOT_AT_THE_START = [512, 420, 300, 1, 1, 1, 0, 0, 0]
PERIODS_TO_FOLLOW = 8


class Ticks:
    """The scheduler's loop, tick by tick."""

    def __init__(
        self, toucher: Toucher, counter: Counter, clock: Clock, journal: Journal, policy: Policy
    ) -> None:
        self._toucher = toucher
        self._sensor = Sensor([Wanted(name="t", pid=toucher.pid)], counter, clock)
        self.actuator = Actuator(journal, self._sensor.image, most_per_s=1e6, limit_s=60)
        self._policy = policy
        self._state: State | None = None
        self._effects: list[Effect] = []

    def tick(self) -> list[bool]:
        """Which of the program's blocks are large after it."""
        seen = self._sensor.read()
        decision = decide(seen, self._state, self._policy, seen.now_s, self._effects)
        self._state = decision.state
        self._effects = self.actuator.carry_out(decision.plan.actions)
        refused = [each for each in self._effects if not each.done]
        assert not refused, refused
        return [bool(each) for each in self._toucher.counted().huge]

    def close(self) -> None:
        self._sensor.close()


def until(ticks: Ticks, wanted: list[bool], most: int, period: Callable[[], None]) -> int:
    """Periods until exactly those are large."""
    for number in range(1, most + 1):
        period()
        large = ticks.tick()
        if large == wanted:
            return number
    raise AssertionError(f"after {most} periods {large}")


@pytest.mark.skipif(
    not page_idle.available() or os.geteuid() != 0, reason="this kernel has no page_idle, or no root"
)
def test_hot_blocks_are_large_first_and_a_change_is_followed(tmp_path: Path) -> None:
    clock = FakeClock()
    policy = Policy(counting_s=20, high=200, spare=200, low=100, residence_s=20, weight_period_s=10)
    with touching(HOT_AT_THE_END) as toucher, Journal(tmp_path / "j") as journal:
        ticks = Ticks(toucher, PageIdleCounter(10, clock), clock, journal, policy)

        def period() -> None:
            toucher.say("rounds 2")
            clock.advance(10)

        assert not any(ticks.tick())
        period()
        assert not any(ticks.tick()), "phase one: counted only"
        hot = [pages >= 300 for pages in HOT_AT_THE_END]
        print("large after", until(ticks, hot, 4, period), "more periods")
        for _ in range(3):
            period()
            assert ticks.tick() == hot, "it stays so"
        toucher.touch(HOT_AT_THE_START)
        hot = [pages >= 300 for pages in HOT_AT_THE_START]
        print("followed after", until(ticks, hot, PERIODS_TO_FOLLOW, period), "periods")
        assert toucher.say("check")["right"]
        assert not ticks.actuator.restore().failed
        assert not toucher.counted().huge.any()
        ticks.close()


@pytest.mark.skipif(
    "not damon_here.watches_processes()", reason="DAMON here cannot watch processes, or is in use"
)
def test_hot_blocks_are_large_first_and_a_change_is_followed_by_estimates(tmp_path: Path) -> None:
    """With a budget for just the hot ones, and a sample's interval in which the program comes around, also under
    emulation."""
    assert damon_here.count() == 0
    first, then = [1, 1, 0, 1, 40, 1, 460, 490, 512], [512, 490, 460, 1, 1, 1, 0, 0, 0]
    period_s, samples = 6.4, 8
    policy = Policy(
        counting_s=2 * period_s,
        least_counts=2,
        budget_bytes=3 * BLOCK_BYTES,
        high=200,
        spare=200,
        low=100,
        residence_s=20,
        weight_period_s=period_s / 2,
    )
    with touching(first) as toucher, Journal(tmp_path / "j") as journal:
        counter = DamonCounter(period_s, SystemClock(), journal, samples=samples)
        ticks = Ticks(toucher, counter, SystemClock(), journal, policy)

        def followed(wanted: list[bool], never: Sequence[int]) -> float:
            """Periods until exactly those are large. `never`: what must not become so on the way."""
            begun_s = time.monotonic()
            while (large := ticks.tick()) != wanted:
                assert time.monotonic() - begun_s < 20 * period_s, (large, counter.read(), counter.problems())
                assert not any(large[each] for each in never), "one page used is no reason"
                time.sleep(1)
            return (time.monotonic() - begun_s) / period_s

        try:
            assert not any(ticks.tick())
            hot = [pages >= 400 for pages in first]
            print(f"large after {followed(hot, range(6)):.1f} periods, of which two of phase one")
            toucher.touch(then)
            hot = [pages >= 400 for pages in then]
            print(f"followed after {followed(hot, (3, 4, 5)):.1f} periods")
            assert toucher.say("check")["right"]
        finally:
            ticks.close()
        assert not ticks.actuator.restore().failed
        assert not toucher.counted().huge.any()
        assert journal.entries() == ()
    assert damon_here.count() == 0
