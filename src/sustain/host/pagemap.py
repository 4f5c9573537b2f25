"""/proc/PID/pagemap: which pages of another process were written, and where its pages are. Used by change tracking
(`powerfail.regions.track`), by the guest memory scheduler and by the large-page prioritiser.

Written pages, in two ways, both by the kernel's Documentation/admin-guide/mm/pagemap.rst and soft-dirty.rst:
- `PAGEMAP_SCAN` (Linux 6.7) over memory that the process itself has registered with userfaultfd for asynchronous
  write protection: names the written pages and protects them again, in one step that loses nothing.
- soft-dirty bits (a kernel option): read from the entries, cleared for the whole process by `clear_refs`.
  Between the two a write is lost, so the process must stand still meanwhile.
Where pages are (`census`): PAGEMAP_SCAN, which needs no registration; older kernels: by the entries, which do not tell
large pages and the zero page from others. Neither sees what of shared memory is not mapped, in swap or not.
  The same in columns, by aligned blocks of 2 MiB (`blocks`), for those that look at a million of them.

Looking into another process needs the rights that ptrace needs for reading: the same user, or root.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sustain.errors import RegionIOError

if TYPE_CHECKING:
    import numpy as np

PAGE_BYTES = 4096
BLOCK_BYTES = 2 << 20
PAGES_OF_BLOCK = BLOCK_BYTES // PAGE_BYTES
Run = tuple[int, int]  # addresses: from, to

_PAGEMAP_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16
_ARGUMENT = struct.Struct("=12Q")
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_WRITTEN = 1 << 1
_AT_FILE, _AT_PRESENT, _AT_SWAPPED, _AT_ZERO, _AT_HUGE = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6
_RUNS = 4096
_SOFT_DIRTY, _OF_FILE, _SWAPPED, _PRESENT = 1 << 55, 1 << 61, 1 << 62, 1 << 63
_FRAME = (1 << 55) - 1
_CHUNK_PAGES = 1 << 16
_CHUNK_BLOCKS = 1024
_NO_SCAN = frozenset((errno.ENOTTY, errno.EINVAL))


class NotRegistered(RegionIOError):
    """The memory is not registered for asynchronous write protection, so nothing is known of writes to it."""


@dataclass(frozen=True, slots=True)
class Census:
    """Where the pages of a range are. Bytes; None: this kernel does not say."""

    present_bytes: int
    swapped_bytes: int
    file_bytes: int  # of the present: of files, tmpfs and memfd
    huge_bytes: int | None  # of the present, mapped large
    zero_bytes: int | None  # of the present: the zero page, which takes nothing
    present: tuple[Run, ...]
    swapped: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Aligned blocks of 2 MiB in a row, in columns of one length."""

    start: int  # of the first
    present: "np.ndarray[Any, np.dtype[np.int16]]"  # pages in memory, 0 … 512; without the zero page, which takes none
    huge: "np.ndarray[Any, np.dtype[np.bool_]]"  # mapped large


