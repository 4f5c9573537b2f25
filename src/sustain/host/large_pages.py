"""/sys/kernel/mm/transparent_hugepage, /proc/buddyinfo and split_huge_pages: what the kernel is told about large
pages, how many it could give at once, and having it split some. Used by the large-page prioritiser, and by the guest
memory scheduler, against whose balloons khugepaged works.

Documentation/admin-guide/mm/transhuge.rst. `split` is a file of debugfs, which not every host has mounted; where
MADV_COLD does the same (memory that one process maps and that is not locked), it is not needed.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"  # always, madvise or never
MAX_PTES_NONE = "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"
_FOLDER = "sys/kernel/mm/transparent_hugepage"
_SPLIT = "sys/kernel/debug/split_huge_pages"
_ORDER = 9  # 2 MiB in pages of 4 KiB


@dataclass(frozen=True, slots=True)
class Settings:
    """The word that is in brackets, or the number. None: this kernel has no such setting."""

    enabled: str | None
    defrag: str | None
    shmem_enabled: str | None
    khugepaged_defrag: bool | None
    max_ptes_none: int | None  # pages of a block that nobody has touched, which khugepaged fills at most

    @property
    def refills(self) -> bool:
        """Whether khugepaged fills what was taken out of a block, unless all of it was."""
        return self.enabled in ("always", "madvise") and bool(self.max_ptes_none)


def settings(root: Path = Path("/")) -> Settings:
    """Raises HostError when it cannot be read."""
    folder = root / _FOLDER
    number = files.number(folder / "khugepaged/defrag")
    enabled, defrag, shmem = (
        _chosen(files.text(folder / name)) for name in ("enabled", "defrag", "shmem_enabled")
    )
    most = files.number(root / MAX_PTES_NONE.lstrip("/"))
    return Settings(enabled, defrag, shmem, None if number is None else number != 0, most)


def free(root: Path = Path("/")) -> int | None:
    """Runs of 2 MiB that are free, in all zones; None: unknown. The kernel keeps some of them for itself."""
    content = files.text(root / "proc/buddyinfo")
    if not content:
        return None
    total = 0
    for line in content.splitlines():
        match = re.search(r"zone +\S+ +([\d ]+)$", line)
        counts = [int(each) for each in match[1].split()] if match else []
        total += sum(count << (order - _ORDER) for order, count in enumerate(counts) if order >= _ORDER)
    return total


def can_split(root: Path = Path("/")) -> bool:
    return os.path.exists(root / _SPLIT)  # debugfs is root's: others cannot even look, which is no


def split(pid: int, start: int, end: int, root: Path = Path("/")) -> None:
    """Split all large pages of the process in these addresses, whoever maps them too. It is no promise: pages that
    the kernel holds stay. Raises HostError: ENOENT, this host has no such file."""
    path = root / _SPLIT
    if not path.exists():
        raise HostError(
            f"{path}: is not there",
            hint="mount -t debugfs none /sys/kernel/debug (kernels with CONFIG_DEBUG_FS)",
            errno=errno.ENOENT,
        )
    files.write(path, f"{pid},{start:#x},{end:#x}")


def _chosen(content: str | None) -> str | None:
    match = re.search(r"\[(\w[\w+-]*)\]", content or "")
    return match[1] if match else None
