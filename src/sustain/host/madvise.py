"""process_madvise(2): telling the kernel what to do with another process's memory. Used by the guest memory scheduler
and the large-page prioritiser.

Needs the right to read the process as ptrace does, and CAP_SYS_NICE. It is no promise: with no swap, PAGEOUT says
that all went well and moves nothing, and it passes over pages that are mapped more than once. So whoever calls it
looks at the memory afterwards (`pagemap`, `processes.memory`).

The process is named by a pidfd that is opened before its start time is compared, so that nobody else's memory is hit.
"""

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from sustain.errors import HostError
from sustain.host.processes import Identity, start_ticks

_PROCESS_MADVISE = 440  # on all architectures: the number is younger than the common table
_RANGES = 1024  # IOV_MAX; more is EINVAL
_BYTES = 1 << 30  # the kernel cuts one call short at 2 GiB less a page, without a word
Range = tuple[int, int]  # addresses: from, to

_SKIPPED = {
    errno.ENOMEM: "not mapped, or no memory for it",
    errno.EINVAL: "locked, or of a kind that this advice is not for",
    errno.EBUSY: "in use by the kernel, or the cgroup has no room",
    errno.EAGAIN: "the kernel could not do it now",
    errno.EFAULT: "not mapped",
    errno.EIO: "could not be read or written",
    errno.EBADF: "not backed by a file, as this advice wants",
}


class Advice(IntEnum):
    """What can be advised for another process."""

    WILLNEED = 3  # bring it in from swap
    COLD = 20  # reclaim this first; splits a huge page that is covered in part
    PAGEOUT = 21  # reclaim this now
    COLLAPSE = 25  # map it large now (Linux 6.1)


@dataclass(slots=True)
class Advised:
    """What the kernel said; what it did is another matter."""

    taken_bytes: int = 0
    skipped_bytes: dict[int, int] = field(default_factory=dict)  # by errno

    @property
    def problem(self) -> str | None:
        """Why some was passed over; None: nothing was."""
        if not self.skipped_bytes:
            return None
        return "; ".join(
            f"{size} bytes: {_SKIPPED[code]} ({errno.errorcode[code]})"
            for code, size in sorted(self.skipped_bytes.items())
        )


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Advisor:
    """The memory of one process. Close it. Raises HostError when the process has gone or may not be advised."""

    def __init__(self, who: Identity) -> None:
        self.who = who
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        try:
            self._descriptor = os.pidfd_open(who.pid)
        except OSError as error:
            raise _error(who, error.errno or 0) from None
        if start_ticks(who.pid) != who.start_ticks:
            self.close()
            raise _error(who, errno.ESRCH)

    def advise(self, ranges: Iterable[Range], advice: Advice) -> Advised:
        """All of the ranges, in their order; what the kernel does not take is passed over and said.

        Raises HostError when nothing can be advised at all: ESRCH, the process has gone; EPERM; ENOSYS.
        """
        result = Advised()
        rest = [piece for start, end in ranges for piece in _pieces(start, end)]
        rest.reverse()
        while rest:
            batch: list[Range] = []
            size = 0
            while rest and len(batch) < _RANGES and size + rest[-1][1] - rest[-1][0] <= _BYTES:
                batch.append(rest.pop())
                size += batch[-1][1] - batch[-1][0]
            taken, code = self._call(batch, advice)
            result.taken_bytes += taken
            left = _after(batch, taken)
            if taken == 0 and left:
                if code not in _SKIPPED:
                    raise _error(self.who, code)
                start, end = left.pop(0)
                result.skipped_bytes[code] = result.skipped_bytes.get(code, 0) + end - start
            rest.extend(reversed(left))
        return result

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Advisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, batch: list[Range], advice: Advice) -> tuple[int, int]:
        """Bytes taken, and the errno if that is none."""
        vector = (_Iovec * len(batch))(*(_Iovec(start, end - start) for start, end in batch))
        while True:
            taken = self._syscall(
                ctypes.c_long(_PROCESS_MADVISE),
                ctypes.c_int(self._descriptor),
                ctypes.byref(vector),
                ctypes.c_size_t(len(batch)),
                ctypes.c_int(int(advice)),
                ctypes.c_uint(0),
            )
            code = 0 if taken > 0 else ctypes.get_errno()
            if code != errno.EINTR:
                return max(0, taken), code


def empty_batches() -> None:
    """Have all processors put pages that were just brought in onto the kernel's lists, where they can be marked, split;
    some dozens for each processor wait in a batch of its own. Linux does that first when it is asked to collapse, here
    a piece of our own memory that holds nothing. Without it they wait longer, and count as unknown; so it is where
    there is no memory for it."""
    size = 4 << 20
    with contextlib.suppress(OSError), mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as view:
        at = ctypes.addressof(ctypes.c_char.from_buffer(view))
        ctypes.CDLL(None).madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), int(Advice.COLLAPSE))


def _pieces(start: int, end: int) -> Iterable[Range]:
    """A range in pieces that one call takes."""
    assert start <= end
    while start < end:
        until = min(end, start + _BYTES)
        yield start, until
        start = until


def _after(batch: list[Range], taken: int) -> list[Range]:
    """What is left of the ranges after that many bytes."""
    left: list[Range] = []
    for start, end in batch:
        size = end - start
        if taken < size:
            left.append((start + taken, end))
        taken = max(0, taken - size)
    return left


def _error(who: Identity, code: int) -> HostError:
    hints = {
        errno.ESRCH: "the process has gone",
        errno.EPERM: "it needs CAP_SYS_NICE and CAP_SYS_PTRACE, or root",
        errno.EACCES: "it needs CAP_SYS_NICE and CAP_SYS_PTRACE, or root",
        errno.ENOSYS: "process_madvise needs Linux 5.10",
    }
    return HostError(
        f"process {who.pid}: process_madvise: {os.strerror(code)}", hint=hints.get(code, ""), errno=code
    )
