"""Sampling by the host: which way is taken, and what DAMON's counts come to. The memory is this process's own, DAMON a
tree of files (tests/host/test_damon.py); with a real one: tests/host/test_damon_kernel.py."""

import contextlib
import ctypes
import errno
import mmap
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sustain.clock import SystemClock
from sustain.errors import HostError, SustainError
from sustain.host import damon, page_idle
from sustain.host.damon import Damon, Totals, Watch
from sustain.host.maps import Area
from sustain.host.processes import Identity, identify
from sustain.schedulers.guest_memory import sampling
from sustain.schedulers.guest_memory.sampling import PAGES, Sampled, Sampler, draw
from sustain.testing import FakeClock
from tests.host.test_damon import made, says
from tests.host.test_page_idle import Tree

T = TypeVar("T")

COUNT = 4096  # pages
PAGE = 4096


class Noted:
    def __init__(self) -> None:
        self.keys: list[str] = []
        self.all: list[str] = []

    def note(
        self, key: str, kind: str, target: Mapping[str, Any], prior: Any, new: Any, aside: Any = None
    ) -> None:
        self.all.append(key)
        if key not in self.keys:
            self.keys.append(key)

    def forget(self, key: str) -> None:
        self.keys.remove(key)


class Memory:
    """All of it written, in small pages."""

    def __init__(self) -> None:
        self._view = mmap.mmap(-1, COUNT * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(COUNT):
            self._view[page * PAGE] = 1
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._view))
        self.areas = (Area(at, at + COUNT * PAGE, "anonymous", ""),)

    def drop(self, share: float) -> None:
        self._view.madvise(mmap.MADV_DONTNEED, 0, int(COUNT * share) * PAGE)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def me() -> Identity:
    who = identify(os.getpid())
    assert who is not None
    return who


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def opened(tmp_path: Path, noted: Noted) -> Iterator[Callable[[], Sampler]]:
    (tmp_path / "proc").symlink_to("/proc")
    samplers: list[Sampler] = []

    def open_one() -> Sampler:
        samplers.append(Sampler(noted, SystemClock(), tmp_path, window_s=0.1))
        return samplers[-1]

    yield open_one
    for each in samplers:
        each.close()


def until(look: Callable[[], T | None]) -> T:
    deadline_s = time.monotonic() + 60
    while True:
        found = look()
        if found is not None:
            return found
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def counted(top: Path, seen: int, used: int) -> None:
    schemes = top / "0/contexts/0/schemes"
    says(schemes / "0/stats", nr_tried=used)
    says(schemes / "1/stats", nr_tried=seen)


def watched(tmp_path: Path) -> Path:
    """DAMON, with room for that many pages."""
    top = made(tmp_path)
    for number in range(3, PAGES):
        (top / f"0/contexts/0/targets/0/regions/{number}").mkdir()
    counted(top, 0, 0)
    return top


def test_page_idle_counts_over_a_whole_window_however_often_it_is_asked(tmp_path: Path) -> None:
    tree, clock, who = Tree(tmp_path, COUNT, absent=set()), FakeClock(), Identity(5, 1)
    areas = (Area(0, COUNT * PAGE, "anonymous", ""),)
    sampler = Sampler(Noted(), clock, tmp_path, window_s=10.0)
    assert sampler.look("g", who, areas) is None
    marked = sorted(tree.idle())
    for used in range(4):  # one page each two seconds
        clock.advance(2)
        tree.use(marked[used])
        assert sampler.look("g", who, areas) is None
    clock.advance(1.99)  # ticks come a little early, too
    tree.use(marked[4])
    first = sampler.look("g", who, areas)
    assert first is not None
    assert (first.used, first.pages, first.how) == (5, PAGES, "page_idle, used within 10 s")
    clock.advance(2)
    assert sampler.look("g", who, areas) == first  # with its old time
    clock.advance(18)
    second = sampler.look("g", who, areas)
    assert second is not None
    assert (second.at_s, second.used, second.how) == (first.at_s + 20, 0, "page_idle, used within 20 s")
    assert sampler.look("g", Identity(5, 2), areas) is None  # another one of that name


