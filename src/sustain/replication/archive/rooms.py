"""Memory for objects on their way, used again: memory that is touched for the first time costs more than what is done
with it. Used by `restore`, for what it reads, and by `shipping`, for what it puts."""

import contextlib
import mmap
import threading

_LEAST_BYTES = 22 << 20  # the largest object of pages, or a segment of the usual size, in whole large pages


class Rooms:
    """From any thread. At most `keep` rooms wait for their next use."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> memoryview:
        """`size` bytes of anything."""
        with self._lock:
            at = next((at for at, each in enumerate(self._free) if len(each) >= size), None)
            room = None if at is None else self._free.pop(at)
        if room is None:
            room = mmap.mmap(-1, max(size, _LEAST_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without large pages
                room.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(room)[:size]

    def give(self, view: memoryview) -> None:
        """Nobody uses `view` any more. Memory that is not of rooms is let go."""
        room = view.obj
        view.release()
        if isinstance(room, mmap.mmap):
            with self._lock:
                if len(self._free) < self._keep:
                    self._free.append(room)
