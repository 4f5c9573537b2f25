"""Estimating the used pages of each block by the kernel's DAMON: one region for a block, of which one page, drawn at
random for each sample, is looked at.

The model: of n samples in a period a were of a page that had been used since the sample before; so about a/n of the
block's 512 pages are used within a sample's interval. The error is that of the draw, √(f(1−f)/n), never less than one
sample's. All processes are watched by one kdamond, since its commands are carried out one at a time and each waits for
the end of a period or two; so a thread reads, and the scheduler's loop takes what it read last. When the blocks or the
processes have changed, the watch begins anew after a reading, and not within a period.

A block that is mapped large, has one accessed bit: what is told of it is in how many of the samples it was used at all,
and `whole` says so: it is used when that was so in any. Of one that has become large or small since the last reading
nothing is told this time: some of its samples were of one page, and some of all.

Most of what a reading costs is what the kernel makes of files for it; so where readings would take more than `share` of
a core for each GiB, as it has been measured, the next one waits (`counting.least_s`). What the kernel's own thread
takes, which goes on looking at pages meanwhile, is not in that share.

DAMON is taken when there is something to watch and given back with the last of it; `changes` notes it before.
"""

import contextlib
import errno
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sustain.clock import Clock
from sustain.errors import HostError, SustainError
from sustain.host import damon, processes, smaps
from sustain.host.damon import Attributes, Damon, Watch
from sustain.host.pagemap import BLOCK_BYTES, PAGES_OF_BLOCK, Pagemap
from sustain.host.processes import Identity
from sustain.schedulers.changes import Changes, note_damon
from sustain.schedulers.large_pages.counting import Count, Memory, least_s, stretches
from sustain.schedulers.large_pages.model import Counting

SAMPLES = 32  # in a period: the error of a block is 45 pages of 512 at most
_AGAIN_S = 30.0  # what has failed is tried again
_LEAST_SAMPLE_US = 5_000
_LEAVE_S = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    """What the kernel watches now: the processes, in its order, each with the blocks that are padding at its end."""

    memories: tuple[Memory, ...]
    padding: int
    watch: Watch
    large: dict[Identity, NDArray[np.bool_]]  # blocks, before this reading began


