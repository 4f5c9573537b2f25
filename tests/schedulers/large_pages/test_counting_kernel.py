"""Counting on a real kernel, of programs whose use of their memory is known. Runs in the lab (tests/lab/
test_large_pages.py), on a kernel with page_idle and on one with DAMON; elsewhere what this machine's kernel can."""

import contextlib
import errno
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host import damon, page_idle, pagemap
from sustain.host.madvise import Advice, Advisor
from sustain.host.processes import Identity, start_ticks
from sustain.schedulers.changes import DAMON
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages import counting
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.config import LargePagesConfig
from sustain.schedulers.large_pages.counting import Count, Counter, Memory
from sustain.schedulers.large_pages.counting_damon import DamonCounter
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.hand import Hand
from sustain.schedulers.large_pages.model import BLOCK_BYTES
from sustain.schedulers.large_pages.scheduler import LargePages
from sustain.testing import FakeClock
from tests.host import test_damon_kernel as damon_here
from tests.schedulers.large_pages.touching import Toucher, touching

exact = pytest.mark.skipif(
    not page_idle.available() or os.geteuid() != 0, reason="this kernel has no page_idle, or no root"
)
damons = pytest.mark.skipif(
    "not damon_here.watches_processes()", reason="DAMON here cannot watch processes, or is in use"
)

# Hot at high addresses, with blocks of a single page and one that nobody uses.
PATTERN = [0, 1, 2, 17, 64, 1, 128, 0, 256, 300, 511, 512]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def counter(clock: FakeClock) -> Iterator[PageIdleCounter]:
    with contextlib.closing(PageIdleCounter(10, clock)) as found:
        yield found


def one_period(counter: PageIdleCounter, clock: FakeClock, *touchers: Toucher, shared: bool = False) -> None:
    """A period in which each has been around three times."""
    counter.start([each.memory(shared=shared) for each in touchers])
    for each in touchers:
        each.say("rounds 3")
    clock.advance(10)


@exact
@pytest.mark.parametrize("kind", ["private", "shared", "memfd"])
def test_exactly_what_is_touched(kind: str, counter: PageIdleCounter, clock: FakeClock) -> None:
    with touching(PATTERN, kind) as toucher:
        one_period(counter, clock, toucher, shared=kind != "private")
        assert counter.problems() == {}
        count = counter.read()[toucher.who]
        print(count.touched.tolist(), count.error.tolist())
        assert count.touched.tolist() == PATTERN
        assert not count.error.any()
        assert not count.whole.any()
        assert count.window_s == pytest.approx(10)
        # A phase change is there with the next period, and nothing of the one before.
        changed = PATTERN[::-1]
        toucher.touch(changed)
        toucher.say("rounds 2")
        one_period(counter, clock, toucher, shared=kind != "private")
        assert counter.read()[toucher.who].touched.tolist() == changed


@exact
def test_several_processes_at_once(counter: PageIdleCounter, clock: FakeClock) -> None:
    with touching([3, 500]) as one, touching([40, 0, 7], "memfd") as other:
        one_period(counter, clock, one, other)
        found = counter.read()
        assert found[one.who].touched.tolist() == [3, 500]
        assert found[other.who].touched.tolist() == [40, 0, 7]
        counter.start([other.memory()])
        assert one.who not in counter.read()


@exact
def test_of_a_large_block_only_whether_it_is_used(counter: PageIdleCounter, clock: FakeClock) -> None:
    with touching([1, 0, 9]) as toucher, Advisor(toucher.who) as advisor:
        advisor.advise([(toucher.start, toucher.start + 2 * BLOCK_BYTES)], Advice.COLLAPSE)
        assert toucher.counted().huge.tolist() == [True, True, False]
        one_period(counter, clock, toucher)
        count = counter.read()[toucher.who]
        assert count.touched.tolist() == [512, 0, 9]
        assert count.whole.tolist() == [True, True, False]
        # Mapped small for a while, its pages are known again; the period in which that was done says nothing.
        counter.start([toucher.memory()])
        advisor.advise([(toucher.start, toucher.start + 4096)], Advice.COLD)
        assert toucher.counted().huge.tolist() == [False, True, False]
        toucher.say("rounds 3")
        clock.advance(10)
        count = counter.read()[toucher.who]
        assert np.isnan(count.touched).tolist() == [True, False, False]
        one_period(counter, clock, toucher)
        count = counter.read()[toucher.who]
        assert count.touched.tolist() == [1, 0, 9]
        assert count.whole.tolist() == [False, True, False]


