"""A program for the lab: holds memory that was written once, and goes on touching a part of it, small page by small
page. `toucher.py SIZE_MIB SHARE STEP`: of each 2 MiB block a number of pages that grows from block to block is touched
(0 in the first, then STEP more in each, up to SHARE of the block, then again), so that the whole is known and each
block is another. Prints its pid, where the memory begins, its size, and how many pages are touched, in all and by
block, as JSON; then touches until its standard input ends.

Under emulation a cleared accessed bit is only seen when the translation is looked up anew, so each round has the
processor forget them: the kernel does when more than a few dozen pages change their rights at once. A real processor
forgets them by itself.
"""

import ctypes
import json
import mmap
import os
import select
import sys

import numpy as np

PAGE = 4096
BLOCK = 512
_SCRATCH = 256 * PAGE


def touched(size: int, share: float, step: int) -> list[int]:
    """Pages that are touched, by block."""
    most = round(BLOCK * share)
    return [number * step % (most + 1) for number in range(size // (BLOCK * PAGE))]


def main(size_mib: int, share: float, step: int) -> None:
    size = size_mib << 20
    view = mmap.mmap(-1, size + BLOCK * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    scratch = mmap.mmap(-1, _SCRATCH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = ctypes.addressof(ctypes.c_char.from_buffer(view))
    start = -(-at // (BLOCK * PAGE)) * BLOCK * PAGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 15):  # NOHUGEPAGE
        raise OSError(ctypes.get_errno(), "madvise")
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 10)  # DONTFORK, as QEMU does it
    place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(scratch)))
    memory = np.frombuffer(view, np.uint8)[start - at : start - at + size]
    memory[::PAGE] = 1
    scratch[::PAGE] = bytes([1]) * (_SCRATCH // PAGE)
    counts = touched(size, share, step)
    pages = np.concatenate([block * BLOCK + np.arange(count) for block, count in enumerate(counts)])
    said = {"pid": os.getpid(), "start": start, "size": size, "touched": len(pages), "blocks": counts}
    print(json.dumps(said), flush=True)
    places = pages.astype(np.int64) * PAGE
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        memory[places] += 1
        for rights in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            libc.mprotect(place, ctypes.c_size_t(_SCRATCH), rights)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