class DamonCounter:
    """Implements `counting.Counter`."""

    kind: Counting = "damon"

    def __init__(
        self,
        period_s: float,
        clock: Clock,
        changes: Changes,
        root: Path = Path("/"),
        samples: int = SAMPLES,
        share: float | None = None,
        longest_s: float = math.inf,
    ) -> None:
        """`share` of a core that readings may take for each GiB; None: whatever they take."""
        self.attributes = Attributes(
            max(_LEAST_SAMPLE_US, int(period_s * 1e6 / samples)), int(period_s * 1e6)
        )
        self._period_s = period_s
        self._share = share
        self._longest_s = longest_s
        self._clock = clock
        self._changes = changes
        self._root = root
        self._changed = threading.Condition()
        self._wanted: tuple[Memory, ...] = ()
        self._counts: dict[Identity, Count] = {}
        self._problem: SustainError | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._damon: Damon | None = None  # the thread's own
        self._kept: SustainError | None = None  # why DAMON was not given back

    def start(self, memories: Sequence[Memory]) -> None:
        with self._changed:
            self._wanted = tuple(each for each in memories if len(each.addresses))
            alive = {each.who: each.image for each in memories}
            self._counts = {
                who: count for who, count in self._counts.items() if alive.get(who) == count.image
            }
            if self._wanted and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="count by DAMON", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def read(self) -> Mapping[Identity, Count]:
        with self._changed:
            return dict(self._counts)

    def problems(self) -> Mapping[Identity, str]:
        with self._changed:
            error, wanted = self._problem, self._wanted
        if error is None:
            return {}
        said = f"{error} ({error.hint})" if error.hint else str(error)
        return {each.who: said for each in wanted}

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread, ours = self._thread, self._damon
        if thread is not None:
            if ours is not None:
                with contextlib.suppress(HostError):  # it is given back below, or the thread says why not
                    ours.interrupt()
            thread.join(_LEAVE_S)
            if thread.is_alive():
                raise HostError(
                    "DAMON does not answer, and is not given back",
                    hint="`sustain agent restore`, later, takes it away",
                )
        if self._kept is not None:
            raise self._kept

    def _run(self) -> None:
        watched: _Watched | None = None
        try:
            while True:
                with self._changed:
                    if watched is not None and not self._wanted:
                        watched = None
                        self._give_back()
                    self._changed.wait_for(lambda: self._closed or self._wanted)
                    if self._closed:
                        return
                    wanted = self._wanted
                try:
                    if watched is not None and not _alike(watched.memories, wanted):
                        watched.watch.close()
                        watched = None
                    begun_s, spent_s = time.monotonic(), time.thread_time()
                    if watched is None:
                        watched = self._begin(wanted)
                    self._take(watched)
                    self._problem = None
                    self._pause(watched, time.thread_time() - spent_s, time.monotonic() - begun_s)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and counting begins anew
                    watched = None
                    self._give_back()
                    self._rest(_told(error), wanted)
        finally:
            self._give_back()

    def _pause(self, watched: _Watched, spent_s: float, lasted_s: float) -> None:
        """Until the next reading is due, or other processes are wanted. Other blocks of the same ones wait: a process
        whose memory comes and goes has others at each look."""
        if self._share is None:
            return
        blocks = sum(len(each.addresses) for each in watched.memories)
        rest_s = least_s(spent_s, blocks, self._share, self._period_s, self._longest_s) - lasted_s
        if rest_s > 0:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or _images(watched.memories) != _images(self._wanted), rest_s
                )

    def _rest(self, error: SustainError, wanted: tuple[Memory, ...]) -> None:
        """Before it is tried again; when the last process has gone, until others are wanted."""
        gone = getattr(error, "errno", None) == errno.ESRCH
        with self._changed:
            self._problem = None if gone else error
            self._changed.wait_for(lambda: self._closed or (gone and self._wanted is not wanted), _AGAIN_S)

    def _begin(self, wanted: tuple[Memory, ...]) -> _Watched:
        memories, before = self._large(wanted)
        targets = [(each.who.pid, _regions(each.addresses)) for each in memories]
        padding = max(0, damon.LEAST_REGIONS - sum(len(regions) for _, regions in targets)) if targets else 0
        if not targets:
            raise HostError("no process to watch", errno=errno.ESRCH)
        pid, regions = targets[-1]
        targets[-1] = (
            pid,
            regions
            + _regions(
                memories[-1].addresses[-1]
                + np.arange(1, padding + 1, dtype=np.uint64) * np.uint64(BLOCK_BYTES)
            ),
        )
        if self._kept is not None:
            raise HostError(
                f"DAMON could not be given back, and is not used until it is: {self._kept}",
                hint=self._kept.hint,
            )
        if self._damon is None:
            self._damon = Damon(partial(note_damon, self._changes), self._root)
        return _Watched(memories, padding, self._damon.watch_all(targets, self.attributes), before)

    def _take(self, watched: _Watched) -> None:
        """The next reading: it lasts a period or two."""
        # The kernel tells of the aggregation that ends next, and of when that is it says nothing.
        begun_s = self._clock.boottime_ns() / 1e9 - self.attributes.aggregation_us / 1e6
        found = watched.watch.counts()
        at_s = self._clock.boottime_ns() / 1e9
        expected = np.concatenate([each.addresses for each in watched.memories])
        if watched.padding:
            found = found[: -watched.padding]
        if len(found) != len(expected) or any(
            start not in (None, address) for (start, _), address in zip(found, expected.tolist(), strict=True)
        ):
            raise HostError(
                f"DAMON tells of {len(found)} regions that are not the {len(expected)} which were given to it",
                hint="does somebody else write to its files?",
            )
        accesses = np.array([count for _, count in found], np.int64)
        _, now = self._large(watched.memories)
        counts: dict[Identity, Count] = {}
        place = 0
        for memory in watched.memories:
            here = accesses[place : place + len(memory.addresses)]
            place += len(memory.addresses)
            # A process that has ended or become another since: what was seen is of nobody.
            if memory.who in now and smaps.image(memory.who.pid, self._root) == memory.image:
                before = watched.large.get(memory.who)
                counts[memory.who] = self._count(memory, here, at_s, at_s - begun_s, before, now[memory.who])
        watched.large.clear()
        watched.large.update(now)
        with self._changed:
            alive = {each.who: each.image for each in self._wanted}
            self._counts.update(
                {who: count for who, count in counts.items() if alive.get(who) == count.image}
            )

    def _large(
        self, memories: Sequence[Memory]
    ) -> tuple[tuple[Memory, ...], dict[Identity, NDArray[np.bool_]]]:
        """Those that have not ended, and which of their blocks are large now. Raises SustainError."""
        found = {}
        for memory in memories:
            try:
                found[memory.who] = large(memory, self._root)
            except SustainError:
                if processes.alive(memory.who, str(self._root)):
                    raise
        here = {who for who in found if processes.alive(who, str(self._root))}
        return tuple(each for each in memories if each.who in here), {who: found[who] for who in here}

    def _count(
        self,
        memory: Memory,
        accesses: NDArray[np.int64],
        at_s: float,
        period_s: float,
        before: NDArray[np.bool_] | None,
        whole: NDArray[np.bool_],
    ) -> Count:
        """`at_s`: its end, `period_s`: how long it was; `before`, `whole`: blocks that were large as this reading
        began, and that are now."""
        samples = self.attributes.samples
        share = np.minimum(accesses / samples, 1.0)
        error = np.maximum(np.sqrt(share * (1 - share) / samples), 1 / samples) * PAGES_OF_BLOCK
        touched = share * PAGES_OF_BLOCK
        touched[whole] = np.where(accesses[whole] > 0, PAGES_OF_BLOCK, 0)
        error[whole] = 0
        changed = np.ones(len(whole), np.bool_) if before is None else before != whole
        touched[changed] = error[changed] = np.nan
        return Count(
            memory.image,
            at_s,
            self.attributes.sample_us / 1e6,
            memory.addresses,
            touched.astype(np.float32),
            error.astype(np.float32),
            whole,
            period_s,
        )

    def _give_back(self) -> None:
        if self._damon is None:
            return
        try:
            self._damon.close()
        except Exception as error:  # noqa: BLE001 - `close` raises it
            self._kept = _told(error)
            return
        self._damon = self._kept = None


