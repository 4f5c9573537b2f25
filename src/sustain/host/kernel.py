"""The running kernel: its release and its settings under /proc/sys. Used by `sustain doctor`."""

import re
from pathlib import Path

from sustain.host import files


def release(root: Path = Path("/")) -> tuple[int, int] | None:
    """(major, minor) of the running kernel, None = unknown. Raises HostError."""
    match = re.match(r"(\d+)\.(\d+)", files.text(root / "proc/sys/kernel/osrelease") or "")
    return (int(match[1]), int(match[2])) if match else None


def setting(name: str, root: Path = Path("/")) -> int | None:
    """An integer of /proc/sys by its dotted name ("vm.overcommit_memory"); None = not there or not a number.
    Raises HostError."""
    return files.number(root / "proc/sys" / name.replace(".", "/"))