@exact
def test_pages_that_come_and_blocks_that_are_collapsed_within_a_period(
    counter: PageIdleCounter, clock: FakeClock
) -> None:
    with touching([0, 512, 5]) as toucher, Advisor(toucher.who) as advisor:
        toucher.touch([0, 0, 5])
        toucher.say("cut 1")
        counter.start([toucher.memory()])
        toucher.touch([0, 512, 5])
        toucher.say("rounds 2")
        advisor.advise([(toucher.address(2), toucher.address(3))], Advice.COLLAPSE)
        clock.advance(10)
        count = counter.read()[toucher.who]
        assert count.touched[:2].tolist() == [0, 512]
        assert np.isnan(count.touched[2])


@exact
def test_one_that_ends_and_one_that_becomes_another_program(
    counter: PageIdleCounter, clock: FakeClock
) -> None:
    with touching([5, 6]) as toucher:
        before = toucher.memory()
        counter.start([before])
        toucher.become_anew()
        assert toucher.memory().image != before.image
        one_period(counter, clock, toucher)
        count = counter.read()[toucher.who]
        assert count.image != before.image
        assert count.touched.tolist() == [5, 6]
        memory = toucher.memory()
        counter.start([memory])
    clock.advance(10)
    counter.read()
    assert "No such" in counter.problems()[memory.who] or "gone" in counter.problems()[memory.who]
    counter.start([])
    assert (counter.read(), counter.problems()) == ({}, {})


def wait_for(counter: Counter, who: object, limit_s: float = 120) -> Count:
    deadline_s = time.monotonic() + limit_s
    while who not in (found := counter.read()):
        assert time.monotonic() < deadline_s, counter.problems()
        assert not counter.problems()
        time.sleep(0.05)
    return found[who]  # type: ignore[index]


@damons
def test_estimates_are_within_their_error(tmp_path: Path) -> None:
    # A sample interval in which the touchers come around, also under emulation.
    with (
        touching(PATTERN) as one,
        touching([400, 30, 0, 100], "memfd") as other,
        Journal(tmp_path / "j") as journal,
    ):
        counter = DamonCounter(12.8, SystemClock(), journal, samples=16)
        assert counter.attributes.samples == 16
        memories = [one.memory(), other.memory(shared=True)]
        counter.start(memories)
        counts = [wait_for(counter, each.who) for each in memories]
        assert [each.kind for each in journal.entries()] == [DAMON]
        begun_s = time.monotonic()
        counter.close()  # in the middle of a period
        assert time.monotonic() - begun_s < 5
        assert (journal.entries(), damon_here.count()) == ((), 0)
    deviations = []
    for count, truth in zip(counts, (PATTERN, [400, 30, 0, 100]), strict=True):
        print([*zip(count.touched.tolist(), count.error.tolist(), truth, strict=True)])
        assert count.window_s == pytest.approx(0.8)
        for touched, pages in zip(count.touched, truth, strict=True):
            share = pages / 512
            error = max((share * (1 - share) / 16) ** 0.5, 1 / 16) * 512
            deviations.append(abs(float(touched) - pages) / error)
    assert max(deviations) < 4
    assert sum(each > 2 for each in deviations) <= 3
    assert counts[0].touched[0] == counts[0].touched[7] == 0
    assert counts[0].touched[11] > 450


