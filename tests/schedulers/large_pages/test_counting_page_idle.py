"""Exact counting with a file in place of the kernel's bitmap, and everything else of the kernel of this machine: when
pages are marked, and how long a period lasts. What the kernel does with marks is in test_counting_kernel.py."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sustain.host import page_idle
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.testing import FakeClock
from tests.host.test_kpageflags import marking
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or page_idle.hidden() is not None or not Path("/proc/kpageflags").exists(),
    reason="it needs root, frame numbers and /proc/kpageflags",
)


class Bitmap:
    """The file; it says which frames are marked, and takes marks away as use does."""

    def __init__(self, root: Path) -> None:
        (root / "proc").symlink_to("/proc")
        self.path = page_idle.path(root)
        self.path.parent.mkdir(parents=True)
        self.path.touch()

    def marked(self) -> int:
        return sum(each.bit_count() for each in self.path.read_bytes())

    def use_odd(self) -> None:
        """Frames with odd numbers."""
        self.path.write_bytes(bytes(each & 0x55 for each in self.path.read_bytes()))


@pytest.fixture
def bitmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bitmap:
    found = Bitmap(tmp_path)
    monkeypatch.setattr(os, "pwrite", marking(found.path))
    return found


Counting = Callable[..., PageIdleCounter]


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    """A counter by the file, every 10 s; all of them are closed with the test."""
    with contextlib.ExitStack() as stack:

        def made(clock: FakeClock, share: float | None = None) -> PageIdleCounter:
            counter = PageIdleCounter(10, clock, tmp_path, share)
            stack.callback(counter.close)
            return counter

        yield made


@pytest.fixture
def toucher() -> Iterator[Toucher]:
    with touching([0] * 4) as found:
        yield found


def test_what_was_not_used_stays_marked(bitmap: Bitmap, toucher: Toucher, counting: Counting) -> None:
    clock = FakeClock()
    counter = counting(clock)
    memory = toucher.memory()
    for number in range(3):
        counter.start([memory])
        marked = bitmap.marked()
        assert 512 * 4 - 64 <= marked <= 512 * 4, "all but what the kernel holds at the moment"
        bitmap.use_odd()
        left = bitmap.marked()
        clock.advance(10)
        count = counter.read()[toucher.who]
        assert count.touched.sum() == pytest.approx(marked - left, abs=64)
        assert bitmap.marked() == left, number


def test_only_those_that_were_used_are_marked_anew(
    bitmap: Bitmap, toucher: Toucher, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    counter = counting(clock)
    counter.start([toucher.memory()])
    bitmap.use_odd()
    clock.advance(10)
    counter.read()
    written: list[bytes] = []
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: written.append(bytes(data)) or write(fd, data, at))
    counter.start([toucher.memory()])
    bits = np.unpackbits(np.frombuffer(b"".join(written), np.uint8), bitorder="little")
    assert bits.any()
    assert not bits[::2].any(), "even frames still have their marks"


def test_all_processes_have_the_same_periods(bitmap: Bitmap, toucher: Toucher, counting: Counting) -> None:
    """The mark of a page that two of them map is both's: who comes later waits for the others' end."""
    clock = FakeClock()
    counter = counting(clock)
    counter.start([toucher.memory()])
    clock.advance(5)
    with touching([0] * 2) as late:
        both = [toucher.memory(), late.memory()]
        counter.start(both)
        marked = bitmap.marked()
        assert marked <= 512 * 4
        clock.advance(5)
        assert set(counter.read()) == {toucher.who}
        counter.start(both)
        assert bitmap.marked() >= marked + 512 * 2 - 64
        clock.advance(10)
        found = counter.read()
        assert found[late.who].window_s == pytest.approx(found[toucher.who].window_s)
        assert found[late.who].window_s == pytest.approx(10)


@pytest.mark.parametrize(("spent_s", "periods"), [(0.05, 1), (0.25, 3), (5.0, 6)])
def test_a_period_lasts_as_long_as_counting_takes_its_share(
    spent_s: float,
    periods: int,
    bitmap: Bitmap,
    toucher: Toucher,
    counting: Counting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 % of a core for (less than) a GiB: half a tenth of a second in 10 s is within it."""
    thread_s = [0.0]

    def thread_time() -> float:
        """Marking takes half, and looking, too."""
        thread_s[0] += spent_s / 2
        return thread_s[0]

    clock = FakeClock()
    counter = counting(clock, 0.01)
    monkeypatch.setattr(time, "thread_time", thread_time)
    ends: list[int] = []
    windows: list[float] = []
    last = None
    for tick in range(20):
        count = counter.read().get(toucher.who)
        if count is not last:
            assert count is not None
            ends.append(tick)
            windows.append(count.window_s)
            last = count
        counter.start([toucher.memory()])
        clock.advance(10)
    assert ends[0] == 1, "what the first one costs is not known before"
    assert set(np.diff(ends)) == {periods}
    assert windows[1:] == pytest.approx([periods * 10] * (len(ends) - 1))
