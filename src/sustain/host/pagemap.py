"""/proc/PID/pagemap: which pages of another process were written. Used by change tracking (`powerfail.regions.track`).

Two ways, both by the kernel's Documentation/admin-guide/mm/pagemap.rst and soft-dirty.rst:
- `PAGEMAP_SCAN` (Linux 6.7) over memory that the process itself has registered with userfaultfd for asynchronous
  write protection: names the written pages and protects them again, in one step that loses nothing.
- soft-dirty bits (a kernel option): read from the entries, cleared for the whole process by `clear_refs`.
  Between the two a write is lost, so the process must stand still meanwhile.

Looking into another process needs the rights that ptrace needs for reading: the same user, or root.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from sustain.errors import RegionIOError

PAGE_BYTES = 4096
Run = tuple[int, int]  # addresses: from, to

_PAGEMAP_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16
_ARGUMENT = struct.Struct("=12Q")
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_WRITTEN = 1 << 1
_RUNS = 4096
_SOFT_DIRTY, _SWAPPED, _PRESENT = 1 << 55, 1 << 62, 1 << 63
_CHUNK_PAGES = 1 << 16


class NotRegistered(RegionIOError):
    """The memory is not registered for asynchronous write protection, so nothing is known of writes to it."""


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
        while start < end:
            where = ctypes.addressof(self._runs)
            fields = (96, flags, start, end, 0, where, _RUNS, 0, 0, _WRITTEN, 0, _WRITTEN)
            argument = bytearray(_ARGUMENT.pack(*fields))
            try:
                count = fcntl.ioctl(self._descriptor, _PAGEMAP_SCAN, argument)
            except OSError as error:
                if error.errno == errno.EPERM:
                    raise NotRegistered(f"{self._path}: {start:#x}: not registered", hint="") from None
                raise _refused(self._path, error) from None
            for at in range(count):
                begin, until = self._runs[3 * at], self._runs[3 * at + 1]
                if found and found[-1][1] == begin:
                    found[-1] = (found[-1][0], until)
                else:
                    found.append((begin, until))
            walked = _ARGUMENT.unpack(argument)[4]
            if walked <= start:
                raise RegionIOError(f"{self._path}: PAGEMAP_SCAN does not get on", hint="")
            start = walked
        return found

    def soft_dirty(self, start: int, end: int) -> list[Run]:
        """Runs of pages that are soft-dirty, or not mapped now.

        The latter because a page of a file that is unmapped by the kernel (reclaim, splitting and collapsing of huge
        pages) leaves no trace of having been written.
        """
        import numpy as np

        found: list[Run] = []
        first, last = start // PAGE_BYTES, end // PAGE_BYTES
        for page in range(first, last, _CHUNK_PAGES):
            wanted = min(_CHUNK_PAGES, last - page)
            try:
                data = os.pread(self._descriptor, wanted * 8, page * 8)
            except OSError as error:
                raise _refused(self._path, error) from None
            if len(data) != wanted * 8:
                raise RegionIOError(f"{self._path}: the process has gone", hint="")
            entries = np.frombuffer(data, np.uint64)
            here = np.uint64(_PRESENT | _SWAPPED)
            dirty = (entries & np.uint64(_SOFT_DIRTY) != 0) | (entries & here == 0)
            edges = np.flatnonzero(np.diff(np.concatenate(([False], dirty, [False])).astype(np.int8)))
            for begin, until in edges.reshape(-1, 2).tolist():
                run = (page + begin) * PAGE_BYTES, (page + until) * PAGE_BYTES
                if found and found[-1][1] == run[0]:
                    run = found.pop()[0], run[1]
                found.append(run)
        return found

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
