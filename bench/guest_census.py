"""Looking at where the pages of a guest are: how many GiB a second, on one core?

A process that holds memory as QEMU does (1 GiB, of which three quarters were written; a half may be mapped large) is
looked at by `Pagemap.census`: present, in swap, mapped large, with the runs of each. Beside it what every process has:
smaps_rollup, which gives sums alone, and the entries of `pagemap`, as kernels before 6.7 have it, which do not know
what is large. Equal: the same process at rest, the whole range each time, one thread. The worst case for us is shown as
well: small pages, of which every second one is there, so that each is a run of its own.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from bench.harness import Answer, Contender, interleave, medians

QUESTION = "a census of a guest's pages, GiB/s on one core"

_HOLDER = """
import ctypes, mmap, sys
size, stride, huge = int(sys.argv[1]), int(sys.argv[2]), 2 << 20
view = mmap.mmap(-1, size + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(view))
start = -(-at // huge) * huge
libc = ctypes.CDLL(None)
libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 10)  # DONTFORK, by which QEMU's RAM is known
large = size // 2 if stride == 1 else 0
libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(large), 14)  # HUGEPAGE
libc.madvise(ctypes.c_void_p(start + large), ctypes.c_size_t(size - large), 15)  # NOHUGEPAGE
for page in range(0, size * 3 // 4, 4096 * stride):
    view[start - at + page] = 1
print(start, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Such a process: its pid, and where the memory begins."""
    arguments = [sys.executable, "-c", _HOLDER, str(size), str(stride)]
    holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        yield holder.pid, int(holder.stdout.readline())
    finally:
        holder.kill()
        holder.communicate()


def answer(quick: bool = False) -> Answer:
    """GiB/s."""
    from sustain.host.pagemap import has_scan

    size, rounds = (64 << 20, 3) if quick else (1 << 30, 9)
    with holding(size, 1) as usual, holding(size, 2) as worst:
        found = medians(
            interleave(rounds, {**contenders(*usual, size), **contenders(*worst, size, "scattered ")})
        )
        large = present(*usual, size, 1)
        present(*worst, size, 2)
    peers = {"smaps_rollup": found["smaps_rollup"], "entries of pagemap": found["entries of pagemap"]}
    result = Answer(
        question=QUESTION,
        unit="GiB/s",
        ours=found["ours"],
        peers={**peers},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["every second page present, GiB/s"] = {
        name.removeprefix("scattered "): value
        for name, value in found.items()
        if name.startswith("scattered ")
    }
    result.ask(
        "no slower than the faster of the others, which tell less",
        found["ours"] / max(peers.values()),
        lambda ratio: ratio >= 1,
    )
    result.notes.append(f"{size >> 20} MiB, three quarters of it present, {large >> 20} MiB mapped large")
    if not has_scan():
        result.notes.append("this kernel has no PAGEMAP_SCAN: ours is the entries of pagemap, too")
    return result


def contenders(pid: int, start: int, size: int, before: str = "") -> dict[str, Contender]:
    """GiB/s of each way."""
    from sustain.host import processes
    from sustain.host.pagemap import Pagemap

    table = Pagemap(pid)

    def rate(look: Callable[[], object]) -> float:
        begun = time.perf_counter()
        look()
        return size / (1 << 30) / (time.perf_counter() - begun)

    return {
        f"{before}ours": lambda: rate(lambda: table.census(start, start + size)),
        f"{before}smaps_rollup": lambda: rate(lambda: processes.memory(pid)),
        f"{before}entries of pagemap": lambda: rate(lambda: list(table._entries(start, start + size))),
    }


def present(pid: int, start: int, size: int, stride: int) -> int:
    """Check that the pages are there which were counted; bytes mapped large."""
    from sustain.host.pagemap import Pagemap

    seen = Pagemap(pid).census(start, start + size)
    if seen.present_bytes != size * 3 // 4 // stride:
        raise RuntimeError(f"{seen.present_bytes} bytes are present, not what was written")
    return seen.huge_bytes or 0
