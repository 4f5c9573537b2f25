"""What counting costs on the kernel that runs this, and how fast its machine is; used by large_pages_counting.

    python -m bench.counting_costs MIB PERIODS PERIOD_S SPEEDS WAY…

prints both as JSON, in a guest of the lab (SPEEDS: the compiled speeds.c). The program whose memory is counted is that
of the tests (block_toucher.py), in small pages, and goes on using half of each block's. It is counted by the scheduler
as the agent has it (`LargePages.sense`), once a period; nothing is decided and nothing mapped. Counts take what
they take here; the agent rather has longer periods than let them cost more than their share. What counts: all
processor time of this process (user and system, also of the thread that reads DAMON) and of the kernel's kdamonds, over
whole periods after the first count. What flushing a translation costs the program itself is not in it.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
from tests.schedulers.large_pages.touching import Toucher, touching

from sustain.clock import SystemClock
from sustain.host import damon, kpageflags
from sustain.host.pagemap import BLOCK_BYTES, Pagemap
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.config import LargePagesConfig
from sustain.schedulers.large_pages.counting import Counter
from sustain.schedulers.large_pages.counting_damon import DamonCounter
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.model import Observation
from sustain.schedulers.large_pages.scheduler import LargePages

Way = Literal["page-idle", "damon"]
WAYS: tuple[Way, ...] = ("page-idle", "damon")
USED_PAGES = 256  # of each block
_LOOPS = 300_000
_FIRST_S = 120.0  # until the first count
# Calls whose part is told; what of them is told by itself is taken out of the others.
_PARTS: tuple[tuple[Any, str, str], ...] = (
    (kpageflags.Marks, "idle", "marks read"),
    (kpageflags.Marks, "set", "pages marked"),
    (kpageflags.Marks, "__init__", "marks sorted"),
    (kpageflags, "kinds", "kpageflags"),
    (Pagemap, "entries", "pagemap"),
    (Pagemap, "blocks", "PAGEMAP_SCAN"),
    (damon.Watch, "counts", "DAMON's files"),
    (damon.Damon, "_command", "DAMON's commands"),
    (PageIdleCounter, "read", "else of counting"),
    (PageIdleCounter, "start", "else of counting"),
    (DamonCounter, "_take", "else of counting"),
    (LargePages, "sense", "else of a look"),
)


class Parts:
    """Processor time of calls in seconds, by part."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._running = threading.local()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, part in _PARTS:
                timed = self._timed(getattr(owner, name), part)
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*words: Any, **options: Any) -> Any:
            inner: list[float] = self._running.__dict__.setdefault("inner", [])
            inner.append(0.0)
            begun_s = time.thread_time()
            try:
                return call(*words, **options)
            finally:
                all_s = time.thread_time() - begun_s
                self.spent_s[part] += all_s - inner.pop()
                if inner:
                    inner[-1] += all_s

        return timed


class Kdamonds:
    """Processor time of the kernel's threads that watch, as long as they do."""

    def __init__(self) -> None:
        self._spent_s: dict[int, float] = {}

    def spent_s(self) -> float:
        for comm in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):  # it has just ended
                if comm.read_text().startswith("kdamond"):
                    pid = int(comm.parent.name)
                    # What clock_getcpuclockid(3) names, for any process; of kernel threads, too.
                    self._spent_s[pid] = time.clock_gettime(~pid << 3 | 2)
        return sum(self._spent_s.values())


def costs(way: Way, mib: int, periods: int, period_s: float) -> dict[str, Any]:
    """Of counting a program of that size. Seconds, over all periods; `pages`: used ones of a block, as counted."""
    parts, threads = Parts(), Kdamonds()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sustain-bench-")))
        toucher = stack.enter_context(touching([USED_PAGES] * ((mib << 20) // BLOCK_BYTES)))
        config = LargePagesConfig(
            targets=(Wanted(name="counted", pid=toucher.pid),), counting=way, count_period_s=period_s
        )
        clock = SystemClock()
        journal = Journal(place / "journal")
        # Whatever it takes: those of the agent rather last longer than cost more than a share.
        counts: Counter = (
            PageIdleCounter(period_s, clock) if way == "page-idle" else DamonCounter(period_s, clock, journal)
        )
        scheduler = LargePages(config, period_s, clock, None, changes=journal, counts=counts)
        stack.callback(scheduler.close)
        stack.enter_context(parts.watching())
        _until_counted(scheduler, toucher, period_s)
        parts.spent_s.clear()
        kernel_s = threads.spent_s()
        begun_s, before, own_s = time.monotonic(), os.times(), time.process_time()
        for number in range(1, periods + 1):
            time.sleep(max(0.0, begun_s + number * period_s - time.monotonic()))
            pages = _pages(scheduler.sense(), toucher)
        wall_s, own_s, after = time.monotonic() - begun_s, time.process_time() - own_s, os.times()
        kernel_now_s = threads.spent_s()
    user_s, system_s = after.user - before.user, after.system - before.system
    share = system_s / (user_s + system_s) if user_s + system_s else 0.0
    return {
        "wall": wall_s,
        "process": own_s,
        "process, in the kernel": own_s * share,  # by ticks of the kernel's own sampling
        "kdamond": kernel_now_s - kernel_s,
        "parts": dict(parts.spent_s),
        "pages": pages,
    }


def speeds(program: Path) -> dict[str, float]:
    """Nanoseconds of processor time, by kind of work: those of speeds.c, and three of Python's."""
    made = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    found = {name: float(ns) for name, ns in (line.split() for line in made.stdout.splitlines())}
    words = np.random.default_rng(1).integers(0, 1 << 40, 1 << 18).astype(np.uint64)

    def loop() -> None:
        total = 0
        for number in range(_LOOPS):
            total += number & 3

    found["Python"] = _least_ns(loop) / _LOOPS
    found["NumPy, arithmetic"] = _least_ns(lambda: np.where(words & np.uint64(1), words, 0)) / len(words)
    found["NumPy, sorting"] = _least_ns(lambda: np.argsort(words, kind="stable")) / len(words)
    return found


def _least_ns(work: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        begun_ns = time.thread_time_ns()
        work()
        found.append(time.thread_time_ns() - begun_ns)
    return min(found)


def _until_counted(scheduler: LargePages, toucher: Toucher, period_s: float) -> None:
    deadline_s = time.monotonic() + _FIRST_S
    due_s = time.monotonic()
    while _pages(seen := scheduler.sense(), toucher) is None:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"nothing was counted: {seen.targets} {seen.notes}")
        due_s = max(due_s + period_s, time.monotonic())
        time.sleep(due_s - time.monotonic())


def _pages(seen: Observation, toucher: Toucher) -> float | None:
    """Used pages of one of its blocks, in the mean; None: not one has been counted."""
    at = seen.blocks.address
    own = (at >= np.uint64(toucher.start)) & (at < np.uint64(toucher.address(toucher.blocks)))
    touched = seen.blocks.touched[own]
    known = touched[~np.isnan(touched)]
    return float(known.mean()) if len(known) else None


def main(mib: int, periods: int, period_s: float, program: Path, ways: list[Way]) -> None:
    found = {way: costs(way, mib, periods, period_s) for way in ways}
    print(json.dumps({"speeds": speeds(program), "costs": found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])  # type: ignore[arg-type]