def large(memory: Memory, root: Path = Path("/")) -> NDArray[np.bool_]:
    """Which of the blocks are mapped large now. Raises RegionIOError."""
    found = np.zeros(len(memory.addresses), np.bool_)
    table = Pagemap(memory.who.pid, root)
    try:
        for start, end, rows in stretches(memory.addresses):
            found[rows] = table.blocks(start, end).huge
    finally:
        table.close()
    return found


def _told(error: Exception) -> SustainError:
    """What a target that is not counted says."""
    if isinstance(error, SustainError):
        return error
    if isinstance(error, OSError):
        return HostError(f"counting by DAMON failed: {error}", errno=error.errno)
    return HostError(f"unexpected {type(error).__name__}: {error}", hint="a defect of Sustain")


def _regions(addresses: NDArray[np.uint64]) -> list[damon.Run]:
    return [(each, each + BLOCK_BYTES) for each in addresses.tolist()]


def _images(memories: tuple[Memory, ...]) -> set[tuple[Identity, int]]:
    return {(each.who, each.image) for each in memories}


def _alike(some: tuple[Memory, ...], others: tuple[Memory, ...]) -> bool:
    return len(some) == len(others) and all(
        one.who == other.who and one.image == other.image and np.array_equal(one.addresses, other.addresses)
        for one, other in zip(some, others, strict=True)
    )
