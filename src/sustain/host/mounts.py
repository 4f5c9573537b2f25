"""/proc/self/mountinfo: which file system a path lies on, and how it is mounted. Used by `sustain doctor`.

Read from the kernel's table and not from `stat -f`, because DAX is a mount option (and shown nowhere else).
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `options` holds those of the mount and of the file system."""

    point: str
    kind: str
    source: str
    options: frozenset[str]

    @property
    def dax(self) -> bool:
        return bool(self.options & {"dax", "dax=always"})


def mounts(root: Path = Path("/")) -> list[Mount]:
    """All mounts in the order of the kernel's table; empty when it cannot be read."""
    try:
        text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [mount for line in text.splitlines() if (mount := parse_line(line)) is not None]


def parse_line(line: str) -> Mount | None:
    """A line of mountinfo: `id parent maj:min root point options [tags] - kind source super-options`."""
    left, separator, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not separator or len(before) < 6 or len(after) < 2:
        return None
    options = before[5].split(",") + (after[2].split(",") if len(after) > 2 else [])
    return Mount(_unescape(before[4]), after[0], _unescape(after[1]), frozenset(options))


def mount_of(path: Path, root: Path = Path("/")) -> Mount | None:
    """The mount that `path` (which need not exist) lies on; None = unknown."""
    target = path.resolve()
    best: Mount | None = None
    for mount in mounts(root):
        if target.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount  # of equal length: the later one hides the earlier
    return best


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
