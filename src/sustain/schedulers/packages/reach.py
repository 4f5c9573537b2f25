"""The way to a group that was seen, for whoever is to act on it.

Used by `agent.build`, which gives it to the actuator. A guest that libvirt has put into a cgroup of its own is placed
by that cgroup, with its threads of QEMU, of the kernel (vhost) and those that are started later; where libvirt may be
asked, by its pins, so that it knows.
"""

from collections.abc import Callable
from pathlib import Path

from sustain.host import cgroup_use
from sustain.host.libvirt import Domain
from sustain.host.processes import Identity, alive
from sustain.schedulers.packages.find import Found
from sustain.schedulers.packages.handles import CgroupHandle, DomainHandle, Handle, ProcessHandle


class Reach:
    """`found`: the group of that name and life, as of the last look; None: there was none."""

    def __init__(
        self,
        found: Callable[[str, str], Found | None],
        root: Path = Path("/"),
        libvirt: str | None = None,
    ) -> None:
        """`libvirt`: the URI of the one whose guests are placed by it."""
        self._found = found
        self._libvirt = libvirt
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
        if found.kind == "guest" and self._libvirt is not None:
            return self._domain(found.guest, found.who, self._libvirt)
        return ProcessHandle((found.who,))

    def _domain(self, name: str, who: Identity, uri: str) -> Handle | None:
        """Of a QEMU that is none of libvirt's, its threads."""
        running = Domain(uri, name).running()
        if not alive(who, str(self._root)):
            return None  # what runs by that name now is another start of it
        return ProcessHandle((who,)) if running is None else DomainHandle(uri, name, running, (who,))

    def _top(self) -> Path:
        """Where cgroups are named, and have their cpusets where there are any."""
        if self._trees is None:
            self._trees = cgroup_use.trees(self._root)
        return self._trees.top
