"""The region itself: a regular file, a block device (`/dev/pmem0`), or a DAX character device (`/dev/dax0.0`).

    with open_medium("/srv/vm1.nvdimm") as medium:
        medium.read(first_page, buffer)

Used by `save`, `restore` and the pre-copier. Pages are read with `pread` into a buffer of the caller: then the
digest is that of exactly the bytes that are sent, and an error of the medium is an error and not a SIGBUS.
`view` maps the region for those who scan it again and again. A DAX character device can only be mapped.

Rejected: O_DIRECT. The program's own mapping lies in the same page cache, which must not be bypassed.
"""

import errno
import fcntl
import mmap
import os
import signal
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sustain import _native, wholefile
from sustain.errors import RegionBusy, RegionError, RegionFull, RegionIOError
from sustain.host import devices
from sustain.powerfail.regions.durable import os_errors, read_all, write_all
from sustain.powerfail.regions.manifest import PAGE_BYTES, pages_of
from sustain.powerfail.regions.scan import Run, slices

_HINT = "name a file, a block device such as /dev/pmem0, or a DAX device such as /dev/dax0.0"
_MADV_POPULATE_READ = 22
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are
_F_SETSIG = 10  # not in the fcntl module


class Medium(ABC):
    """An open region. Pages are of 4 KiB; the last may be shorter, and is read as filled up with zeros."""

    kind: str  # "file", "block device" or "dax device"

    def __init__(self, path: str, fd: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._fd = fd
        self._map: mmap.mmap | None = None

    @property
    def pages(self) -> int:
        return pages_of(self.size_bytes)

    @abstractmethod
    def read(self, first_page: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer`, whole pages, from `first_page` on. Raises RegionIOError."""

    @abstractmethod
    def write(self, first_page: int, data: bytes | bytearray | memoryview) -> None:
        """Put whole pages; what lies behind the end of the medium is left out. Raises RegionIOError, RegionFull."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything that was written is durable. Raises RegionIOError."""

    def hold_still(self) -> bool:
        """Keep writers out, if there are none; whether that was possible. `held_still` tells later if it lasted."""
        return False

    def held_still(self) -> bool:
        """Whether nobody can have written since `hold_still`."""
        return False

    @property
    def in_memory(self) -> bool:
        """Whether it is a file in memory (tmpfs): what is written there lies where it is read from."""
        return False

    def hold_alone(self) -> bool:
        """Notice whoever opens it from now on, if nobody has it open for writing; whether that was possible."""
        return False

    def held_alone(self) -> bool:
        """Whether nobody else can have written since `hold_alone`. Ask often: whoever opens it waits for that."""
        return False

    def data_runs(self) -> Iterator[Run]:
        """Runs of pages that may hold something; all others are holes, zeros without room behind them."""
        yield 0, self.pages

    def spans(self, pages: int, limit: int) -> Iterator[tuple[int, int, bool]]:
        """The first `pages` pages in order, cut into (first, count, whether they may hold something)."""
        end = 0
        for first, count in self.data_runs():
            yield from ((at, n, False) for at, n in slices(end, min(first, pages) - end, limit))
            yield from ((at, n, True) for at, n in slices(first, min(first + count, pages) - first, limit))
            end = min(first + count, pages)
            if end == pages:
                return
        yield from ((at, n, False) for at, n in slices(end, pages - end, limit))

    def view(self) -> memoryview:
        """All of it, mapped read-only and shared, without the zeros behind its end. Release it before `close`."""
        if self._map is None:
            with os_errors(self.path, "cannot be mapped", _HINT):
                self._map = mmap.mmap(self._fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        return memoryview(self._map)

    def populate(self, first_page: int, pages: int) -> None:
        """Bring some pages of `view` in at once: faster than fault by fault, and an error of the medium is
        RegionIOError instead of SIGBUS."""
        assert self._map is not None, "view comes first"
        length = min(pages * PAGE_BYTES, self.size_bytes - first_page * PAGE_BYTES)
        try:
            self._map.madvise(_MADV_POPULATE_READ, first_page * PAGE_BYTES, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: Linux before 5.14, which faults page by page
                raise RegionIOError(
                    f"{self.path}: pages {first_page} to {first_page + pages - 1} cannot be read: {error.strerror}",
                    hint="look at the device and its messages in the kernel log",
                    errno=error.errno,
                ) from None

    def close(self) -> None:
        """May be called twice."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileMedium(Medium):
    """A regular file or a block device."""

    def __init__(self, path: str, fd: int, size_bytes: int, kind: str) -> None:
        super().__init__(path, fd, size_bytes)
        self.kind = kind

    def read(self, first_page: int, buffer: bytearray | memoryview) -> None:
        offset = first_page * PAGE_BYTES
        wanted = min(len(buffer), self.size_bytes - offset)
        view = memoryview(buffer)
        with os_errors(self.path, f"pages from {first_page} on cannot be read"):
            got = read_all(self._fd, view[:wanted], offset)
        if got != wanted:
            raise RegionIOError(
                f"{self.path}: has become shorter than {self.size_bytes} bytes",
                hint="stop what changes its size",
            )
        if wanted < len(buffer):
            view[wanted:] = bytes(len(buffer) - wanted)

    def write(self, first_page: int, data: bytes | bytearray | memoryview) -> None:
        offset = first_page * PAGE_BYTES
        with os_errors(self.path, f"pages from {first_page} on cannot be written"):
            write_all(self._fd, memoryview(data)[: max(0, self.size_bytes - offset)], offset)

    def flush(self) -> None:
        with os_errors(self.path, "cannot be made durable"):
            os.fsync(self._fd)

    def hold_still(self) -> bool:
        """By a read lease (fcntl(2)): it is given only while nobody has the file open for writing, mappings included,
        and whoever opens it so then waits until the lease is given up, or breaks it after lease-break-time."""
        return self._lease(fcntl.F_RDLCK)

    def held_still(self) -> bool:
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK

    @property
    def in_memory(self) -> bool:
        return self.kind == "file" and _native.durability_of(self.path) == "memory"

    def hold_alone(self) -> bool:
        """By a write lease (fcntl(2)), which is given only while nobody else has the file open for writing."""
        return self._lease(fcntl.F_WRLCK)

    def held_alone(self) -> bool:
        if fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
            return True
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def _lease(self, kind: int) -> bool:
        try:
            # The kernel tells of a break by a signal. SIGURG is ignored where SIGIO would end the process.
            fcntl.fcntl(self._fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, kind)
        except OSError:  # somebody writes, it is a device, or its file system has no leases
            return False
        return True

    def data_runs(self) -> Iterator[Run]:
        # Looking for holes takes a look at every page; where there is room behind all of them, there are none.
        if self.kind != "file" or os.fstat(self._fd).st_blocks * _BLOCK_BYTES >= self.size_bytes:
            yield from super().data_runs()
            return
        end = 0
        while end < self.pages:
            try:
                data = os.lseek(self._fd, end * PAGE_BYTES, os.SEEK_DATA)
                hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: no more data
                    yield end, self.pages - end
                return
            first = max(end, data // PAGE_BYTES)
            end = min(self.pages, pages_of(hole))
            if first < end:
                yield first, end - first


class DaxMedium(Medium):
    """A DAX character device: memory that can only be mapped, and is made durable by its cache lines."""

    kind = "dax device"

    def __init__(self, path: str, fd: int, size_bytes: int, *, writable: bool) -> None:
        super().__init__(path, fd, size_bytes)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        with os_errors(path, "cannot be mapped"):
            self._map = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, protection)

    def read(self, first_page: int, buffer: bytearray | memoryview) -> None:
        assert self._map is not None
        offset = first_page * PAGE_BYTES
        self.populate(first_page, len(buffer) // PAGE_BYTES)
        with memoryview(self._map) as whole:
            part = whole[offset : offset + len(buffer)]
            memoryview(buffer)[: len(part)] = part
            memoryview(buffer)[len(part) :] = bytes(len(buffer) - len(part))
            part.release()

    def write(self, first_page: int, data: bytes | bytearray | memoryview) -> None:
        assert self._map is not None
        offset = first_page * PAGE_BYTES
        with memoryview(self._map) as whole:
            part = whole[offset : offset + len(data)]
            part[:] = memoryview(data)[: len(part)]
            _native.write_back(part)
            part.release()

    def flush(self) -> None:
        """Every write has done it already."""


def open_medium(path: str | os.PathLike[str], *, writable: bool = False, root: Path = Path("/")) -> Medium:
    """The region at `path`, which exists. Raises RegionError, RegionIOError."""
    name = os.fspath(path)
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    with os_errors(name, "cannot be opened", _HINT):
        if writable and stat.S_ISBLK(os.stat(name).st_mode):
            flags |= os.O_EXCL  # refused while a file system on it is mounted
        try:
            fd = os.open(name, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RegionBusy(f"{name}: is in use", hint="unmount it, and stop what uses it") from None
            raise
    try:
        return _medium(name, fd, writable, root)
    except BaseException:
        os.close(fd)
        raise


def _medium(name: str, fd: int, writable: bool, root: Path) -> Medium:
    status = os.fstat(fd)
    size_bytes = status.st_size
    kind = "file"
    if stat.S_ISBLK(status.st_mode):
        kind = "block device"
        with os_errors(name, "has no size"):
            size_bytes = os.lseek(fd, 0, os.SEEK_END)
            # What was cached before a file system on it wrote past this cache is of no use.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    elif stat.S_ISCHR(status.st_mode):
        device = devices.dax(status.st_rdev, root)
        if device is None:
            raise RegionError(f"{name}: is a character device, and not a DAX one", hint=_HINT)
        size = device.size_bytes // device.align_bytes * device.align_bytes
        return DaxMedium(name, fd, size, writable=writable)
    elif not stat.S_ISREG(status.st_mode):
        raise RegionError(f"{name}: is neither a file nor a device", hint=_HINT)
    if not size_bytes:
        raise RegionError(f"{name}: is empty", hint=_HINT)
    return FileMedium(name, fd, size_bytes, kind)


def open_target(path: str | os.PathLike[str], size_bytes: int) -> Medium:
    """Where a region of `size_bytes` is restored to: made, or grown, when it is a regular file or nothing yet.

    Raises RegionBusy when something writes to it, RegionFull when a device is too small, RegionIOError.
    """
    name = os.fspath(path)
    with os_errors(name, "cannot be made", "name a directory that can be written to"):
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            pass
        else:
            os.close(fd)
            wholefile.sync_directory(Path(name).absolute().parent)
        if stat.S_ISREG(os.stat(name).st_mode):
            _refuse_writers(name)
            if os.stat(name).st_size < size_bytes:
                os.truncate(name, size_bytes)
    medium = open_medium(name, writable=True)
    if medium.size_bytes < size_bytes:
        medium.close()
        raise RegionFull(
            f"{name}: has {medium.size_bytes} bytes, the region {size_bytes}", hint="name a larger device"
        )
    return medium


def _refuse_writers(name: str) -> None:
    """A read lease is granted only when nobody has the file open for writing. Raises RegionBusy."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise RegionBusy(
                f"{name}: a program has it open for writing", hint="stop that program first"
            ) from None
    finally:
        os.close(fd)
