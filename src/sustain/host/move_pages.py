"""Moving a process's memory between NUMA nodes: migrate_pages(2), all of it at once, and move_pages(2), page by page,
so at a pace. Used by the package scheduler.

Only pages that no other process maps are moved, but for migrate_pages by root. Both need the right to look into the
process as ptrace does, and the target in its cpuset's nodes. They name it by its number alone, so its start time is
compared before and after each call. They block for as long as it takes to copy: use a thread.

What move_pages says of a page is not believed: a large page is moved with its first page and then answers EBUSY for the
others, and when some pages cannot be copied, the rest of the call is not tried. So it is asked again where they are.
"""

import ctypes
import errno
import os
import platform
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.errors import HostError, RegionIOError
from sustain.host import files, maps, numa_memory
from sustain.host.pagemap import Pagemap, Run
from sustain.host.processes import Identity, alive

PAGE_BYTES = 4096
_BLOCK_BYTES = 2 << 20
_SLICE_BYTES = 64 << 20  # looked at in one go
_BATCH_PAGES = 2048  # moved by one call: each one first has all processors empty their batches
_SMALLEST_PAGES = 32  # of a batch that could not be moved as a whole: so far it is cut in two
_CALLS = {"x86_64": (256, 279), "aarch64": (238, 239), "riscv64": (238, 239), "loongarch64": (238, 239)}
_MOVE = 1 << 1  # MPOL_MF_MOVE
_WORD = 64

Nodes = NDArray[np.int32]
Pages = NDArray[np.uint64]


@dataclass(slots=True)
class Moved:
    """What one step came to, by where the pages are now."""

    moved_bytes: int = 0
    stayed_bytes: dict[int, int] = field(default_factory=dict)  # by errno; 0: the kernel gave no reason
    done: bool = False  # the end of the process's memory has been reached

    @property
    def problem(self) -> str | None:
        """Why some stayed; None: none did."""
        if not self.stayed_bytes:
            return None
        return "; ".join(
            f"{size} bytes: {_STAYED.get(code, os.strerror(code))}"
            for code, size in sorted(self.stayed_bytes.items())
        )


_STAYED = {
    0: "in use, or no room on the node",
    errno.EACCES: "mapped by other processes, too",
    errno.EBUSY: "in use by the kernel",
    errno.ENOENT: "no longer in memory",
    errno.EFAULT: "no longer mapped",
    errno.ENOMEM: "no room on the node",
}


def migrate(who: Identity, sources: Iterable[int], targets: Iterable[int]) -> int:
    """Move all that the process has on the sources, the first source's to the first target and so on; how many pages
    could not be moved. Raises HostError: ESRCH, it has gone; EPERM; EINVAL, no target has memory that it may use."""
    _same(who)
    old, count = _mask(sources)
    new, other_count = _mask(targets)
    left = _syscall(
        who,
        _number(0),
        ctypes.c_int(who.pid),
        ctypes.c_ulong(_WORD * max(count, other_count) + 1),
        _padded(old, max(count, other_count)),
        _padded(new, max(count, other_count)),
    )
    _same(who)
    return left


def where(who: Identity, pages: Pages) -> Nodes:
    """The node of each page (addresses), or an errno below zero: ENOENT, not in memory. Raises HostError."""
    status = np.full(len(pages), -errno.ENOENT, np.int32)
    if len(pages):
        _same(who)
        _move(who, pages, None, status)
        _same(who)
    return status


