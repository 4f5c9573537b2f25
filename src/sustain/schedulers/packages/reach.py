"""The way to a group that was seen, for whoever is to act on it.

Used by `agent.build`, which gives it to the actuator. A guest that libvirt has put into a cgroup of its own is placed
by that cgroup, with its threads of QEMU, of the kernel (vhost) and those that are started later.
"""

from collections.abc import Callable
from pathlib import Path

from sustain.host import cgroup_use
from sustain.schedulers.packages.find import Found
from sustain.schedulers.packages.handles import CgroupHandle, Handle, ProcessHandle


class Reach:
    """`found`: the group of that name and life, as of the last look; None: there was none."""

    def __init__(self, found: Callable[[str, str], Found | None], root: Path = Path("/")) -> None:
        self._found = found
        self._root = root
        self._trees: cgroup_use.Trees | None = None

    def __call__(self, group: str, life: str) -> Handle | None:
        """None: it has gone. Raises HostError."""
        found = self._found(group, life)
        if found is None:
            return None
        if found.cgroup is not None:
            directory = self._top() / found.cgroup.path.lstrip("/")
            return CgroupHandle(directory, int(found.cgroup.life))
        assert found.who is not None
        return ProcessHandle((found.who,))

    def _top(self) -> Path:
        """Where cgroups are named, and have their cpusets where there are any."""
        if self._trees is None:
            self._trees = cgroup_use.trees(self._root)
        return self._trees.top