@pytest.mark.parametrize(("period_s", "remembered"), [(10.0, False), (120.0, True)])
def test_marked_pages_of_a_guest_that_nobody_asks_about_are_forgotten(
    tmp_path: Path, period_s: float, remembered: bool
) -> None:
    Tree(tmp_path, COUNT, absent=set())
    clock, who, areas = FakeClock(), Identity(5, 1), (Area(0, COUNT * PAGE, "anonymous", ""),)
    sampler = Sampler(Noted(), clock, tmp_path, window_s=100.0, period_s=period_s)

    def known() -> set[str]:
        return set(sampler._marker._marked)

    for name in ("gone", "often"):
        sampler.look(name, who, areas)
    clock.advance(50)
    assert sampler.look("often", who, areas) is None  # within its window: nothing is drawn
    clock.advance(15)
    sampler.look("new", who, areas)
    assert known() == ({"gone", "often", "new"} if remembered else {"often", "new"})
    clock.advance(40)
    assert sampler.look("often", who, areas) is not None
    clock.advance(1000)
    # However late: the others are forgotten, not the one that is asked about.
    assert sampler.look("often", who, areas) is not None
    assert known() == {"often"}


def test_what_damon_counted(
    tmp_path: Path, memory: Memory, me: Identity, noted: Noted, opened: Callable[[], Sampler]
) -> None:
    top = watched(tmp_path)
    sampler = opened()
    assert sampler.look("g", me, memory.areas) is None
    until(lambda: ((top / "0/state").exists() and (top / "0/state").read_text().startswith("update")) or None)
    assert noted.keys == ["damon"]
    assert (top / "nr_kdamonds").read_text() == str(damon.SLOTS)
    counted(top, 2 * PAGES, 500)  # two aggregations
    first = until(lambda: sampler.look("g", me, memory.areas))
    assert (first.used, first.pages) == (250, PAGES)
    assert "DAMON" in first.how
    memory.drop(0.5)
    counted(top, 3 * PAGES, 700)

    def next_one() -> Sampled | None:
        found = sampler.look("g", me, memory.areas)
        return found if found is not None and found != first else None

    second = until(next_one)
    assert second.used == 200
    assert second.pages == pytest.approx(PAGES / 2, abs=80)  # of those that have left it is not known
    sampler.close()
    assert (noted.keys, (top / "nr_kdamonds").read_text()) == ([], "0")


@pytest.mark.parametrize(("period_s", "remembered"), [(10.0, False), (120.0, True)])
def test_a_guest_is_forgotten_after_a_minute_and_three_looks(
    tmp_path: Path, memory: Memory, me: Identity, noted: Noted, period_s: float, remembered: bool
) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    top, clock = watched(tmp_path), FakeClock()
    sampler = Sampler(noted, clock, tmp_path, window_s=0.1, period_s=period_s)

    def forgotten() -> bool:
        return (top / "nr_kdamonds").read_text() == "0"

    try:
        assert sampler.look("g", me, memory.areas) is None
        until(lambda: ((top / "0/state").exists() and watches(top)) or None)
        counted(top, PAGES, 250)
        until(lambda: sampler.look("g", me, memory.areas))
        clock.advance(120)
        for _ in range(2):  # the second round has begun after that
            (top / "0/state").write_text("on")
            until(lambda: forgotten() or (top / "0/state").read_text().startswith("update") or None)
        assert forgotten() != remembered
        assert (sampler.look("g", me, memory.areas) is not None) == remembered
    finally:
        sampler.close()


def test_a_kernel_that_cannot_is_asked_once(
    tmp_path: Path, memory: Memory, me: Identity, noted: Noted, opened: Callable[[], Sampler]
) -> None:
    top = made(tmp_path, operations="paddr\n")
    sampler = opened()

    def refusal() -> SustainError | None:
        try:
            sampler.look("g", me, memory.areas)
        except SustainError as error:
            return error
        return None

    assert "cannot watch processes" in str(until(refusal))
    assert (noted.keys, (top / "nr_kdamonds").read_text()) == ([], "0")
    tries = len(noted.all)
    refusals = [refusal() for _ in range(20)]
    assert None not in refusals
    assert len(noted.all) == tries
    assert len({id(each) for each in refusals}) == 20  # none grows, and threads share none


def test_a_problem_of_a_guest_is_raised_anew_each_time(
    tmp_path: Path, memory: Memory, me: Identity, opened: Callable[[], Sampler]
) -> None:
    made(tmp_path, kdamonds=1)
    sampler = opened()

    def problem() -> HostError | None:
        try:
            sampler.look("g", me, memory.areas)
        except HostError as error:
            return error
        return None

    first = until(problem)
    second = until(problem)
    assert first is not second
    assert (str(first), first.hint, first.errno) == (str(second), second.hint, errno.EBUSY)
    assert "somebody else" in str(first)
    assert first.hint
    frames = [len(traceback.extract_tb(each.__traceback__)) for each in (first, second)]
    assert frames[0] == frames[1]


