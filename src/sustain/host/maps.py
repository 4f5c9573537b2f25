"""/proc/PID/maps: which processes map a file, where, and from which offset on (change tracking); and where in a QEMU
process the RAM of its guest lies (the guest memory scheduler).

A file is known by the device and inode that the kernel shows in `maps`, which on some file systems (btrfs,
overlays) are not those of stat(2); so `key_of` maps a page of the file itself and looks at its own entry. A path
is no identity: it may be renamed, or be seen from another mount namespace. Processes that cannot be looked at
(another user's) are unknown, and are counted.
"""

import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import RegionIOError
from sustain.host import files
from sustain.host.processes import Identity, start_ticks

_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([0-9]+)")
_PAGE = mmap.PAGESIZE
_RAM_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, order=True)
class Mapping:
    """One mapping of the file: addresses, and the offset in the file at `start`. Bytes."""

    start: int
    end: int
    offset: int
    writable: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Mapper:
    """A process that maps the file."""

    who: Identity
    mappings: tuple[Mapping, ...]

    @property
    def writes(self) -> bool:
        """Whether it can change the file's pages through its memory."""
        return any(each.writable and each.shared for each in self.mappings)


@dataclass(frozen=True, slots=True)
class Mappers:
    """All that map the file, and how many processes could not be looked at."""

    found: tuple[Mapper, ...]
    hidden: int


def key_of(path: str | Path) -> bytes:
    """What names the file in `maps`: "major:minor inode". Raises RegionIOError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A device may want its own alignment and a shared mapping; nothing is read from it.
            view = mmap.mmap(descriptor, _length(descriptor), mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise RegionIOError(
            f"{path}: it cannot be mapped: {error}", hint="a region is a file or a device that can be mapped"
        ) from None
    with view:
        at = _address(view)
        for start, end, _, _, device, inode in _lines(Path(f"/proc/{os.getpid()}/maps").read_bytes()):
            if start <= at < end:
                return device + b" " + inode
    raise RegionIOError(f"{path}: its mapping is not in the list of this process", hint="is /proc mounted?")


def _length(descriptor: int) -> int:
    """A page of a file; 2 MiB of a character device, whose mappings are aligned to its own page size."""
    import stat

    return (2 << 20) if stat.S_ISCHR(os.fstat(descriptor).st_mode) else _PAGE


def _address(view: mmap.mmap) -> int:
    """Where a mapping lies; it need not be writable, which is what ctypes.from_buffer would want."""
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


def mappings_of(pid: int, key: bytes, root: Path = Path("/")) -> tuple[Mapping, ...] | None:
    """Where process `pid` maps the file, in the order of addresses; None: it has gone, or cannot be looked at."""
    try:
        text = (root / "proc" / str(pid) / "maps").read_bytes()
    except OSError:
        return None
    if b" " + key + b" " not in text:
        return ()
    device, _, inode = key.partition(b" ")
    return tuple(
        Mapping(start, end, offset, rights[1:2] == b"w", rights[3:4] == b"s")
        for start, end, rights, offset, its_device, its_inode in _lines(text)
        if its_device == device and its_inode == inode
    )


def covers(pid: int, start: int, end: int, root: Path = Path("/")) -> bool:
    """Whether one mapping of the process holds all of these addresses. False also when it has gone."""
    try:
        text = (root / "proc" / str(pid) / "maps").read_bytes()
    except OSError:
        return False
    return any(its_start <= start and end <= its_end for its_start, its_end, *_ in _lines(text))


def areas(pid: int, root: Path = Path("/")) -> tuple[tuple[int, int], ...] | None:
    """All that process `pid` has mapped, in the order of addresses: from, to; None: gone, or it cannot be looked at."""
    try:
        text = (root / "proc" / str(pid) / "maps").read_bytes()
    except OSError:
        return None
    return tuple((start, end) for start, end, *_ in _lines(text))


def mappers(key: bytes, pids: Iterable[int] | None = None, root: Path = Path("/")) -> Mappers:
    """The processes that map the file: of all, or of `pids`."""
    found: list[Mapper] = []
    hidden = 0
    for pid in all_pids(root) if pids is None else pids:
        ticks = start_ticks(pid, str(root))
        if ticks is None:
            continue
        mappings = mappings_of(pid, key, root)
        if mappings is None:
            hidden += start_ticks(pid, str(root)) is not None
        elif mappings:
            found.append(Mapper(Identity(pid, ticks), mappings))
    return Mappers(tuple(found), hidden)


@dataclass(frozen=True, slots=True, order=True)
class Area:
    """One area of a process's memory. Addresses; `backing` is anonymous, shared (tmpfs, memfd), hugetlb or file."""

    start: int
    end: int
    backing: str
    path: str

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


def guest_ram(pid: int, size_bytes: int | None = None, root: Path = Path("/")) -> tuple[Area, ...] | None:
    """Where the RAM of the guest of QEMU process `pid` lies; None: it has gone. Raises HostError.

    QEMU keeps all RAM blocks out of its children's memory (MADV_DONTFORK), which smaps shows as "dc", and nothing else
    of that size. Of those, the largest that together make `size_bytes`, since the video memory is a RAM block too;
    without a size, all from 64 MiB up. Nothing is found where not enough is. Walks the page tables as
    `processes.memory` does: ask once for each life of a guest.
    """
    content = files.text(root / "proc" / str(pid) / "smaps")
    if not content:
        return None
    blocks = sorted(_joined(_areas(content)), key=lambda each: -each.size_bytes)
    if size_bytes is None:
        return tuple(sorted(each for each in blocks if each.size_bytes >= _RAM_BLOCK_BYTES))
    found: list[Area] = []
    for each in blocks:
        if each.size_bytes <= size_bytes:
            found.append(each)
            size_bytes -= each.size_bytes
    return tuple(sorted(found)) if size_bytes <= 0 else ()


def _areas(content: str) -> Iterable[Area]:
    """The areas of a text like smaps that are kept out of children ("dc") and can be written."""
    start = end = 0
    backing = path = ""
    writable = huge = False
    for line in content.splitlines():
        match = _LINE.match(line.encode())
        if match:
            start, end = int(match[1], 16), int(match[2], 16)
            writable = match[3][1:2] == b"w"
            path = line[match.end() :].strip()
            backing, huge = _backing(path), False
        elif line.startswith("KernelPageSize:"):
            huge = int(line.split()[1]) * 1024 > _PAGE
        elif line.startswith("VmFlags:") and writable and "dc" in line.split():
            yield Area(start, end, "hugetlb" if huge else backing, path)


def _joined(areas: Iterable[Area]) -> Iterable[Area]:
    """Areas that touch and are alike are one: advice given to a part of a block splits it in the kernel's list."""
    last: Area | None = None
    for each in areas:
        if last and last.end == each.start and (last.backing, last.path) == (each.backing, each.path):
            last = Area(last.start, each.end, last.backing, last.path)
            continue
        if last:
            yield last
        last = each
    if last:
        yield last


def _backing(path: str) -> str:
    if not path or path.startswith("["):
        return "anonymous"
    return "shared" if path.startswith(("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")) else "file"


def all_pids(root: Path = Path("/")) -> list[int]:
    """All processes, in the order of their numbers."""
    try:
        return sorted(int(name) for name in os.listdir(root / "proc") if name.isdigit())
    except OSError:
        return []


def _lines(text: bytes) -> Iterable[tuple[int, int, bytes, int, bytes, bytes]]:
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            start, end, rights, offset, device, inode = match.groups()
            yield int(start, 16), int(end, 16), rights, int(offset, 16), device, inode
