"""Counting used pages exactly, by the kernel's page_idle bitmap: every page of a block is marked, and after a period
those whose mark has gone were used.

The model: at each reading that is a period after the last marking, what became of the marks is looked at, and the pages
whose mark has gone are marked anew; the others still are. Readings in between tell the same again. A page that came
into a private mapping meanwhile was used, since nothing else brings it there. Of a page that lies in another frame by
now, has left, or could not be marked (it was held by the kernel at that moment), it is not known: it counts as half a
page, and the block's error says so. That error is the standard deviation of what is equally likely, n/√12 for n pages.
The zero page counts as not present: it takes no memory, and who reads it is not known.

A larger page has one mark. Where it fills the block, only whether the block was used is known (`whole`); where the
block has several of them (folios of 16 KiB … 1 MiB, or one that is mapped small), a used one has had between one and
all of its pages used, and counts as half with that error.

Looking up who maps a page is what costs, some 0.2 µs and more for each page, and nobody can be asked for less than a
page. So a period lasts longer where counting all processes would take more than `share` of a core for each GiB, as it
has been measured (`counting.least_s`). Rejected: counting a part of the blocks or of their pages each period, of
which the marks that are still there could not be used again, so that it saves less than half.

A mark is the page's: whoever else maps a shared page clears it too, also by reading the file behind it. A processor
that still remembers a translation sees the page used only when it looks it up anew; on a busy one that is soon.
Marks of anybody else would spoil ours, so the bitmap is held from the beginning to the end (`host.page_idle`).
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sustain.clock import Clock
from sustain.errors import HostError, SustainError
from sustain.host import kpageflags, madvise, page_idle
from sustain.host.kpageflags import Marks
from sustain.host.pagemap import PAGES_OF_BLOCK, Pagemap, frame_of
from sustain.host.processes import Identity
from sustain.schedulers.large_pages.counting import Count, Memory, least_s, stretches
from sustain.schedulers.large_pages.model import Counting

_WHOLE_PERIOD = 0.9  # of a period is one: readings that are a period apart come a little early and late
_UNIFORM = 12.0  # the variance of what is equally likely, by the square of its width
_JUST_S = 0.5  # pages that were looked up so long ago are marked where they were
_ABSENT, _ALONE, _LARGER, _UNMARKED = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class _Marked:
    """The pages of one process as they were marked. Columns with a row for each page."""

    memory: Memory
    at_s: float
    frames: NDArray[np.uint64]  # 0: not present
    kind: NDArray[np.int8]
    owner: NDArray[np.int32]  # of a page in a larger one: the row of its head
    rows: NDArray[np.int32]  # that have a mark: pages of their own, and heads
    marks: Marks  # theirs


@dataclass(frozen=True, slots=True, eq=False)
class _Over:
    """A period that has ended."""

    marked: _Marked
    idle: NDArray[np.bool_]  # of its marks, those that were still there
    frames: NDArray[np.uint64]  # as of its end
    at_s: float

    def is_of(self, memory: Memory) -> bool:
        before = self.marked.memory
        return before.image == memory.image and np.array_equal(before.addresses, memory.addresses)


class PageIdleCounter:
    """Implements `counting.Counter`."""

    kind: Counting = "page-idle"

    def __init__(
        self,
        period_s: float,
        clock: Clock,
        root: Path = Path("/"),
        share: float | None = None,
        longest_s: float = math.inf,
    ) -> None:
        """`share` of a core that counting may take for each GiB; None: whatever it takes; `longest_s`: no
        period is longer for that. Raises HostError: EBUSY, somebody else counts so."""
        self._held = page_idle.Held(root)
        self._period_s = period_s
        self._share = share
        self._longest_s = longest_s
        self._clock = clock
        self._root = root
        self._marked: dict[Identity, _Marked] = {}
        self._before: dict[Identity, _Over] = {}
        self._counts: dict[Identity, Count] = {}
        self._problems: dict[Identity, str] = {}
        self._spent_s: defaultdict[Identity, float] = defaultdict(
            float
        )  # of processor, in the period that is
        self._costs: dict[
            Identity, tuple[float, int]
        ] = {}  # of the last whole period: that, and how many pages

    def start(self, memories: Sequence[Memory]) -> None:
        """Marks what is not marked, once all periods are over: all begin and end together, since the mark of a page
        that several processes map is everybody's."""
        wanted = {each.who: each for each in memories}
        for held in (self._marked, self._before, self._counts, self._problems, self._spent_s, self._costs):
            for who in [each for each in held if each not in wanted]:
                del held[who]
        due = [each for who, each in wanted.items() if not self._holds(who, each.image)]
        if len(due) < len(wanted):
            return  # who is new waits for the others
        if due:
            madvise.empty_batches()
        for memory in due:
            self._counts.pop(memory.who, None) if self._changed(memory) else None
            try:
                with self._charged(memory.who):
                    self._marked[memory.who] = self._mark(memory, self._before.pop(memory.who, None))
                self._problems.pop(memory.who, None)
            except SustainError as error:
                self._problems[memory.who] = f"{error} ({error.hint})" if error.hint else str(error)

    def read(self) -> Mapping[Identity, Count]:
        """Ends the periods that are over."""
        begun_s = min((each.at_s for each in self._marked.values()), default=math.inf)
        over = self._now_s() - begun_s >= self._lasts_s()
        for who, marked in list(self._marked.items()) if over else ():
            del self._marked[who]
            try:
                with self._charged(who):
                    self._counts[who], self._before[who] = self._look(marked)
                self._costs[who] = (self._spent_s.pop(who), len(marked.frames))
            except SustainError as error:
                self._problems[who] = str(error)
        return dict(self._counts)

    def problems(self) -> Mapping[Identity, str]:
        return dict(self._problems)

    def close(self) -> None:
        """Marks mean nothing to the kernel; they stay until the pages are used."""
        self._marked.clear()
        self._held.close()

    def _lasts_s(self) -> float:
        """How long a period lasts at least."""
        whole_s = _WHOLE_PERIOD * self._period_s
        if self._share is None:
            return whole_s
        blocks = sum(pages for _, pages in self._costs.values()) // PAGES_OF_BLOCK
        spent_s = sum(spent_s for spent_s, _ in self._costs.values())
        return least_s(spent_s, blocks, self._share, whole_s, self._longest_s)

    @contextlib.contextmanager
    def _charged(self, who: Identity) -> Iterator[None]:
        """What is done costs that process's period so much."""
        begun_s = time.thread_time()
        try:
            yield
        finally:
            self._spent_s[who] += time.thread_time() - begun_s

    def _holds(self, who: Identity, image: int) -> bool:
        held = self._marked.get(who)
        return held is not None and held.memory.image == image

    def _changed(self, memory: Memory) -> bool:
        held = self._counts.get(memory.who)
        return held is not None and held.image != memory.image

    def _mark(self, memory: Memory, over: _Over | None) -> _Marked:
        before = over.marked if over is not None and over.is_of(memory) else None
        if before is not None and over is not None and self._now_s() - over.at_s < _JUST_S:
            frames = over.frames
        else:
            frames = self._frames(memory)
        alone = np.zeros(len(frames), np.bool_)
        if before is not None:  # what still is a page of its own: the kernel is not asked again
            alone = (before.kind == _ALONE) & (before.frames == frames)
        here = np.flatnonzero((frames != 0) & ~alone)
        kinds = kpageflags.kinds(frames[here], self._root)
        kind = np.full(len(frames), _ABSENT, np.int8)
        kind[here] = _UNMARKED
        kind[here[kinds.alone]] = _ALONE
        kind[here[kinds.zero]] = _ABSENT
        kind[alone] = _ALONE
        owner = np.full(len(frames), -1, np.int32)
        if kinds.head.any():
            rows = np.zeros(len(frames), np.int64)
            rows[here[kinds.head]] = here[kinds.head] + 1
            last = np.maximum.accumulate(rows) - 1  # the head before each page, by address
            for row in (here[kinds.head], here[kinds.tail]):
                first = last[row]
                known = (first >= 0) & (frames[first] + (row - first).astype(np.uint64) == frames[row])
                kind[row[known]], owner[row[known]] = _LARGER, first[known]
        marked = np.flatnonzero((kind == _ALONE) | (owner == np.arange(len(frames)))).astype(np.int32)
        at_s = self._now_s()
        if (
            before is not None
            and over is not None
            and np.array_equal(before.rows, marked)
            and np.array_equal(before.frames[marked], frames[marked])
        ):
            marks = before.marks
            marks.set(~over.idle)
        else:
            marks = Marks(frames[marked], self._root)
            marks.set()
        return _Marked(memory, at_s, frames, kind, owner, marked, marks)

    def _look(self, marked: _Marked) -> tuple[Count, _Over]:
        memory, before = marked.memory, marked.frames
        now = self._frames(memory)
        at_s = self._now_s()
        idle = marked.marks.idle()
        used = np.zeros(len(before), np.bool_)
        used[marked.rows] = ~idle
        stayed = (now == before) & (before != 0) & ~self._broken_up(marked)
        private = np.repeat(~memory.shared, PAGES_OF_BLOCK)
        came = (marked.kind == _ABSENT) & (now != 0) & (now != before) & private
        known = (
            came
            | (stayed & ((marked.kind == _ALONE) | (marked.kind == _LARGER)))
            | ((marked.kind == _ABSENT) & (now == before))
        )
        sure = _by_block(came | (stayed & (marked.kind == _ALONE) & used))
        unknown = _by_block(~known)
        whole, some, squares = _larger(marked, stayed, used)
        variance = (unknown.astype(np.float64) ** 2 + squares) / _UNIFORM
        touched = np.where(whole, some, sure + some / 2 + unknown / 2)
        error = np.where(whole, 0, np.sqrt(variance))
        lost = unknown > PAGES_OF_BLOCK // 2  # it was collapsed, split or swapped meanwhile
        touched[lost] = error[lost] = np.nan
        count = Count(
            memory.image,
            at_s,
            at_s - marked.at_s,
            memory.addresses,
            touched.astype(np.float32),
            error.astype(np.float32),
            whole,
            at_s - marked.at_s,
        )
        return count, _Over(marked, idle, before if np.array_equal(now, before) else now, at_s)

    def _broken_up(self, marked: _Marked) -> NDArray[np.bool_]:
        """Pages that were parts of a larger one which has been split: its mark was for all of them."""
        heads = np.flatnonzero(marked.owner == np.arange(len(marked.owner)))
        if not len(heads):
            return np.zeros(len(marked.owner), np.bool_)
        split = np.zeros(len(marked.owner), np.bool_)
        split[heads] = ~kpageflags.kinds(marked.frames[heads], self._root).head
        return np.asarray(split[marked.owner] & (marked.owner >= 0), np.bool_)

    def _frames(self, memory: Memory) -> NDArray[np.uint64]:
        """Of each page, 0 where it is not present. Raises SustainError."""
        found = []
        table = Pagemap(memory.who.pid, self._root)
        try:
            for start, end, _ in stretches(memory.addresses):
                entries = table.entries(start, end)
                frames = frame_of(entries)
                if not frames.any() and (entries >> np.uint64(63)).any():
                    raise HostError(
                        f"process {memory.who.pid}: frame numbers are hidden",
                        hint="it needs root (CAP_SYS_ADMIN)",
                    )
                found.append(frames)
        finally:
            table.close()
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