def watches(top: Path) -> bool:
    return (top / "0/state").read_text().startswith(("on", "update"))


def closes(monkeypatch: pytest.MonkeyPatch, refused: Callable[[], bool]) -> list[str]:
    """How DAMON's closing came out, each time."""
    outcomes: list[str] = []
    close = Damon.close

    def closing(ours: Damon) -> None:
        if refused():
            outcomes.append("refused")
            raise HostError("nr_kdamonds: busy", errno=errno.EBUSY)
        close(ours)
        outcomes.append("closed")

    monkeypatch.setattr(Damon, "close", closing)
    return outcomes


def test_what_cannot_be_given_back_is_tried_again(
    tmp_path: Path,
    memory: Memory,
    me: Identity,
    noted: Noted,
    opened: Callable[[], Sampler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = watched(tmp_path)
    outcomes = closes(monkeypatch, lambda: len(outcomes) < 3)
    monkeypatch.setattr(sampling, "_AGAIN_S", 0.0)
    monkeypatch.setattr(sampling, "_DRAWN_S", 0.0)  # a watch ends at each round
    end = Watch.close

    def ending(watch: Watch) -> None:
        if not outcomes:
            raise HostError("state: busy", errno=errno.EBUSY)
        end(watch)

    monkeypatch.setattr(Watch, "close", ending)
    sampler = opened()
    problems: set[str] = set()

    def again() -> bool | None:
        try:
            sampler.look("g", me, memory.areas)
        except SustainError as error:
            problems.add(str(error))
        return (outcomes[3:4] == ["closed"] and watches(top)) or None

    until(again)  # with a new one
    assert outcomes[:4] == ["refused"] * 3 + ["closed"]
    assert not any("somebody else" in each for each in problems)
    sampler.close()
    assert (noted.keys, (top / "nr_kdamonds").read_text()) == ([], "0")


def test_closing_gives_back_what_could_not_be_before(
    tmp_path: Path,
    memory: Memory,
    me: Identity,
    noted: Noted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    top = watched(tmp_path)
    busy = [True]
    outcomes = closes(monkeypatch, lambda: busy[0])
    sampler = Sampler(noted, SystemClock(), tmp_path, window_s=0.1)
    assert sampler.look("g", me, memory.areas) is None
    until(lambda: ((top / "0/state").exists() and watches(top)) or None)
    with pytest.raises(HostError, match="busy"):
        sampler.close()
    assert (top / "nr_kdamonds").read_text() == str(damon.SLOTS)
    busy[0] = False
    sampler.close()
    assert outcomes[-1] == "closed"
    assert (noted.keys, (top / "nr_kdamonds").read_text()) == ([], "0")


def test_the_end_of_an_old_watch_does_not_end_a_new_damon(
    tmp_path: Path,
    memory: Memory,
    me: Identity,
    opened: Callable[[], Sampler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = watched(tmp_path)
    (top / "1").symlink_to("0")
    outcomes = closes(monkeypatch, lambda: False)
    broken: list[Watch] = []
    watched_now: list[Damon] = []
    begin, end, totals = Damon.watch, Watch.close, Watch.totals

    def beginning(ours: Damon, *arguments: Any) -> Watch:
        watched_now.append(ours)
        return begin(ours, *arguments)

    def broken_first(watch: Watch) -> Totals:
        if not broken and len(watched_now) == 2:  # both guests are watched
            broken.append(watch)
        if watch in broken:
            raise HostError("state: gone", errno=errno.ESRCH)
        if outcomes and watch._damon is watched_now[0]:
            raise HostError("set up anew", errno=errno.ESTALE)
        return totals(watch)

    def ending(watch: Watch) -> None:
        if watch in broken or (outcomes and watch._damon is watched_now[0]):
            raise HostError("state: refused", errno=errno.EIO)
        end(watch)

    monkeypatch.setattr(Damon, "watch", beginning)
    monkeypatch.setattr(Watch, "totals", broken_first)
    monkeypatch.setattr(Watch, "close", ending)
    sampler = opened()

    def both() -> bool | None:
        for name in ("g", "h"):
            with contextlib.suppress(SustainError):
                sampler.look(name, me, memory.areas)
        return len(watched_now) >= 4 or None

    until(both)
    assert outcomes == ["closed"]
    assert len({id(each) for each in watched_now}) == 2


GUEST = Identity(5, 1)
ALL = (Area(0, COUNT * PAGE, "anonymous", ""),)


def test_one_marks_pages_at_a_time(tmp_path: Path) -> None:
    tree, clock = Tree(tmp_path, COUNT, absent=set()), FakeClock()
    first, second = (Sampler(Noted(), clock, tmp_path, window_s=10.0) for _ in range(2))
    assert first.look("g", GUEST, ALL) is None
    marked = tree.idle()
    with pytest.raises(HostError, match="counts by it; and this kernel has no DAMON") as caught:
        second.look("g", GUEST, ALL)
    assert caught.value.hint
    assert tree.idle() == marked, "nobody else's are spoilt"
    clock.advance(10)
    found = first.look("g", GUEST, ALL)
    assert found is not None
    assert found.used == 0
    clock.advance(60)
    first.forget()  # which is soon enough to be asked about it
    with pytest.raises(HostError, match="counts by it"):
        second.look("g", GUEST, ALL)
    clock.advance(1)
    first.forget()
    assert second.look("g", GUEST, ALL) is None
    second.close()
    assert first.look("g", GUEST, ALL) is None
    first.close()
    page_idle.Held(tmp_path).close()


def test_what_fails_lets_others_mark(tmp_path: Path) -> None:
    tree = Tree(tmp_path, COUNT, absent=set())
    sampler = Sampler(Noted(), FakeClock(), tmp_path)
    tree.pagemap.unlink()
    with pytest.raises(HostError, match="No such file"):
        sampler.look("g", GUEST, ALL)
    page_idle.Held(tmp_path).close()


def refused(*_: object) -> None:
    raise HostError("pagemap: frame numbers are hidden", hint="root", errno=errno.EPERM)


@pytest.mark.parametrize("why", ["counts by it", "hidden"])
def test_what_may_not_be_marked_is_sampled_by_damon_and_that_is_said(
    tmp_path: Path,
    memory: Memory,
    me: Identity,
    opened: Callable[[], Sampler],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    top = watched(tmp_path)
    page_idle.path(tmp_path).parent.mkdir(parents=True)
    page_idle.path(tmp_path).touch()
    if why == "hidden":
        monkeypatch.setattr(page_idle, "mark", refused)
    sampler = opened()
    with contextlib.closing(page_idle.Held(tmp_path)) if why != "hidden" else contextlib.nullcontext():
        assert sampler.look("g", me, memory.areas) is None
        counted(top, 2 * PAGES, 500)
        found = until(lambda: sampler.look("g", me, memory.areas))
    assert (found.used, found.pages) == (250, PAGES)
    assert found.how.startswith("DAMON")
    assert "; not by page_idle: " in found.how
    assert why in found.how


def test_neither_way_works_and_both_reasons_are_said(
    tmp_path: Path,
    memory: Memory,
    me: Identity,
    opened: Callable[[], Sampler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made(tmp_path, kdamonds=1)
    page_idle.path(tmp_path).parent.mkdir(parents=True)
    page_idle.path(tmp_path).touch()
    monkeypatch.setattr(page_idle, "mark", refused)
    sampler = opened()

    def problem() -> HostError | None:
        try:
            sampler.look("g", me, memory.areas)
        except HostError as error:
            return error
        return None

    error = until(problem)
    assert "somebody else" in str(error)
    assert "nor by page_idle: pagemap: frame numbers are hidden" in str(error)
    assert error.errno == errno.EBUSY


def test_neither(tmp_path: Path, memory: Memory, me: Identity, opened: Callable[[], Sampler]) -> None:
    with pytest.raises(HostError, match="neither page_idle"):
        opened().look("g", me, memory.areas)


def test_pages_are_drawn_from_what_is_present(memory: Memory, me: Identity) -> None:
    memory.drop(0.25)
    start = memory.areas[0].start
    pages = [(each - start) // PAGE for each in draw(me.pid, memory.areas, PAGES)]
    assert len(set(pages)) == len(pages) == PAGES
    assert pages == sorted(pages)
    assert pages[0] >= COUNT // 4
    assert pages[-1] < COUNT
    thirds = [sum(COUNT // 4 * n <= page < COUNT // 4 * (n + 1) for page in pages) for n in (1, 2, 3)]
    assert all(each == pytest.approx(PAGES / 3, abs=75) for each in thirds)
    assert len(draw(me.pid, memory.areas, 10 * COUNT)) == COUNT * 3 // 4