@damons
def test_what_is_counted_changes_and_ends(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        counter = DamonCounter(1.6, SystemClock(), journal, samples=16)
        try:
            with touching([512, 0]) as one:
                counter.start([one.memory()])
                assert len(wait_for(counter, one.who).addresses) == 2
                with touching([0, 512, 0, 0]) as other, Advisor(other.who) as advisor:
                    advisor.advise([(other.address(1), other.address(3))], Advice.COLLAPSE)
                    counter.start([one.memory(), other.memory()])
                    count = wait_for(counter, other.who)
                    assert count.whole.tolist() == [False, True, True, False]
                    assert count.touched[[0, 1, 2]].tolist() == [0, 512, 0]
                    counter.start([one.memory()])
                    assert other.who not in counter.read()
            counter.start([])
            deadline_s = time.monotonic() + 60
            while damon_here.count():
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            assert journal.entries() == ()
        finally:
            counter.close()


@damons
def test_somebody_else_uses_damon(tmp_path: Path) -> None:
    admin = Path("/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds")
    admin.write_text("1")
    try:
        with touching([1, 2, 3]) as toucher, Journal(tmp_path / "j") as journal:
            counter = DamonCounter(1.6, SystemClock(), journal)
            counter.start([toucher.memory()])
            deadline_s = time.monotonic() + 60
            while not counter.problems():
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            assert "set up by somebody else" in counter.problems()[toucher.who]
            counter.close()
            assert admin.read_text().strip() == "1"
    finally:
        admin.write_text("0")


_VICTIM = """
import sys
import numpy as np
from sustain.clock import SystemClock
from sustain.host import smaps
from sustain.host.processes import identify
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.counting import Memory
from sustain.schedulers.large_pages.counting_damon import DamonCounter
pid, start, blocks = map(int, sys.argv[2:])
addresses = start + np.arange(blocks, dtype=np.uint64) * np.uint64(2 << 20)
memory = Memory(identify(pid), smaps.image(pid), addresses, np.zeros(blocks, bool))
counter = DamonCounter(6, SystemClock(), Journal(sys.argv[1]))
counter.start([memory])
sys.stdin.read()
"""


def watching() -> bool:
    """Whether a kdamond runs, as far as the kernel is not busy with a command at this moment."""
    for slot in range(damon_here.count()):
        try:
            if (damon_here.ADMIN / str(slot) / "state").read_text().strip() == "on":
                return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    return False


@damons
def test_killed_while_it_counts_nothing_of_damon_is_left(tmp_path: Path) -> None:
    with touching([1, 2, 3]) as toucher:
        arguments = [str(tmp_path / "j"), str(toucher.pid), str(toucher.start), str(toucher.blocks)]
        victim = subprocess.Popen([sys.executable, "-c", _VICTIM, *arguments], stdin=subprocess.PIPE)
        deadline_s = time.monotonic() + 60
        while not watching():
            assert time.monotonic() < deadline_s
            assert victim.poll() is None
            time.sleep(0.05)
        victim.kill()
        victim.communicate()  # the kernel lets it die when the command that it waits for has ended: two periods
        with Journal(tmp_path / "j") as journal:
            (undone,) = Actuator(journal).restore().undone
            assert (undone.entry.kind, undone.outcome) == (DAMON, "restored"), undone
            assert journal.entries() == ()
        assert damon_here.count() == 0


class _Watch:
    """In place of the kernel's: every block was used in each sample, and `meanwhile` comes to pass in a reading."""

    def __init__(self, clock: FakeClock, regions: list[damon.Run]) -> None:
        self.clock = clock
        self.regions = regions
        self.readings: queue.Queue[Callable[[], object] | None] = queue.Queue()

    def counts(self) -> list[tuple[int, int]]:
        meanwhile = self.readings.get(timeout=60)
        if meanwhile is None:
            raise HostError("interrupted")
        meanwhile()
        self.clock.advance(25)
        return [(start, 32) for start, _ in self.regions]

    def close(self) -> None:
        """Nothing."""


class _Damon:
    """In place of the kernel's."""

    clock: FakeClock
    watch: _Watch

    def __init__(self, *_: object) -> None:
        """Nothing."""

    def watch_all(self, targets: list[tuple[int, list[damon.Run]]], _: object) -> _Watch:
        _Damon.watch = _Watch(self.clock, [each for _, regions in targets for each in regions])
        return _Damon.watch

    def interrupt(self) -> None:
        self.watch.readings.put(None)

    def close(self) -> None:
        """Nothing."""


@pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)
def test_of_a_block_that_is_split_within_a_period_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the kernel's DAMON is made up: the blocks are split and collapsed by the kernel of this machine."""
    clock = _Damon.clock = FakeClock()
    monkeypatch.setattr("sustain.schedulers.large_pages.counting_damon.Damon", _Damon)
    with (
        touching([512] * 4) as toucher,
        Hand(toucher.who) as hand,
        Journal(tmp_path / "j") as journal,
        contextlib.closing(DamonCounter(10, clock, journal)) as counter,
    ):
        for block in (0, 1):
            assert hand.enlarge(toucher.address(block)).outcome == "done"
        begun_s = clock.boottime_ns() / 1e9
        counter.start([toucher.memory()])

        def read(meanwhile: Callable[[], object]) -> Count:
            """The next reading, in which that comes to pass."""
            before = counter.read().get(toucher.who)
            deadline_s = time.monotonic() + 60
            while not hasattr(_Damon, "watch"):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            _Damon.watch.readings.put(meanwhile)
            while (found := counter.read().get(toucher.who)) is before:
                assert time.monotonic() < deadline_s, counter.problems()
                time.sleep(0.01)
            assert found is not None
            return found

        count = read(lambda: None)
        assert count.whole.tolist() == [True, True, False, False]
        assert count.touched.tolist() == [512] * 4
        # The aggregation that it tells of may have begun one before it was asked for.
        assert count.at_s - count.period_s == pytest.approx(begun_s - 10)
        count = read(lambda: (hand.reduce(toucher.address(0)), hand.enlarge(toucher.address(2))))
        assert count.whole.tolist() == [False, True, True, False]
        assert np.isnan(count.touched).tolist() == [True, False, True, False]
        assert np.isnan(count.error).tolist() == [True, False, True, False]
        count = read(lambda: None)
        assert count.touched.tolist() == [512] * 4
        assert count.error[0] > count.error[1] == 0


