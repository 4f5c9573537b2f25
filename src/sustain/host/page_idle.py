"""/sys/kernel/mm/page_idle/bitmap: whether pages were used, for a sample of a process's memory.

Documentation/admin-guide/mm/idle_page_tracking.rst; kernels with CONFIG_IDLE_PAGE_TRACKING (Ubuntu, Fedora).
Used by the guest memory scheduler for guests that tell nothing. A page is marked idle; when it is used, by the process
or by the guest in it, the mark goes. Needs root, since page frame numbers do. Reading and marking are 8 bytes each for
64 frames.

Marks are the host's: what one has marked, another marks anew or takes for used, and neither sees it. So whoever counts
holds the bitmap (`Held`) from its first mark until it looks at no more of them: an exclusive flock(2) on the bitmap
itself, which ends with the process and has no file of its own to be left behind or to be put where others do not look.
Only other programs than ours do not ask for it.

Rejected: `clear_refs` with `Referenced` of smaps, which does not see what a guest does under KVM.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files, madvise
from sustain.host.maps import Area

_BITMAP = "sys/kernel/mm/page_idle/bitmap"
_PAGE_BYTES = 4096
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """Pages that were marked: (address, frame). What was present of the `drawn` ones."""

    pages: tuple[tuple[int, int], ...]
    drawn: int


@dataclass(frozen=True, slots=True)
class Use:
    """What became of a sample. Pages that lie in another frame by now, or in none, are not counted."""

    accessed: int
    idle: int


def path(root: Path = Path("/")) -> Path:
    """Where the bitmap is, on kernels that have it."""
    return root / _BITMAP


def available(root: Path = Path("/")) -> bool:
    return path(root).exists()


def hidden(root: Path = Path("/")) -> HostError | None:
    """Why a page of our own cannot be looked up, so nobody's can; None: it can."""
    with mmap.mmap(-1, _PAGE_BYTES) as view:
        view[0] = 1  # from now on it is present
        byte = ctypes.c_char.from_buffer(view)
        try:
            with _Frames(os.getpid(), root) as frames:
                frames.of(ctypes.addressof(byte))
        except HostError as error:
            return error
        finally:
            del byte  # else the memory cannot be given back
    return None


class Held:
    """The bitmap, by which nobody else counts until it is closed."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Raises HostError: EBUSY, somebody else has it."""
        self._fd = -1
        bitmap = path(root)
        try:
            fd = os.open(bitmap, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise files.refused(bitmap, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise HostError(
                f"{bitmap}: {holder(root) or 'another process'} counts by it",
                hint="its marks are the host's, so one counts at a time: end that one, or count by DAMON",
                errno=errno.EBUSY,
            ) from None
        except OSError as error:
            os.close(fd)
            raise files.refused(bitmap, error) from None
        self._fd = fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def holder(root: Path = Path("/")) -> str:
    """Who counts by the bitmap now, in words ("process 4711 (sustain)"); "": nobody, or one that is not seen from
    here (another pid namespace). Raises HostError."""
    try:
        found = os.stat(path(root))
    except OSError:
        return ""
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    # "1: FLOCK  ADVISORY  WRITE 4711 00:15:12345 0 EOF"; those that wait have "->" after the number.
    for line in (files.text(root / "proc/locks") or "").splitlines():
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[5:6] == [f"{device}:{found.st_ino}"]:
            name = (files.text(root / "proc" / words[4] / "comm") or "").strip()
            return f"process {words[4]}" + (f" ({name})" if name else "")
    return ""


def mark(pid: int, areas: tuple[Area, ...], count: int, seed: int, root: Path = Path("/")) -> Sample:
    """Mark up to `count` pages of these areas, chosen at random, as idle. Raises HostError."""
    sizes = [each.size_bytes // _PAGE_BYTES for each in areas]
    total = sum(sizes)
    pages = []
    chosen = random.Random(seed).sample(range(total), min(count, total))
    with _Frames(pid, root) as frames:
        for number in sorted(chosen):
            address = _address(areas, sizes, number)
            if frame := frames.of(address):
                pages.append((address, frame))
    bitmap = path(root)
    madvise.empty_batches()  # a page that waits in one cannot be marked, and would count as used
    try:
        fd = os.open(bitmap, os.O_RDWR | os.O_CLOEXEC)
        try:
            for word, bits in _words(frame for _, frame in pages).items():
                os.pwrite(fd, bits.to_bytes(8, "little"), word * 8)  # ones mark; zeros leave alone
        finally:
            os.close(fd)
    except OSError as error:
        raise files.refused(bitmap, error) from None
    return Sample(tuple(pages), len(chosen))


def look(pid: int, sample: Sample, root: Path = Path("/")) -> Use:
    """How many of them were used since. Raises HostError."""
    accessed = idle = 0
    bitmap = path(root)
    with _Frames(pid, root) as frames:
        here = [frame for address, frame in sample.pages if frames.of(address) == frame]
    try:
        fd = os.open(bitmap, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for word, bits in _words(here).items():
                left = bits & int.from_bytes(os.pread(fd, 8, word * 8), "little")
                idle += left.bit_count()
                accessed += (bits & ~left).bit_count()
        finally:
            os.close(fd)
    except OSError as error:
        raise files.refused(bitmap, error) from None
    return Use(accessed, idle)


class _Frames:
    """Page frame numbers of a process."""

    def __init__(self, pid: int, root: Path) -> None:
        self._path = root / "proc" / str(pid) / "pagemap"

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise files.refused(self._path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def of(self, address: int) -> int | None:
        """The frame of the page; None: it is not present."""
        try:
            entry = int.from_bytes(os.pread(self._fd, 8, address // _PAGE_BYTES * 8), "little")
        except OSError as error:
            raise files.refused(self._path, error) from None
        if not entry & _PRESENT:
            return None
        if not entry & _FRAME:
            raise HostError(
                f"{self._path}: frame numbers are hidden",
                hint="it needs root (CAP_SYS_ADMIN)",
                errno=errno.EPERM,
            )
        return entry & _FRAME


def _address(areas: tuple[Area, ...], sizes: list[int], number: int) -> int:
    """Where the page of that number is, counted through all areas."""
    for area, size in zip(areas, sizes, strict=True):
        if number < size:
            return area.start + number * _PAGE_BYTES
        number -= size
    raise IndexError(number)


def _words(frames: Iterable[int]) -> dict[int, int]:
    """Bits of the bitmap by its words of 64 frames, in order."""
    words: defaultdict[int, int] = defaultdict(int)
    for frame in sorted(frames):
        words[frame // 64] |= 1 << frame % 64
    return words
