"""The running kernel: its release and its settings under /proc/sys. Used by `sustain doctor`."""

import re
from pathlib import Path


def release(root: Path = Path("/")) -> tuple[int, int] | None:
    """(major, minor) of the running kernel, None = unknown."""
    text = _read(root / "proc/sys/kernel/osrelease")
    match = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def setting(name: str, root: Path = Path("/")) -> int | None:
    """An integer of /proc/sys by its dotted name ("vm.overcommit_memory"); None = not there or not a
    number."""
    text = _read(root / "proc/sys" / name.replace(".", "/"))
    try:
        return int(text or "")
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
