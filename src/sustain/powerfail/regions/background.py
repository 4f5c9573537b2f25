"""What goes on beside the writing of pages, each in a thread of its own: reading ahead, reading back, flushing early.

Used by `directory`, `save` and `restore`. Copying a region takes a read, a digest, a write, a second look at
what was written and a flush; one after the other they add up to three times a plain copy. None of them holds the
interpreter lock while it works, so threads are enough.
"""

import mmap
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from sustain.errors import RegionError
from sustain.powerfail.regions.manifest import PAGE_BYTES
from sustain.powerfail.regions.scan import Run, digests_at, merged, mismatches, slices

STEP_PAGES = 512  # 2 MiB: read, hashed and written while it is in the cache
AHEAD = 4
_BEHIND = 64
_EARLY_BYTES = 64 << 20

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in a thread that stays at most `depth` ahead; what it raises is raised here. Close it."""
    ready: queue.Queue[tuple[T] | Exception | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T] | Exception | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
        except Exception as error:  # noqa: BLE001 - raised in the other thread
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=run, name="read ahead")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item[0]
    finally:
        stop.set()
        thread.join()


def page_buffer(size_bytes: int = STEP_PAGES * PAGE_BYTES) -> memoryview:
    """Memory to read into and write from. It begins with a page, as what the kernel copies from and to does: copies
    between places that lie differently within a cache line are slower."""
    return memoryview(mmap.mmap(-1, size_bytes))


class Buffers:
    """Buffers of one slice, used in turn: as many as `ahead` can have on their way, and one on each side; without
    `ahead` the same one again and again, which then stays in the processor's cache."""

    def __init__(self, read_ahead: bool = True) -> None:
        self._buffers = [page_buffer() for _ in range(AHEAD + 3 if read_ahead else 1)]
        self._next = 0

    def take(self, pages: int) -> memoryview:
        self._next = (self._next + 1) % len(self._buffers)
        return self._buffers[self._next][: pages * PAGE_BYTES]


class Readback:
    """Compares pages with a table right behind their being written, while they are in the cache.

    `read(first_page, buffer)` fills a buffer of whole pages. `table` may change with later writes: a page that does not
    fit when it is looked at first is looked at again in `finish`, when nobody writes any more.
    """

    def __init__(self, read: Callable[[int, memoryview], None], table: bytes | bytearray) -> None:
        self._read, self._table = read, table
        self._buffer = page_buffer()
        self._runs: queue.Queue[Run | None] = queue.Queue(_BEHIND)
        self._suspects: list[Run] = []
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def wrote(self, first_page: int, pages: int) -> None:
        """These pages are written, and in the table."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="read back", daemon=True)
            self._thread.start()
        self._runs.put((first_page, pages))

    def finish(self) -> list[Run]:
        """Runs of all pages written since the last time that are not what the table says. Raises what `read` raised."""
        self.close()
        if self._error is not None:
            raise self._error
        suspects, self._suspects = merged(self._suspects), []
        return merged(wrong for run in suspects for wrong in self._compare(run))

    def close(self) -> None:
        """End the thread. It may be used again."""
        if self._thread is not None:
            self._runs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (run := self._runs.get()) is not None:
            if self._error is None:
                try:
                    self._suspects += self._compare(run)
                except Exception as error:  # noqa: BLE001 - raised by `finish`
                    self._error = error

    def _compare(self, run: Run) -> list[Run]:
        wrong: list[Run] = []
        for first, pages in slices(*run, STEP_PAGES):
            part = self._buffer[: pages * PAGE_BYTES]
            self._read(first, part)
            wrong += mismatches(part, digests_at(self._table, first, pages), first, still=True)
        return wrong


class EarlySync:
    """Makes a file durable bit by bit while it is written, so that little is left for the end."""

    def __init__(self, flush: Callable[[], None]) -> None:
        """`flush` raises RegionError."""
        self._flush = flush
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._error: RegionError | None = None

    def wrote(self, size_bytes: int) -> None:
        """That much more is written."""
        self._bytes += size_bytes
        if self._bytes >= _EARLY_BYTES and (self._thread is None or not self._thread.is_alive()):
            self._bytes = 0
            self._thread = threading.Thread(target=self._work, name="flush early")
            self._thread.start()

    def finish(self) -> None:
        """Return when all is durable. Raises RegionError when any flush failed: the kernel says so only once."""
        self.close()
        self._bytes = 0
        if self._error is None:
            self._work()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            self._flush()
        except RegionError as error:
            self._error = error
