"""/proc/kpageflags and /sys/kernel/mm/page_idle/bitmap for many frames at once, as columns. Used by the large-page
prioritiser, to count the used pages of whole processes; `page_idle` is the same for a sample of some pages.

Documentation/admin-guide/mm/pagemap.rst and idle_page_tracking.rst; both need root. Words of the files that lie close
together are read at once: reading past some in between costs less than another call. One call takes no more than 4 KiB
of the bitmap, which are 128 MiB of memory; what is over it does not do, and does not say so. A frame of the bitmap that
is not the head of its page (a part of a larger one), or on none of the kernel's lists, can neither be marked nor be
read: the bitmap shows 0 for it, as for one that was used. So `Kinds` says which are which.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sustain.host import files

_FLAGS = "proc/kpageflags"
_BITMAP = "sys/kernel/mm/page_idle/bitmap"
_LRU, _HEAD, _TAIL, _ZERO = 1 << 5, 1 << 15, 1 << 16, 1 << 24
_FLAGS_GAP_WORDS = (
    16  # what is read in vain rather than asked for anew: some 0.1 µs for a frame, a call is 1 µs
)
_BITMAP_GAP_WORDS = 1  # 64 frames
_FLAGS_MOST_WORDS = 1 << 17  # of one call: 1 MiB
_BITMAP_MOST_WORDS = 512

Column = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Of each frame that was asked for; columns of one length."""

    alone: NDArray[np.bool_]  # a page of its own, which can be marked
    head: NDArray[np.bool_]  # the first frame of a larger page, which can be marked for all of it
    tail: NDArray[np.bool_]  # another frame of a larger page
    zero: NDArray[np.bool_]  # the zero page, which is nobody's


def kinds(frames: Column, root: Path = Path("/")) -> Kinds:
    """What these frames are now. Raises HostError."""
    order = np.argsort(frames, kind="stable")
    flags = np.empty(len(frames), np.uint64)
    pieces = _Pieces(frames[order], _FLAGS_GAP_WORDS, _FLAGS_MOST_WORDS)
    flags[order] = pieces.read(root / _FLAGS)

    def any_of(bits: int) -> NDArray[np.bool_]:
        return np.asarray(flags & np.uint64(bits) != 0, np.bool_)

    listed, tail, zero = any_of(_LRU), any_of(_TAIL), any_of(_ZERO)
    head = any_of(_HEAD)
    return Kinds(listed & ~tail & ~head & ~zero, listed & head & ~zero, tail & ~zero, zero)


class Marks:
    """The idle marks of some frames. What can be known of the frames alone is found out once, so that marking them and
    looking again and again costs little of our own."""

    def __init__(self, frames: Column, root: Path = Path("/")) -> None:
        self._path = root / _BITMAP
        order = np.argsort(frames, kind="stable")
        ordered = frames[order]
        self._order = order.astype(np.uint32)
        words = ordered >> np.uint64(6)
        self._starts = np.flatnonzero(np.diff(words, prepend=np.uint64(2**64 - 1)))  # of each word
        self._counts = np.diff(self._starts, append=len(words))
        self._words = words[self._starts]
        self._places = (ordered & np.uint64(63)).astype(np.uint8)  # in its word
        self._pieces = _Pieces(self._words, _BITMAP_GAP_WORDS, _BITMAP_MOST_WORDS)

    def set(self, only: NDArray[np.bool_] | None = None) -> None:
        """Mark them as idle, or those that `only` chooses: from now on it is known whether they are used. Raises
        HostError."""
        if not len(self._words):
            return
        chosen = np.ones(len(self._order), np.uint64) if only is None else only[self._order].astype(np.uint64)
        bits = chosen << self._places
        self._pieces.write(self._path, np.bitwise_or.reduceat(bits, self._starts))

    def idle(self) -> NDArray[np.bool_]:
        """Which of them were not used since they were marked. Raises HostError."""
        found = np.empty(len(self._order), np.bool_)
        words = np.repeat(self._pieces.read(self._path), self._counts)
        found[self._order] = words >> self._places & np.uint64(1) != 0
        return found


class _Pieces:
    """Ascending places (numbers of 8-byte words) of a file, in pieces that are dealt with in one call."""

    def __init__(self, places: Column, gap: int, most: int) -> None:
        breaks = np.diff(places, prepend=places[:1]) > np.uint64(gap)
        breaks[:1] = True
        firsts = places[breaks][np.cumsum(breaks) - 1]  # of each place: where its stretch begins
        part = (places - firsts) // np.uint64(most)
        breaks |= np.diff(part, prepend=np.uint64(0)) != 0
        starts = np.flatnonzero(breaks)
        self._first = places[starts]
        self._sizes = (np.append(places[starts[1:] - 1], places[-1:]) - self._first).astype(np.int64) + 1
        ends = np.cumsum(self._sizes)
        # Of each place: where it is when all pieces stand one after the other.
        shift = (ends - self._sizes) - self._first.astype(np.int64)
        self._rows = places.astype(np.int64) + np.repeat(shift, np.diff(starts, append=len(places)))
        self._total = int(ends[-1]) if len(ends) else 0

    def read(self, path: Path) -> Column:
        """The word at each place."""
        words = np.zeros(self._total, np.uint64)

        def read(fd: int, view: memoryview, at: int) -> int:
            # Past the last frame of the machine there is nothing.
            return os.preadv(fd, [view], at) or len(view)

        self._each(path, os.O_RDONLY, words, read)
        return words[self._rows]

    def write(self, path: Path, values: Column) -> None:
        """Those words; zeros in between, which leave alone what is there."""
        words = np.zeros(self._total, np.uint64)
        words[self._rows] = values

        def write(fd: int, view: memoryview, at: int) -> int:
            # Of the machine's last frames, when they are no whole word, the kernel takes none, or tells of none.
            return os.pwrite(fd, view, at) or (len(view) if len(view) == words.itemsize else 0)

        self._each(path, os.O_WRONLY, words, write)

    def _each(self, path: Path, how: int, words: Column, call: Callable[[int, memoryview, int], int]) -> None:
        view = memoryview(words.data).cast("B")
        begin = 0
        try:
            fd = os.open(path, how | os.O_CLOEXEC)
            try:
                for at, size in zip((self._first * 8).tolist(), (self._sizes * 8).tolist(), strict=True):
                    done = 0
                    while done < size:
                        came = call(fd, view[begin + done : begin + size], at + done)
                        if not came:
                            raise OSError(errno.EIO, "it takes no more")
                        done += came
                    begin += size
            finally:
                os.close(fd)
        except OSError as error:
            raise files.refused(path, error) from None
