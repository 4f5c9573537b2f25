"""One observation of real processes: their blocks as they are, counts with their age, and what is said of the rest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host import pagemap
from sustain.host.processes import Identity
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.counting import Count, Memory
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.hand import Hand
from sustain.schedulers.large_pages.model import Collapse, Counting, Observation
from sustain.schedulers.large_pages.sense import Sensor
from sustain.testing import FakeClock
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)


class Told:
    """Implements `counting.Counter`: counts what it is told, of the blocks that it was started with."""

    kind: Counting = "page-idle"

    def __init__(self) -> None:
        self.memories: dict[Identity, Memory] = {}
        self.counts: dict[Identity, Count] = {}
        self.said: dict[Identity, str] = {}
        self.closed = False

    def start(self, memories: Sequence[Memory]) -> None:
        self.memories = {each.who: each for each in memories}

    def read(self) -> Mapping[Identity, Count]:
        return dict(self.counts)

    def problems(self) -> Mapping[Identity, str]:
        return dict(self.said)

    def close(self) -> None:
        self.closed = True

    def tell(self, toucher: Toucher, at_s: float, touched: Mapping[int, float]) -> None:
        """Pages of some of its blocks; of the others nothing is known."""
        memory = self.memories[toucher.who]
        column = np.full(len(memory.addresses), np.nan, np.float32)
        for block, pages in touched.items():
            column[memory.addresses == toucher.address(block)] = pages
        error = np.where(np.isnan(column), np.nan, 0).astype(np.float32)
        whole = np.zeros(len(column), np.bool_)
        self.counts[toucher.who] = Count(
            memory.image, at_s, 10.0, memory.addresses, column, error, whole, 10.0
        )


def rows(seen: Observation, toucher: Toucher) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Of its blocks, in their order."""
    (target,) = (place for place, each in enumerate(seen.targets) if each.pid == toucher.pid)
    addresses = seen.blocks.address
    wanted = np.array([toucher.address(block) for block in range(toucher.blocks)], np.uint64)
    found = np.flatnonzero((seen.blocks.target == target) & np.isin(addresses, wanted))
    assert addresses[found].tolist() == wanted.tolist()
    return found


def test_blocks_as_they_are_and_counts_with_their_age() -> None:
    clock, counter = FakeClock(1000), Told()
    with touching([1, 2, 3]) as one, touching([4, 5], "memfd") as other:
        other.say("cut 0")
        one.say("forbid 1")
        sensor = Sensor(
            [Wanted(name="one", pid=one.pid), Wanted(name="other", pid=other.pid)], counter, clock
        )
        seen = sensor.read()
        assert [(each.name, each.pid, each.counting) for each in seen.targets] == [
            ("one", one.pid, "page-idle"),
            ("other", other.pid, "page-idle"),
        ]
        order = np.lexsort((seen.blocks.address, seen.blocks.target))
        assert order.tolist() == list(range(len(order)))
        blocks = seen.blocks.rows(rows(seen, one))
        assert blocks.populated.tolist() == [512, 512, 512]
        assert blocks.eligible.tolist() == [True, False, True]
        assert not blocks.large.any()
        assert np.isnan(blocks.touched).all()
        assert np.isnan(blocks.age_s).all()
        assert set(blocks.guest_large.tolist()) == {-1}
        of_memfd = counter.memories[other.who]
        assert of_memfd.addresses[of_memfd.shared].tolist() == [other.address(0), other.address(1)]
        assert not counter.memories[one.who].shared.any()

        counter.tell(one, 1000, {0: 7, 1: 8, 2: 9})
        clock.advance(5)
        seen = sensor.read()
        blocks = seen.blocks.rows(rows(seen, one))
        assert blocks.touched.tolist() == [7, 8, 9]
        assert blocks.error.tolist() == [0, 0, 0]
        assert blocks.age_s.tolist() == [5, 5, 5]
        assert np.isnan(seen.blocks.rows(rows(seen, other)).touched).all()
        assert seen.targets[0].window_s == 10

        # A period that says nothing of a block leaves what was known, and its age; what is unmapped is not there.
        counter.tell(one, 1010, {0: 1})
        one.say("unmap 1")
        one.blocks = 2
        clock.advance(10)
        seen = sensor.read()
        blocks = seen.blocks.rows(rows(seen, one))
        assert blocks.touched.tolist() == [1, 8]
        assert blocks.age_s.tolist() == [5, 15]
        counter.said[one.who] = "why not"
        assert "why not" in sensor.read().targets[0].problems
        sensor.close()
        assert counter.closed


