"""How fast this machine's time-stamp counter runs, for guests, whose emulator hands it through.

A guest's kernel measures the counter against an emulated timer when it boots. On a busy machine the emulator is kept
waiting in the midst of that, and the kernel takes what it found for the truth: one that found 186 MHz where there are
2445 lets thirteen seconds pass in one, and every time-out in the guest comes too early. So it is told.
"""

import ctypes
import functools
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SPAN_S = 0.05
_TRIES = 3


@functools.cache
def khz() -> int:
    """Thousands of ticks a second, of a counter that runs always alike."""
    with counter() as ticks:
        return round(sorted(_rate(ticks) for _ in range(_TRIES))[_TRIES // 2])


@contextmanager
def counter() -> Iterator[Callable[[], int]]:
    """What reads the counter."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_CODE)
        start = ctypes.c_char.from_buffer(code)
        try:
            yield ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        finally:
            del start


def moment(ticks: Callable[[], int]) -> tuple[float, int]:
    """A time (CLOCK_MONOTONIC, ns) and the counter at that time: of many, the pair between whose two looks at the clock
    least passed."""
    found = []
    for _ in range(20):
        before_ns, count, after_ns = time.monotonic_ns(), ticks(), time.monotonic_ns()
        found.append((after_ns - before_ns, (before_ns + after_ns) / 2, count))
    _, at_ns, count = min(found)
    return at_ns, count


def _rate(ticks: Callable[[], int]) -> float:
    begun_ns, begun = moment(ticks)
    time.sleep(_SPAN_S)
    ended_ns, ended = moment(ticks)
    return (ended - begun) / (ended_ns - begun_ns) * 1e6
