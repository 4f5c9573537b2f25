"""Swap of this host: /proc/swaps, zram devices and zswap. Used by the guest memory scheduler.

Where there is no swap, a page-out "succeeds" and moves nothing; so what is asked first is whether there is any. Swap on
zram, and pages in zswap, stay in memory, compressed: moving a page there frees only a part of it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files


@dataclass(frozen=True, slots=True)
class Zram:
    """One zram device, from its mm_stat. Bytes; None: unknown."""

    stored_bytes: int | None  # as it was before
    memory_bytes: int | None  # that it takes now


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap device or file."""

    path: str
    kind: str  # partition, file
    size_bytes: int
    used_bytes: int
    priority: int
    zram: Zram | None  # None: it is no zram


@dataclass(frozen=True, slots=True)
class Swaps:
    """All of them, in the order of use."""

    areas: tuple[Swap, ...]
    zswap: (
        bool | None
    )  # whether pages are compressed in memory first; None: this kernel has none, or does not say

    @property
    def total_bytes(self) -> int:
        return sum(each.size_bytes for each in self.areas)

    @property
    def free_bytes(self) -> int:
        return sum(each.size_bytes - each.used_bytes for each in self.areas)


def read(root: Path = Path("/")) -> Swaps:
    """Swap as it is now; no areas: this host has none. Raises HostError when that cannot be known."""
    path = root / "proc/swaps"
    content = files.text(path)
    if content is None:
        raise HostError(f"{path}: not there", hint="is /proc mounted, and has this kernel CONFIG_SWAP?")
    areas = [_area(line, path, root) for line in content.splitlines()[1:] if line.strip()]
    areas.sort(key=lambda each: -each.priority)
    enabled = (files.text(root / "sys/module/zswap/parameters/enabled") or "").strip()
    return Swaps(tuple(areas), {"Y": True, "N": False}.get(enabled))


def _area(line: str, path: Path, root: Path) -> Swap:
    try:
        name, kind, size, used, priority = line.rsplit(maxsplit=4)
        name = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name.strip())
        return Swap(name, kind, int(size) * 1024, int(used) * 1024, int(priority), _zram(name, root))
    except ValueError:
        raise HostError(f"{path}: {line!r} is not understood") from None


def _zram(name: str, root: Path) -> Zram | None:
    device = name.rpartition("/")[2]
    if not re.fullmatch(r"zram\d+", device):
        return None
    values = (files.text(root / "sys/block" / device / "mm_stat") or "").split()
    if len(values) < 3 or not all(each.isdecimal() for each in values[:3]):
        return Zram(None, None)
    return Zram(int(values[0]), int(values[2]))
