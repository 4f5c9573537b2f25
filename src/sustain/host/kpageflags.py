"""/proc/kpageflags and /sys/kernel/mm/page_idle/bitmap for many frames at once, as columns. Used by the large-page
prioritiser, to count the used pages of whole processes; `page_idle` is the same for a sample of some pages.

Documentation/admin-guide/mm/pagemap.rst and idle_page_tracking.rst; both need root. Words of the files that lie close
together are read at once: reading past some in between costs less than another call. A frame of the bitmap that is not
the head of its page (a part of a larger one), or on none of the kernel's lists, can neither be marked nor be read: the
bitmap shows 0 for it, as for one that was used. So `Frames` says which are which.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.host import files

_FLAGS = "proc/kpageflags"
_BITMAP = "sys/kernel/mm/page_idle/bitmap"
_LRU, _HEAD, _TAIL, _ZERO = 1 << 5, 1 << 15, 1 << 16, 1 << 24
_GAP_WORDS = 8  # what is read in vain rather than asked for anew: some 0.1 µs for a frame, a call is 1 µs
_MOST_WORDS = 1 << 17  # of one call: 1 MiB

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
    flags = _read(root / _FLAGS, frames)

    def any_of(bits: int) -> NDArray[np.bool_]:
        return np.asarray(flags & np.uint64(bits) != 0, np.bool_)

    listed, tail, zero = any_of(_LRU), any_of(_TAIL), any_of(_ZERO)
    head = any_of(_HEAD)
    return Kinds(listed & ~tail & ~head & ~zero, listed & head & ~zero, tail & ~zero, zero)


def mark_idle(frames: Column, root: Path = Path("/")) -> None:
    """From now on it is known whether they are used. Raises HostError."""
    path = root / _BITMAP
    words, bits = _bits(frames)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for first, last in _spans(words):
                data = np.zeros(int(words[last - 1] - words[first]) + 1, np.uint64)  # zeros leave alone
                data[words[first:last] - words[first]] = bits[first:last]
                os.pwrite(fd, data.tobytes(), int(words[first]) * 8)
        finally:
            os.close(fd)
    except OSError as error:
        raise files.refused(path, error) from None


def idle(frames: Column, root: Path = Path("/")) -> NDArray[np.bool_]:
    """Which of them were not used since they were marked. Raises HostError."""
    words = np.unique(frames >> np.uint64(6))
    found = _read(root / _BITMAP, words)
    here = found[np.searchsorted(words, frames >> np.uint64(6))]
    return np.asarray(here >> (frames & np.uint64(63)) & np.uint64(1) != 0, np.bool_)


def _bits(frames: Column) -> tuple[Column, Column]:
    """Words of the bitmap, in order, and their bits."""
    words, places = np.unique(frames >> np.uint64(6), return_inverse=True)
    bits = np.zeros(len(words), np.uint64)
    np.bitwise_or.at(bits, places, np.uint64(1) << (frames & np.uint64(63)))
    return words, bits


def _read(path: Path, places: Column) -> Column:
    """The 8 bytes at each of these places (numbers of words, in any order)."""
    order = np.argsort(places, kind="stable")
    wanted = places[order]
    found = np.zeros(len(places), np.uint64)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for first, last in _spans(wanted):
                count = int(wanted[last - 1] - wanted[first]) + 1
                data = os.pread(fd, count * 8, int(wanted[first]) * 8)
                # Past the last frame of the machine there is nothing.
                words = np.zeros(count, np.uint64)
                words[: len(data) // 8] = np.frombuffer(data, np.uint64, len(data) // 8)
                found[order[first:last]] = words[wanted[first:last] - wanted[first]]
        finally:
            os.close(fd)
    except OSError as error:
        raise files.refused(path, error) from None
    return found


def _spans(words: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Stretches of ordered words (from, to) that are dealt with in one call."""
    if not len(words):
        return
    edges = [0, *(np.flatnonzero(np.diff(words) > np.uint64(_GAP_WORDS)) + 1).tolist(), len(words)]
    for first, last in pairwise(edges):
        at = first
        while at < last:
            until = int(np.searchsorted(words[at:last], words[at] + np.uint64(_MOST_WORDS))) + at
            yield at, until
            at = until
