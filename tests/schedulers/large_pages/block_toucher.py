"""A program whose use of its memory is known block by block, for tests on real kernels.

    block_toucher.py KIND COUNT,COUNT,… [huge]

KIND is private, shared (anonymous, shared with children) or memfd. It holds as many aligned blocks of 2 MiB as there
are counts, written once, and goes on touching that many pages of each, chosen at random by a fixed seed. `huge`: its
memory is advised MADV_HUGEPAGE before it is written. Prints its pid and where its memory begins as JSON; then does what
the lines of its standard input say, each of which it answers with one line of JSON, until that ends:

    touch COUNT,COUNT,…    from now on that many of each block
    rounds N               answer after N rounds, each of which begins later than this line was read
    fork                   have a child that has the same memory and does nothing
    exec                   become a new one of this program, with the same arguments; it says where its memory is
    unmap N                give back the last N blocks
    forbid N               advise block N MADV_NOHUGEPAGE
    never                  forbid large pages for the whole process
    cut N                  advise block N's last page MADV_DONTNEED
    check                  whether all blocks still hold what was written

Under emulation a cleared accessed bit is only seen when the translation is looked up anew, so each round has the
processor forget them: the kernel does when more than a few dozen pages change their rights at once. A real processor
forgets them by itself.
"""

import ctypes
import json
import os
import select
import sys
import time

import numpy as np

PAGE = 4096
PAGES = 512
BLOCK = PAGE * PAGES
_SCRATCH = 256 * PAGE
_PROT, _PRIVATE, _SHARED, _FIXED, _ANONYMOUS = 3, 0x02, 0x01, 0x10, 0x20

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)


def mapped(size: int, flags: int, at: int = 0, descriptor: int = -1) -> int:
    where = libc.mmap(at or None, size, _PROT, flags | (_FIXED if at else 0), descriptor, 0)
    if where in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(where)


def aligned(kind: str, size: int) -> int:
    """Memory of that kind at an address that is a multiple of a block."""
    place = mapped(size + BLOCK, _PRIVATE | _ANONYMOUS)
    start = -(-place // BLOCK) * BLOCK
    if kind == "shared":
        mapped(size, _SHARED | _ANONYMOUS, start)
    elif kind == "memfd":
        descriptor = os.memfd_create("touched")
        os.ftruncate(descriptor, size)
        mapped(size, _SHARED, start, descriptor)
    return start


def advise(at: int, size: int, advice: int) -> None:
    if libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), advice):
        raise OSError(ctypes.get_errno(), "madvise")


def places(counts: list[int]) -> np.ndarray:
    """The pages that are touched, by their numbers: the first so many of a block's own random order."""
    found = [
        number * PAGES + np.random.default_rng(number).permutation(PAGES)[:count]
        for number, count in enumerate(counts)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def answer(**said: object) -> None:
    print(json.dumps(said), flush=True)


class Toucher:
    """The memory, and what is done with it."""

    def __init__(self, kind: str, counts: list[int], huge: bool) -> None:
        self.blocks = len(counts)
        self.start = aligned(kind, self.blocks * BLOCK)
        if huge:
            advise(self.start, self.blocks * BLOCK, 14)
        whole = (ctypes.c_uint8 * (self.blocks * BLOCK)).from_address(self.start)
        self.memory = np.frombuffer(whole, np.uint8)
        self.memory.reshape(-1, PAGE)[:, 1] = np.arange(self.blocks * PAGES) % 251 + 1
        self.scratch = mapped(_SCRATCH, _PRIVATE | _ANONYMOUS)
        advise(self.scratch, _SCRATCH, 15)  # small, so that many pages change their rights
        ctypes.memset(self.scratch, 1, _SCRATCH)
        self.counts = counts
        self.pages = places(counts)
        self.children: list[int] = []
        self.owed = 0  # rounds before the next answer

    def round(self) -> None:
        self.memory[self.pages * PAGE] += 1
        for rights in (1, _PROT):
            libc.mprotect(ctypes.c_void_p(self.scratch), ctypes.c_size_t(_SCRATCH), rights)
        if self.owed:
            self.owed -= 1
            if not self.owed:
                answer(rounds=True)

    def touch(self, counts: str) -> None:
        self.counts = [int(each) for each in counts.split(",")]
        self.pages = places(self.counts[: self.blocks])
        answer(touched=self.counts)

    def rounds(self, count: str) -> None:
        self.owed = int(count)

    def fork(self, _: str) -> None:
        child = os.fork()
        if child == 0:
            while os.getppid() != 1:
                time.sleep(0.2)
            os._exit(0)
        self.children.append(child)
        answer(child=child)

    def exec(self, _: str) -> None:
        os.execv(sys.executable, [sys.executable, *sys.argv])

    def unmap(self, count: str) -> None:
        gone = int(count)
        self.blocks -= gone
        place = self.start + self.blocks * BLOCK
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(gone * BLOCK))
        self.pages = places(self.counts[: self.blocks])
        answer(blocks=self.blocks)

    def cut(self, block: str) -> None:
        last = self.start + (int(block) + 1) * BLOCK - PAGE
        advise(last, PAGE, 4)
        answer(cut=last)

    def forbid(self, block: str) -> None:
        advise(self.start + int(block) * BLOCK, BLOCK, 15)
        answer(forbidden=block)

    def never(self, _: str) -> None:
        answer(never=libc.prctl(41, 1, 0, 0, 0) == 0)  # PR_SET_THP_DISABLE

    def check(self, _: str) -> None:
        held = self.memory[: self.blocks * BLOCK].reshape(-1, PAGE)[:, 1]
        answer(right=bool((held == np.arange(self.blocks * PAGES) % 251 + 1).all()))


def main(kind: str, wanted: str, huge: bool) -> None:
    toucher = Toucher(kind, [int(each) for each in wanted.split(",")], huge)
    answer(pid=os.getpid(), start=toucher.start, blocks=toucher.blocks)
    pending = b""
    while True:
        if not toucher.owed and select.select([0], [], [], 0.05)[0]:
            more = os.read(0, 1 << 16)
            if not more:
                break
            pending += more
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                command, _, argument = line.decode().partition(" ")
                getattr(toucher, command)(argument)
        toucher.round()
    for child in toucher.children:
        os.kill(child, 9)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "huge" in sys.argv[3:])
