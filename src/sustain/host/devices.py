"""Device files: what /sys says of a DAX character device. Used by `powerfail.regions.medium`."""

import os
from dataclasses import dataclass
from pathlib import Path

from sustain.host import files


@dataclass(frozen=True, slots=True)
class Dax:
    """A /dev/dax device: its size, and what a mapping's offset and length must be a multiple of."""

    size_bytes: int
    align_bytes: int


def dax(device: int, root: Path = Path("/")) -> Dax | None:
    """The character device with that number (`st_rdev`); None: it is not a DAX device, or its size is unknown.
    Raises HostError."""
    folder = root / "sys/dev/char" / f"{os.major(device)}:{os.minor(device)}"
    size, align = files.number(folder / "size"), files.number(folder / "align")
    if not size or _subsystem(folder) not in ("dax", None):
        return None
    return Dax(size, align or 2 << 20)


def _subsystem(folder: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(folder / "subsystem"))
    except OSError:
        return None