def test_readings_wait_until_they_take_their_share() -> None:
    gib = 512
    assert counting.least_s(0.05, gib, 0.01, 10) == 10, "half of it"
    assert counting.least_s(0.25, gib, 0.01, 10) == pytest.approx(25)
    assert counting.least_s(0.25, 4 * gib, 0.01, 10) == 10
    assert counting.least_s(0.25, 4, 0.01, 10) == pytest.approx(25), "of little as of a GiB"
    assert counting.least_s(9.0, gib, 0.01, 10) == 60, "six periods"


@pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)
def test_one_that_waits_for_its_next_reading_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Damon.clock = FakeClock()
    monkeypatch.setattr("sustain.schedulers.large_pages.counting_damon.Damon", _Damon)
    monkeypatch.delattr(_Damon, "watch", raising=False)
    waits: queue.Queue[float] = queue.Queue()
    least_s = counting.least_s

    def recorded(*words: float) -> float:
        waits.put(least_s(*words))  # type: ignore[arg-type]
        return waits.queue[-1]

    monkeypatch.setattr("sustain.schedulers.large_pages.counting_damon.least_s", recorded)
    with touching([512] * 4) as toucher, Journal(tmp_path / "j") as journal:
        counter = DamonCounter(3600, clock, journal, share=1e-9)
        counter.start([toucher.memory()])
        deadline_s = time.monotonic() + 60
        while not hasattr(_Damon, "watch"):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        _Damon.watch.readings.put(lambda: None)
        assert waits.get(timeout=60) == 6 * 3600
        assert toucher.who in counter.read()
        begun_s = time.monotonic()
        counter.close()
        assert time.monotonic() - begun_s < 30


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ValueError("a defect")])
def test_whatever_fails_is_said_and_the_thread_goes_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sustain.schedulers.large_pages.counting_damon.Damon", fail)
    memory = Memory(
        Identity(os.getpid(), start_ticks(os.getpid()) or 0), 1, np.zeros(1, np.uint64), np.zeros(1, np.bool_)
    )
    with (
        Journal(tmp_path / "j") as journal,
        contextlib.closing(DamonCounter(10, FakeClock(), journal)) as counter,
    ):
        monkeypatch.setattr(
            "sustain.schedulers.large_pages.counting_damon.large", lambda *_: np.zeros(1, np.bool_)
        )
        counter.start([memory])
        deadline_s = time.monotonic() + 60
        while not counter.problems():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert str(error) in counter.problems()[memory.who]
        assert any(each.name == "count by DAMON" for each in threading.enumerate())


