"""/proc/PID/smaps: which memory of a process could be mapped large. Used by the large-page prioritiser.

Documentation/filesystems/proc.rst, "VmFlags". Reading it walks the page tables (some 0.1 s for each 10 GiB of small
pages), so `mark` is compared first, which is cheap: mappings that are made, removed, or get other flags in part change
the list in `maps`. A flag that is set for exactly one whole mapping does not show there: read anew once in a while.

What can be mapped large by MADV_COLLAPSE (mm/khugepaged.c, thp_vma_allowable_order): private anonymous memory, and
shared memory (tmpfs, memfd, shared anonymous) where address and offset are aligned alike. Not what was advised
MADV_NOHUGEPAGE, reserved huge pages, device memory, and files, of which the kernel takes only programs.
"""

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files
from sustain.host.pagemap import BLOCK_BYTES
from sustain.host.processes import Identity

_LINE = re.compile(
    r"^(?:([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) \S+ \d+ *(.*)|VmFlags: *(.*))$", re.MULTILINE
)
_STACK_FIELD = 28  # of /proc/PID/stat: where the stack begins, which is drawn anew at each exec
_NOT_MEMORY = frozenset(("io", "pf", "ht"))  # of devices, of raw frames, reserved huge pages
_SHARED = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Memory of a process that is anonymous or shared, which is what can be counted by blocks. Addresses, bytes."""

    start: int
    end: int
    shared: bool  # tmpfs, memfd and the like, which other processes may map too
    why_small: str  # why it cannot be mapped large; "": it can

    @property
    def blocks(self) -> tuple[int, int]:
        """The whole aligned blocks in it: from, to."""
        first = -(-self.start // BLOCK_BYTES) * BLOCK_BYTES
        return first, max(first, self.end // BLOCK_BYTES * BLOCK_BYTES)


def read(pid: int, root: Path = Path("/")) -> tuple[Mapping, ...] | None:
    """In the order of addresses, those that hold a whole block; None: the process has gone. Raises HostError when it
    may not be looked at."""
    content = files.text(root / "proc" / str(pid) / "smaps")
    if not content:
        return None
    return tuple(each for each in _mappings(content) if each.blocks[0] < each.blocks[1])


def mark(pid: int, root: Path = Path("/")) -> str | None:
    """What changes when the process maps, unmaps or executes; None: it has gone. Raises HostError."""
    stat = files.text(root / "proc" / str(pid) / "stat")
    listed = files.text(root / "proc" / str(pid) / "maps")
    return f"{_stack(stat)} {listed}" if stat and listed else None


def image(pid: int, root: Path = Path("/")) -> int | None:
    """A number that changes when the process executes another program; None: it has gone, 0: we may not know."""
    stat = files.text(root / "proc" / str(pid) / "stat")
    return _stack(stat) if stat else None


def image_of(who: Identity, root: Path = Path("/")) -> int | None:
    """The same of exactly this process; None: it has gone, or has no memory any more, which is certain. Raises
    HostError when that cannot be known."""
    path = root / "proc" / str(who.pid) / "stat"
    stat = files.text(path)
    if stat is None:
        if root == Path("/") and _signalled(who.pid):
            raise HostError(
                f"process {who.pid}: it is hidden", hint="/proc is mounted with hidepid; it needs root"
            )
        return None
    fields = stat.rpartition(")")[2].split()
    try:
        state, started, size = fields[0], int(fields[19]), int(fields[20])
    except (IndexError, ValueError):
        raise HostError(f"{path}: cannot be understood: {stat[:200]!r}") from None
    if state in ("Z", "X") or started != who.start_ticks or not size:
        return None
    found = _stack(stat)
    if not found:
        raise HostError(
            f"process {who.pid}: it may not be looked at",
            hint="it needs root (CAP_SYS_PTRACE)",
            errno=errno.EACCES,
        )
    return found


def thp_disabled(pid: int, root: Path = Path("/")) -> bool:
    """Whether the process forbids large pages altogether (PR_SET_THP_DISABLE), MADV_COLLAPSE too."""
    return "\nTHP_enabled:\t0" in (files.text(root / "proc" / str(pid) / "status") or "")


def _signalled(pid: int) -> bool:
    """Whether there is a process of that number, whoever may see it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _stack(stat: str) -> int:
    fields = stat.rpartition(")")[2].split()
    place = _STACK_FIELD - 3
    return int(fields[place]) if len(fields) > place and fields[place].isdecimal() else 0


def _mappings(content: str) -> Iterable[Mapping]:
    head: tuple[int, int, str, int, str] | None = None
    for match in _LINE.finditer(content):
        start, end, rights, offset, path, flags = match.groups()
        if start is not None:
            head = int(start, 16), int(end, 16), rights, int(offset, 16), path
        elif head is not None:
            found = _mapping(*head, flags=frozenset(flags.split()))
            head = None
            if found is not None:
                yield found


def _mapping(
    start: int, end: int, rights: str, offset: int, path: str, *, flags: frozenset[str]
) -> Mapping | None:
    """None: it is neither anonymous nor shared memory, or nobody can use it."""
    anonymous = not path or path.startswith(("[heap]", "[anon:"))
    shared = path.startswith(("[anon_shmem:", *_SHARED))
    if not (anonymous or shared) or rights[:2] == "--" or flags & _NOT_MEMORY:
        return None
    why = ""
    if "nh" in flags:
        why = "it was advised MADV_NOHUGEPAGE"
    elif shared and rights[3:4] != "s":
        why = "it is a private mapping of shared memory"
    elif shared and (start - offset) % BLOCK_BYTES:
        why = "its address and its offset in the shared memory are not aligned alike"
    return Mapping(start, end, shared, why)