def sample(who: Identity, areas: Sequence[tuple[int, int]], count: int, seed: int) -> dict[int, int]:
    """Of `count` pages of these areas (addresses) drawn at random, how many are on each node; those that are not in
    memory are on none. Raises HostError."""
    sizes = [(end - start) // PAGE_BYTES for start, end in areas]
    if not sum(sizes):
        return {}
    chosen = random.Random(seed).choices(range(len(areas)), sizes, k=count)
    dice = random.Random(seed + 1)
    pages = [areas[each][0] + dice.randrange(sizes[each]) * PAGE_BYTES for each in chosen]
    nodes = where(who, np.array(pages, np.uint64))
    return dict(Counter(nodes[nodes >= 0].tolist()))


class Mover:
    """Moves a process's memory from some nodes to another one, step by step. Raises HostError.

    Goes once over what it has there at the first step, in the order of addresses. hugetlbfs is left where it is."""

    def __init__(self, who: Identity, sources: Iterable[int], target: int, root: Path = Path("/")) -> None:
        self.who = who
        self._sources = np.array(sorted(set(sources) - {target}), np.int32)
        self._target = target
        _same(who, root)
        self._slices = self._of(root)
        self._left: list[Run] = []  # of the slice that was begun

    def step(self, budget_bytes: int) -> Moved:
        """Try to move that much more (and up to 2 MiB beyond, since large pages move as a whole)."""
        _same(self.who)
        result = Moved()
        tried = 0
        while tried < budget_bytes:
            if not self._left:
                following = next(self._slices, None)
                if following is None:
                    result.done = True
                    return result
                self._left = following
            tried += self._some(budget_bytes - tried, result)
        return result

    def _some(self, budget_bytes: int, result: Moved) -> int:
        """Of the slice, as much as the budget has room for; bytes that were tried to be moved."""
        pages = np.concatenate(
            [np.arange(start, end, PAGE_BYTES, dtype=np.uint64) for start, end in self._left]
        )
        pages = pages[np.isin(where(self.who, pages), self._sources)]
        chosen = pages[: max(1, budget_bytes // PAGE_BYTES)]
        if len(chosen) == len(pages):
            self._left = []
        else:
            # To the end of a large page that the last one may be in.
            end = (int(chosen[-1]) // _BLOCK_BYTES + 1) * _BLOCK_BYTES
            chosen = pages[pages < end]
            self._left = [(max(begin, end), until) for begin, until in self._left if until > end]
        for first in range(0, len(chosen), _BATCH_PAGES):
            self._move(chosen[first : first + _BATCH_PAGES], result)
        return len(chosen) * PAGE_BYTES

    def _move(self, pages: Pages, result: Moved) -> None:
        status = np.zeros(len(pages), np.int32)
        _same(self.who)
        stopped = _move(self.who, pages, np.full(len(pages), self._target, np.int32), status) > 0
        now = where(self.who, pages)
        there = now == self._target
        result.moved_bytes += int(there.sum()) * PAGE_BYTES
        stayed = np.isin(now, self._sources)
        if stopped and len(pages) > _SMALLEST_PAGES:
            rest = pages[stayed]
            half = (len(rest) + 1) // 2
            for part in (rest[:half], rest[half:]):
                if len(part):
                    self._move(part, result)
            return
        for code, count in zip(*np.unique(np.minimum(status[stayed], 0), return_counts=True), strict=True):
            result.stayed_bytes[-int(code)] = result.stayed_bytes.get(-int(code), 0) + int(count) * PAGE_BYTES

    def _of(self, root: Path) -> Iterator[list[Run]]:
        """What is in memory of the areas that have something on the sources, slice by slice."""
        wanted = {
            each.start
            for each in numa_memory.areas(self.who.pid, root) or ()
            if not each.huge and any(node in each.by_node for node in self._sources.tolist())
        }
        found = [each for each in maps.areas(self.who.pid, root) or () if each[0] in wanted]
        return self._present(found)

    def _present(self, found: list[Run]) -> Iterator[list[Run]]:
        for start, end in found:
            for begin in range(start, end, _SLICE_BYTES):
                present = self._census(begin, min(begin + _SLICE_BYTES, end))
                if present:
                    yield present

    def _census(self, begin: int, end: int) -> list[Run]:
        try:
            table = Pagemap(self.who.pid)
            try:
                return list(table.census(begin, end).present)
            finally:
                table.close()
        except RegionIOError as error:
            _same(self.who)
            raise HostError(str(error), hint=error.hint, errno=error.errno) from None


def _move(who: Identity, pages: Pages, nodes: Nodes | None, status: Nodes) -> int:
    pages = np.ascontiguousarray(pages)

    def at(array: NDArray[Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    return _syscall(
        who,
        _number(1),
        ctypes.c_int(who.pid),
        ctypes.c_ulong(len(pages)),
        at(pages),
        None if nodes is None else at(nodes),
        at(status),
        ctypes.c_int(_MOVE),
    )


def _number(which: int) -> int:
    machine = platform.machine()
    if machine not in _CALLS:
        raise HostError(
            f"moving memory between nodes is not known on {machine}",
            hint="leave it where it is",
            errno=errno.ENOSYS,
        )
    return _CALLS[machine][which]


def _mask(nodes: Iterable[int]) -> tuple[list[int], int]:
    """The words of a node mask."""
    words: list[int] = [0]
    for node in nodes:
        words += [0] * (node // _WORD + 1 - len(words))
        words[node // _WORD] |= 1 << node % _WORD
    return words, len(words)


def _padded(words: list[int], count: int) -> Any:
    return (ctypes.c_uint64 * count)(*words)


def _syscall(who: Identity, number: int, *arguments: Any) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    while True:
        result = int(call(ctypes.c_long(number), *arguments))
        if result >= 0:
            return result
        if (code := ctypes.get_errno()) != errno.EINTR:
            raise _refused(who, code)


def _same(who: Identity, root: Path = Path("/")) -> None:
    if not alive(who, str(root)):
        raise _refused(who, errno.ESRCH)


def _refused(who: Identity, code: int) -> HostError:
    hints = {
        errno.ESRCH: "the process has gone",
        errno.EPERM: "it needs CAP_SYS_NICE and CAP_SYS_PTRACE, or root",
        errno.EACCES: "the node is not in the nodes of its cpuset (cpuset.mems)",
        errno.ENODEV: "the node is not online",
        errno.EINVAL: "no such node has memory that the process may use",
        errno.ENOSYS: "this kernel has no NUMA",
    }
    return files.refused(
        f"process {who.pid}: its memory", OSError(code, os.strerror(code)), hints.get(code, "")
    )
