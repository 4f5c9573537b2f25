"""Where hierarchies of cgroups are mounted, and where in them a process is. Used by the surfaces of cgroups."""

import re
from dataclasses import dataclass
from pathlib import Path

from sustain.host import files


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mount."""

    version: int
    mount: Path


def of(controller: str, root: Path = Path("/")) -> list[Hierarchy]:
    """Those of version 2, which may or may not have the controller, then those of version 1 that have it."""
    found = []
    for line in (files.text(root / "proc/self/mounts") or "").splitlines():
        _, place, kind, options, *_ = line.split()
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        if kind == "cgroup2":
            found.append(Hierarchy(2, root / place.lstrip("/")))
        elif kind == "cgroup" and controller in options.split(","):
            found.append(Hierarchy(1, root / place.lstrip("/")))
    return sorted(found, key=lambda each: -each.version)


def path_of(pid: int, controller: str, root: Path = Path("/")) -> str | None:
    """The cgroup of a process in the hierarchy that has the controller, "/" for the root; None: it has gone."""
    path = None
    for line in (files.text(root / f"proc/{pid}/cgroup") or "").splitlines():
        _, controllers, its_path = line.split(":", 2)
        if controller in controllers.split(","):
            return its_path
        if not controllers:
            path = its_path
    return path
