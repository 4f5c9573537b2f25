"""The prioritiser on the kernel of the machine that runs this, with a real process and real mappings; its counts are
made up where the kernel cannot count, and the decision's time is a made-up clock's."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sustain.clock import Clock
from sustain.errors import ConfigError, UnknownTarget
from sustain.host import pagemap
from sustain.host.processes import Identity
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.config import LargePagesConfig
from sustain.schedulers.large_pages.counting import Count, Memory
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.hand import Hand
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Counting
from sustain.schedulers.large_pages.ours import Ours
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.scheduler import LargePages
from sustain.schedulers.loop import Loop
from sustain.testing.clock import FakeClock
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)
_PERIOD_S = 10.0


class MadeUp:
    """Counts that each block has, by its place in the toucher's memory; of others none is used."""

    kind: Counting = "page-idle"

    def __init__(self, clock: Clock, toucher: Toucher, counts: Sequence[int]) -> None:
        self._clock, self._toucher = clock, toucher
        self.counts = list(counts)
        self._memories: Sequence[Memory] = ()

    def start(self, memories: Sequence[Memory]) -> None:
        self._memories = memories

    def read(self) -> Mapping[Identity, Count]:
        if self._toucher.process.poll() is not None:
            return {}
        return {each.who: self._count(each) for each in self._memories}

    def problems(self) -> Mapping[Identity, str]:
        return {}

    def close(self) -> None:
        self._memories = ()

    def _count(self, memory: Memory) -> Count:
        touched = np.zeros(len(memory.addresses), np.float32)
        for block, pages in enumerate(self.counts):
            touched[memory.addresses == np.uint64(self._toucher.address(block))] = pages
        huge = np.zeros(len(touched), np.bool_)
        for block, is_large in enumerate(self._toucher.counted().huge.tolist()):
            huge[memory.addresses == np.uint64(self._toucher.address(block))] = is_large
        return Count(
            image=memory.image,
            at_s=self._clock.boottime_ns() / 1e9,
            window_s=_PERIOD_S,
            addresses=memory.addresses,
            touched=np.where(huge, (touched > 0) * np.float32(512), touched),
            error=np.zeros(len(touched), np.float32),
            whole=huge,
            period_s=_PERIOD_S,
        )


class Rig:
    """A toucher of six blocks, the scheduler, and its loop."""

    def __init__(self, directory: Path, toucher: Toucher, **policy: Any) -> None:
        self.toucher, self.clock = toucher, FakeClock()
        self.counts = MadeUp(self.clock, toucher, [10, 400, 0, 300, 500, 200])
        self.config = LargePagesConfig(
            targets=(Wanted(name="t", pid=toucher.pid),),
            policy=Policy(counting_s=20.0, residence_s=15.0, low=5.0, **policy),
        )
        self.scheduler = LargePages(
            self.config, _PERIOD_S, self.clock, Journal(directory / "pages.journal"), counts=self.counts
        )
        self.loop: Any = Loop(self.scheduler, self.clock)

    def ticks(self, count: int) -> list[bool]:
        """That many, a period apart; which blocks are large then."""
        for _ in range(count):
            tick = self.loop.tick()
            assert not tick.problem, tick.problem
            self.clock.advance(_PERIOD_S)
        return self.large

    @property
    def large(self) -> list[bool]:
        found: list[bool] = self.toucher.counted().huge.tolist()
        return found


@pytest.fixture
def toucher() -> Iterator[Toucher]:
    with touching([512] * 6) as found:
        yield found