def test_a_kernel_that_cannot_says_what_it_lacks(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for way, missing in (
            ("page-idle", "CONFIG_IDLE_PAGE_TRACKING"),
            ("damon", "CONFIG_DAMON_VADDR"),
            ("auto", "CONFIG_DAMON_VADDR"),
        ):
            with pytest.raises(HostError) as caught:
                counting.counter(way, 10, SystemClock(), journal, tmp_path)  # type: ignore[arg-type]
            assert missing in caught.value.hint
        none, why = counting.counter("none", 10, SystemClock(), journal, tmp_path)
        none.start([])
        assert (none.kind, none.read(), none.problems(), why) == ("none", {}, {}, "")
        none.close()


_WAYS = """
import sys
from pathlib import Path
from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages import counting
root = Path(sys.argv[1])
with Journal(root / "j") as journal:
    for way in sys.argv[2:]:
        try:
            found, _ = counting.counter(way, 10, SystemClock(), journal, root)
            print(found.kind)
            found.close()
        except HostError as error:
            print(f"{error} ({error.hint})")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="it gives a right of root away")
@pytest.mark.parametrize("admin", [True, False])
def test_without_the_right_to_see_frames_estimates_are_taken(tmp_path: Path, admin: bool) -> None:
    """A kernel that has both, to a process with the rights that the unit file leaves it."""
    (tmp_path / "proc").symlink_to("/proc")
    for file in ("sys/kernel/mm/page_idle/bitmap", "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    drop = [] if admin else ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    said = subprocess.run(
        [*drop, sys.executable, "-c", _WAYS, str(tmp_path), "auto", "page-idle"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if admin:
        if "hidden" in said[1]:
            pytest.skip("frames are hidden here from root, too")
        assert said == ["page-idle", "page-idle"]
    else:
        assert said[0] == "damon"
        assert "frame numbers are hidden" in said[1]
        assert "CAP_SYS_ADMIN" in said[1]


def ways(tmp_path: Path, damon: bool = True) -> None:
    """A tree that has both ways of counting, as far as can be seen without trying, or the exact one alone."""
    files = [page_idle.path(tmp_path), tmp_path / "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds"]
    for file in files[: 1 + damon]:
        file.parent.mkdir(parents=True)
        file.touch()


def test_while_somebody_else_counts_exactly_estimates_are_taken_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_idle, "hidden", lambda *_: None)
    ways(tmp_path)
    with Journal(tmp_path / "j") as journal:

        def count(way: counting.Ways) -> tuple[Counter, str]:
            return counting.counter(way, 10, FakeClock(), journal, tmp_path)

        first, why = count("auto")
        assert (first.kind, why) == ("page-idle", "")
        second, why = count("auto")
        assert second.kind == "damon"
        assert "not counted exactly" in why
        assert "counts by it" in why
        with pytest.raises(HostError, match="counts by it"):
            count("page-idle")
        assert count("damon")[1] == "", "it is what was wanted"
        config = LargePagesConfig(targets=(Wanted(name="none", command="no such"),))
        with contextlib.closing(LargePages(config, 10, FakeClock(), journal, root=tmp_path)) as scheduler:
            assert any("counts by it" in note for note in scheduler.sense().notes)
        first.close()
        third, why = count("auto")
        assert (third.kind, why) == ("page-idle", "")
        third.close()


def test_where_nothing_else_counts_that_somebody_else_does_is_why_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_idle, "hidden", lambda *_: None)
    ways(tmp_path, damon=False)
    with contextlib.closing(PageIdleCounter(10, FakeClock(), tmp_path)), Journal(tmp_path / "j") as journal:
        with pytest.raises(HostError, match=r"counts by it.*no DAMON") as caught:
            counting.counter("auto", 10, FakeClock(), journal, tmp_path)
        assert "end that one" in caught.value.hint