def test_what_is_large_at_the_beginning_is_said_and_how_to_avoid_it() -> None:
    with touching([1, 1]) as toucher:
        sensor = Sensor([Wanted(name="t", pid=toucher.pid)], Told(), FakeClock())
        with Hand(toucher.who) as hand:
            assert hand.enlarge(toucher.address(1)).outcome == "done"
        seen = sensor.read()
        assert seen.blocks.rows(rows(seen, toucher)).large.tolist() == [False, True]
        (problem,) = seen.targets[0].problems
        assert "1 of its blocks were mapped large at the beginning" in problem
        assert "echo never > /sys/kernel/mm/transparent_hugepage/enabled" in problem
        with Hand(toucher.who) as hand:
            assert hand.reduce(toucher.address(1)).outcome == "done"
        assert sensor.read().targets[0].problems == ()
        toucher.say("never")
        (problem,) = sensor.read().targets[0].problems
        assert "PR_SET_THP_DISABLE" in problem


def test_what_we_map_large_ourselves_is_no_such_problem(tmp_path: object) -> None:
    with touching([1, 1]) as toucher, Journal(f"{tmp_path}/j") as journal:
        sensor = Sensor([Wanted(name="t", pid=toucher.pid)], Told(), FakeClock())
        sensor.read()
        actuator = Actuator(journal, sensor.image)
        common = {"target": "t", "pid": toucher.pid, "started": toucher.who.start_ticks, "reason": ""}
        (effect,) = actuator.carry_out([Collapse(address=toucher.address(0), purpose="pays", **common)])  # type: ignore[arg-type]
        assert effect.done
        seen = sensor.read()
        assert seen.blocks.rows(rows(seen, toucher)).large.tolist() == [True, False]
        assert seen.targets[0].problems == ()
        toucher.become_anew()
        (effect,) = actuator.carry_out([Collapse(address=toucher.address(0), purpose="pays", **common)])  # type: ignore[arg-type]
        assert (effect.outcome, effect.detail) == ("gone", "it is another program by now")


def test_one_that_becomes_another_program_begins_anew_and_one_that_ends_is_gone() -> None:
    clock, counter = FakeClock(), Told()
    with touching([1, 2]) as toucher:
        sensor = Sensor([Wanted(name="t", pid=toucher.pid)], counter, clock)
        sensor.read()
        counter.tell(toucher, 1000, {0: 7, 1: 8})
        before = sensor.image(toucher.who)
        sensor.read()
        toucher.become_anew()
        seen = sensor.read()
        assert np.isnan(seen.blocks.touched).all()
        assert sensor.image(toucher.who) not in (None, before)
        (target,) = seen.targets
        assert (target.program, target.looked, target.life.endswith(":1")) == (1, True, True)
    seen = sensor.read()
    assert (seen.targets, len(seen.blocks)) == ((), 0)
    assert "t: there is no such process now" in seen.notes
    assert counter.memories == {}
    assert sensor.image(toucher.who) is None


def test_one_that_cannot_be_looked_at_is_said_and_is_still_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise HostError("it may not be looked at")

    with touching([1, 2]) as toucher:
        sensor = Sensor([Wanted(name="t", pid=toucher.pid)], Told(), FakeClock())
        toucher.become_anew()
        sensor.read()
        toucher.become_anew()
        (before,) = sensor.read().targets
        with monkeypatch.context() as patch:
            patch.setattr("sustain.schedulers.large_pages.sense.Pagemap", refuse)
            (target,) = sensor.read().targets
        assert (target.looked, target.life, target.problems) == (
            False,
            before.life,
            ("it may not be looked at",),
        )
        (after,) = sensor.read().targets
        assert (after.looked, after.life) == (True, before.life)


def test_one_that_cannot_be_found_for_a_moment_keeps_its_counts(tmp_path: Path) -> None:
    clock, counter = FakeClock(1000), Told()
    file = tmp_path / "db.pid"
    with touching([1, 2]) as toucher:
        file.write_text(str(toucher.pid))
        sensor = Sensor([Wanted(name="db", pid_file=str(file))], counter, clock)
        sensor.read()
        counter.tell(toucher, 1000, {0: 7, 1: 8})
        (before,) = sensor.read().targets
        file.unlink()
        for _ in range(2):
            seen = sensor.read()
            (target,) = seen.targets
            assert (target.life, target.looked) == (before.life, True)
            assert seen.blocks.rows(rows(seen, toucher)).touched.tolist() == [7, 8]
            assert toucher.who in counter.memories, "and is counted on"
            assert any(str(file) in note for note in seen.notes)
        file.write_text(str(toucher.pid))
        assert not any(str(file) in note for note in sensor.read().notes)
        file.unlink()
    seen = sensor.read()
    assert (seen.targets, len(seen.blocks)) == ((), 0)


def test_the_host() -> None:
    clock = FakeClock()
    sensor = Sensor([], None, clock)
    host = sensor.read().host
    assert host.problems == ()
    assert (host.total_bytes or 0) > (host.available_bytes or 0) > 0
    assert host.free_large_pages is not None
    assert host.settings.enabled in ("always", "madvise", "never")
    assert host.pressure is None, "two readings make a share"
    clock.advance(10)
    pressure = sensor.read().host.pressure
    assert pressure is None or 0 <= pressure <= 1