def _by_block(pages: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of each block."""
    return np.asarray(pages.reshape(-1, PAGES_OF_BLOCK).sum(axis=1, dtype=np.int64))


def _larger(
    marked: _Marked, stayed: NDArray[np.bool_], used: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Of each block: whether one larger page fills it, so that there is nothing to estimate; how many of its pages are
    of larger ones that were used, and the sum of the squares of these ones' sizes."""
    blocks = len(marked.kind) // PAGES_OF_BLOCK
    here = (marked.kind == _LARGER) & stayed
    rows = np.flatnonzero(here)
    if not len(rows):
        return np.zeros(blocks, np.bool_), np.zeros(blocks, np.int64), np.zeros(blocks)
    whole = _by_block(here & (marked.owner % PAGES_OF_BLOCK == 0)) == PAGES_OF_BLOCK
    whole &= _one_owner(marked.owner)
    some = np.zeros(len(here), np.bool_)
    some[rows] = used[marked.owner[rows]]
    return whole, _by_block(some), _squares(marked.owner, some)


def _one_owner(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether all pages of each block are of one larger page."""
    rows = owner.reshape(-1, PAGES_OF_BLOCK)
    return np.asarray((rows == rows[:, :1]).all(axis=1) & (rows[:, 0] >= 0), np.bool_)


def _squares(owner: NDArray[np.int32], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each block, the sum of the squares of the sizes of its used larger pages."""
    blocks = len(owner) // PAGES_OF_BLOCK
    sizes = np.bincount(owner[used], minlength=len(owner))
    rows = np.flatnonzero(sizes)
    squares = sizes[rows].astype(np.float64) ** 2
    return np.bincount(rows // PAGES_OF_BLOCK, weights=squares, minlength=blocks).astype(np.float64)