def test_only_counts_at_first_then_the_best_are_large_then_all_is_put_back(
    tmp_path: Path, toucher: Toucher
) -> None:
    rig = Rig(tmp_path, toucher, budget_bytes=2 * BLOCK_BYTES)
    try:
        assert not any(rig.ticks(3))
        assert rig.ticks(2) == [False, True, False, False, True, False]
        rig.counts.counts = [500, 0, 0, 0, 500, 0]
        assert rig.ticks(10) == [True, False, False, False, True, False]
        plan = rig.scheduler.ask("plan", {}, rig.loop.good)["plan"]
        assert plan["totals"]["large"] == 2
        assert (
            "found         kept"
            in rig.scheduler.ask("explain", {"target": "t", "address": hex(toucher.start)}, rig.loop.good)[
                "text"
            ]
        )
        columns = rig.scheduler.ask("map", {"target": "t"}, rig.loop.good)["columns"]
        assert sum(columns["large"]) == 2
        assert toucher.say("check")
        assert {each.outcome for each in rig.scheduler.restore().undone} == {"restored"}
        assert not any(rig.large)
    finally:
        rig.scheduler.close()


def test_notes_of_what_is_not_ours_any_more_are_let_go(tmp_path: Path, toucher: Toucher) -> None:
    rig = Rig(tmp_path, toucher, budget_bytes=3 * BLOCK_BYTES)
    journal = rig.scheduler._journal
    assert journal is not None

    def noted() -> list[int]:
        return sorted(
            address - toucher.start >> 21
            for each in Ours(journal).spans()
            for address in each.addresses(each.changed)
        )

    try:
        assert rig.ticks(5) == [False, True, False, True, True, False]
        assert noted() == [1, 3, 4]
        with Hand(toucher.who) as hand:
            assert hand.reduce(toucher.address(1)).outcome == "done"
        rig.ticks(1)
        assert noted() == [3, 4, 5], "its place is taken by the next"
        toucher.say("unmap 2")
        toucher.blocks = 4
        rig.counts.counts = rig.counts.counts[:4]
        rig.ticks(1)
        assert noted() == [3]
        toucher.process.kill()
        toucher.process.wait()
        rig.loop.tick()
        assert journal.entries() == ()
    finally:
        rig.scheduler.close()


def test_what_is_asked_wrongly_is_refused(tmp_path: Path, toucher: Toucher) -> None:
    rig = Rig(tmp_path, toucher)
    try:
        rig.ticks(1)
        for words, error in (
            ({"target": "u"}, UnknownTarget),
            ({"target": "t", "address": "x"}, ConfigError),
        ):
            with pytest.raises(error):
                rig.scheduler.ask("explain", words, rig.loop.good)
        with pytest.raises(ConfigError, match="no such question"):
            rig.scheduler.ask("admit", {}, rig.loop.good)
    finally:
        rig.scheduler.close()


def test_a_target_that_ends_is_no_failure(tmp_path: Path, toucher: Toucher) -> None:
    rig = Rig(tmp_path, toucher)
    try:
        rig.ticks(3)
        toucher.process.kill()
        toucher.process.wait()
        for _ in range(3):
            tick = rig.loop.tick()
            assert not tick.problem
        assert tick.plan.targets == ()
        assert "t: there is no such process now" in tick.plan.problems
    finally:
        rig.scheduler.close()


def test_counting_that_was_not_possible_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else counted by the host's marks when we began, and has ended."""
    clock, found = FakeClock(), []
    with touching([0]) as toucher:
        config = LargePagesConfig(targets=(Wanted(name="it", pid=toucher.process.pid),))

        def counter(*_: object) -> tuple[object, tuple[str, ...]]:
            found.append(clock.boottime_ns() / 1e9)
            return (None, ("taken",)) if len(found) < 3 else (MadeUp(clock, toucher, [7]), ())

        monkeypatch.setattr("sustain.schedulers.large_pages.scheduler._counter", counter)
        scheduler = LargePages(config, _PERIOD_S, clock, None)
        looks = []
        for _ in range(15):
            looks.append(scheduler.sense())
            clock.advance(_PERIOD_S)
        scheduler.close()
    assert np.diff(found) == pytest.approx([60, 60])
    assert "taken" in looks[11].notes
    assert "taken" not in looks[12].notes
    assert looks[13].targets[0].counting == "page-idle"