class Pagemap:
    """The pagemap of one process. Close it; raises RegionIOError when the process has gone or is not ours."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._folder = root / "proc" / str(pid)
        self._path = self._folder / "pagemap"
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(self._path, error) from None
        self._runs = (ctypes.c_uint64 * (3 * _RUNS))()

    def written(self, start: int, end: int, *, protect: bool) -> list[Run]:
        """Runs of pages written since they were protected last; with `protect` they are protected again, at once.

        Raises NotRegistered, and RegionIOError where the kernel has no PAGEMAP_SCAN. A page that is not mapped now
        and was not protected counts as written: nobody can know.
        """
        flags = _CHECK_WPASYNC | (_WP_MATCHING if protect else 0)
        found: list[Run] = []
        for begin, until, _ in self._scan(start, end, flags, _WRITTEN, _WRITTEN):
            _append(found, begin, until)
        return found

    def census(self, start: int, end: int) -> Census:
        """Where the pages from `start` to `end` are. Raises RegionIOError when the process has gone."""
        try:
            parts: Iterable[tuple[int, int, int]] = list(
                self._scan(
                    start,
                    end,
                    0,
                    _AT_PRESENT | _AT_SWAPPED,
                    _AT_FILE | _AT_PRESENT | _AT_SWAPPED | _AT_ZERO | _AT_HUGE,
                )
            )
            scanned = True
        except RegionIOError as error:
            if error.errno not in _NO_SCAN:
                raise
            parts, scanned = self._entries(start, end), False
        sums = dict.fromkeys((_AT_FILE, _AT_PRESENT, _AT_SWAPPED, _AT_ZERO, _AT_HUGE), 0)
        present: list[Run] = []
        swapped: list[Run] = []
        for begin, until, kinds in parts:
            sums[_AT_SWAPPED] += until - begin if kinds & _AT_SWAPPED else 0
            if kinds & _AT_PRESENT:
                for kind in (_AT_FILE, _AT_PRESENT, _AT_ZERO, _AT_HUGE):
                    sums[kind] += until - begin if kinds & kind else 0
                _append(present, begin, until)
            else:
                _append(swapped, begin, until)
        return Census(
            sums[_AT_PRESENT],
            sums[_AT_SWAPPED],
            sums[_AT_FILE],
            sums[_AT_HUGE] if scanned else None,
            sums[_AT_ZERO] if scanned else None,
            tuple(present),
            tuple(swapped),
        )

    def blocks(self, start: int, end: int) -> BlockCounts:
        """The pages of the blocks from `start` to `end`, both aligned. Raises RegionIOError: also where the kernel has
        no PAGEMAP_SCAN, since nothing else tells what is mapped large, block by block."""
        import numpy as np

        assert start % BLOCK_BYTES == end % BLOCK_BYTES == 0
        count = (end - start) // BLOCK_BYTES
        present, huge = np.zeros(count, np.int16), np.zeros(count, np.bool_)
        for first in range(0, count, _CHUNK_BLOCKS):
            last = min(first + _CHUNK_BLOCKS, count)
            begin, until = start + first * BLOCK_BYTES, start + last * BLOCK_BYTES
            try:
                found = list(self._batches(begin, until, 0, _AT_PRESENT, _AT_ZERO | _AT_HUGE))
            except RegionIOError as error:
                if error.errno not in _NO_SCAN:
                    raise
                hint = "it needs Linux 6.7 (PAGEMAP_SCAN)"
                raise RegionIOError(
                    f"{self._path}: what is mapped large is not known", hint=hint, errno=errno.ENOTTY
                ) from None
            runs = np.concatenate(found) if found else np.zeros((0, 3), np.uint64)
            pages = ((runs[:, :2] - np.uint64(begin)) // np.uint64(PAGE_BYTES)).astype(np.int64)
            for column, chosen in (
                (present, runs[:, 2] & np.uint64(_AT_ZERO) == 0),
                (huge, runs[:, 2] & np.uint64(_AT_HUGE) != 0),
            ):
                column[first:last] = _by_block(pages[chosen], last - first)
        return BlockCounts(start, present, huge)

    def entries(self, start: int, end: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """The kernel's entries of all pages from `start` to `end`: `frame_of` says what of it is a frame."""
        import numpy as np

        found = [entries for _, entries in self._read(start, end)]
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def present(self, pages: Iterable[int]) -> int:
        """How many of these pages (addresses) are in memory now."""
        try:
            entries = [os.pread(self._descriptor, 8, page // PAGE_BYTES * 8) for page in pages]
        except OSError as error:
            raise _refused(self._path, error) from None
        return sum(bool(int.from_bytes(entry, "little") & _PRESENT) for entry in entries)

    def _scan(
        self, start: int, end: int, flags: int, wanted: int, told: int
    ) -> Iterator[tuple[int, int, int]]:
        """PAGEMAP_SCAN: runs (from, to, categories) of pages in any of the `wanted` categories."""
        for count in self._calls(start, end, flags, wanted, told):
            words = self._runs[: 3 * count]
            yield from zip(words[0::3], words[1::3], words[2::3], strict=True)

    def _batches(
        self, start: int, end: int, flags: int, wanted: int, told: int
    ) -> "Iterator[np.ndarray[Any, np.dtype[np.uint64]]]":
        """The same in rows of arrays."""
        import numpy as np

        for count in self._calls(start, end, flags, wanted, told):
            yield np.frombuffer(memoryview(self._runs), np.uint64, 3 * count).reshape(-1, 3).copy()

    def _calls(self, start: int, end: int, flags: int, wanted: int, told: int) -> Iterator[int]:
        """How many runs the kernel has put into `_runs`, call by call."""
        while start < end:
            where = ctypes.addressof(self._runs)
            fields = (96, flags, start, end, 0, where, _RUNS, 0, 0, 0, wanted, told)
            argument = bytearray(_ARGUMENT.pack(*fields))
            try:
                count = fcntl.ioctl(self._descriptor, _PAGEMAP_SCAN, argument)
            except OSError as error:
                if error.errno == errno.EPERM:
                    raise NotRegistered(f"{self._path}: {start:#x}: not registered", hint="") from None
                raise _refused(self._path, error) from None
            # Where many runs end before an empty stretch, Linux (6.18) says it has walked less far than it told of.
            walked = max(_ARGUMENT.unpack(argument)[4], self._runs[3 * count - 2] if count else 0)
            if walked <= start:
                raise RegionIOError(f"{self._path}: PAGEMAP_SCAN does not get on", hint="")
            yield count
            start = walked

    def _entries(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The same from the entries, for kernels without the call."""
        import numpy as np

        for first, entries in self._read(start, end):
            here = entries & np.uint64(_PRESENT | _SWAPPED | _OF_FILE)
            edges = [0, *(np.flatnonzero(np.diff(here)) + 1).tolist(), len(here)]
            for begin, until in pairwise(edges):
                entry = int(here[begin])
                kinds = (
                    (_AT_PRESENT if entry & _PRESENT else 0)
                    | (_AT_SWAPPED if entry & _SWAPPED else 0)
                    | (_AT_FILE if entry & _OF_FILE else 0)
                )
                if entry & (_PRESENT | _SWAPPED):
                    yield (first + begin) * PAGE_BYTES, (first + until) * PAGE_BYTES, kinds

    def soft_dirty(self, start: int, end: int) -> list[Run]:
        """Runs of pages that are soft-dirty, or not mapped now.

        The latter because a page of a file that is unmapped by the kernel (reclaim, splitting and collapsing of huge
        pages) leaves no trace of having been written.
        """
        import numpy as np

        found: list[Run] = []
        for page, entries in self._read(start, end):
            here = np.uint64(_PRESENT | _SWAPPED)
            dirty = (entries & np.uint64(_SOFT_DIRTY) != 0) | (entries & here == 0)
            edges = np.flatnonzero(np.diff(np.concatenate(([False], dirty, [False])).astype(np.int8)))
            for begin, until in edges.reshape(-1, 2).tolist():
                _append(found, (page + begin) * PAGE_BYTES, (page + until) * PAGE_BYTES)
        return found

    def _read(self, start: int, end: int) -> "Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint64]]]]":
        """The entries, in pieces, each with the number of its first page."""
        import numpy as np

        last = end // PAGE_BYTES
        for page in range(start // PAGE_BYTES, last, _CHUNK_PAGES):
            wanted = min(_CHUNK_PAGES, last - page)
            try:
                data = os.pread(self._descriptor, wanted * 8, page * 8)
            except OSError as error:
                raise _refused(self._path, error) from None
            if len(data) != wanted * 8:
                raise RegionIOError(f"{self._path}: the process has gone", hint="", errno=errno.ESRCH)
            yield page, np.frombuffer(data, np.uint64)

    def clear_soft_dirty(self) -> None:
        """Clear the bits of the whole process, also those that somebody else (CRIU) may be looking at."""
        path = self._folder / "clear_refs"
        try:
            path.write_text("4", encoding="ascii")
        except OSError as error:
            raise _refused(path, error) from None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _append(runs: list[Run], begin: int, until: int) -> None:
    """Add a run; it goes on with the last one where they touch."""
    if runs and runs[-1][1] == begin:
        runs[-1] = (runs[-1][0], until)
    else:
        runs.append((begin, until))


def _by_block(runs: "np.ndarray[Any, Any]", blocks: int) -> "np.ndarray[Any, Any]":
    """Pages of these runs (numbers: from, to) in each block."""
    import numpy as np

    edges = np.zeros(blocks * PAGES_OF_BLOCK + 1, np.int8)
    # Runs do not overlap, but one may begin where another ends.
    edges[runs[:, 0]] += 1
    edges[runs[:, 1]] -= 1
    inside = np.cumsum(edges[:-1], dtype=np.int8)
    return np.asarray(inside.reshape(blocks, PAGES_OF_BLOCK).sum(axis=1, dtype=np.int16))


def frame_of(entries: "np.ndarray[Any, np.dtype[np.uint64]]") -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """The frame of each page; 0: it is not in memory, or frames are hidden from us."""
    import numpy as np

    return np.where(entries & np.uint64(_PRESENT) != 0, entries & np.uint64(_FRAME), np.uint64(0))


def has_soft_dirty() -> bool:
    """Whether this kernel keeps soft-dirty bits: a page of our own that was just written must have one."""
    with mmap.mmap(-1, PAGE_BYTES) as page:
        page[0] = 1
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        try:
            descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            data = os.pread(descriptor, 8, at // PAGE_BYTES * 8)
        finally:
            os.close(descriptor)
    return len(data) == 8 and bool(int.from_bytes(data, "little") & _SOFT_DIRTY)


def has_scan() -> bool:
    """Whether this kernel has PAGEMAP_SCAN: memory that is not registered is refused as such, and not as nonsense."""
    with mmap.mmap(-1, PAGE_BYTES) as page:
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        try:
            own = Pagemap(os.getpid())
        except RegionIOError:
            return False
        try:
            own.written(at, at + PAGE_BYTES, protect=False)
        except NotRegistered:
            return True
        except RegionIOError:
            return False
        finally:
            own.close()
    return True


def _refused(path: Path, error: OSError) -> RegionIOError:
    hint = (
        "run it as the user of the program, or as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
    )
    return RegionIOError(f"{path}: {error.strerror or error}", hint=hint, errno=error.errno)
