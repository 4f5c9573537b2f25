"""Processors and nodes that a cgroup may use, version 2 or 1; its threads, and the processor time it has used.

Documentation/admin-guide/cgroup-v2.rst (Cpuset) and cgroup-v1/cpusets.rst. Used by the package scheduler. A path may be
used again; what names a cgroup is its inode (`life`), and what is written goes to the one that was opened, or nowhere.

Version 2: an empty list means "as the cgroup above"; so does, for what is in effect, a list of which the one above has
nothing. A list of a cgroup with threads cannot be emptied again; all that there could ever be, which the kernel takes
instead, is the same in effect. Offline processors stay in a list. A cgroup has lists of its own only where the one
above has enabled the controller. Enabling gives every cgroup beside it, too, a cpuset of its own, and moves their
threads into it; before Linux 6.2 that makes threads forget the affinity that was set for them (systemd #23748; seen on
6.1, not on 6.12). So nothing here enables it: `enabling` says what it would take.

Version 1: lists must be parts of the ones above and are never empty where there are threads. A processor that goes
offline is taken out of them for good.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files, hierarchies

_CONTROLLER = "cpuset"
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ESTALE))


@dataclass(frozen=True, slots=True)
class Enabling:
    """What it would take to give a cgroup lists of its own."""

    directories: tuple[Path, ...]  # those, from the top, whose cgroup.subtree_control lacks "+cpuset"
    processes: int  # that would be moved into a new cpuset, of all cgroups below the first of them
    problem: str | None  # why it cannot be


class Cpuset:
    """One cgroup, in the hierarchy that has the cpuset controller."""

    def __init__(self, directory: Path, hierarchy: hierarchies.Hierarchy, root: Path = Path("/")) -> None:
        """Raises HostError when there is no such directory."""
        self.directory = directory
        self.mount = hierarchy.mount
        self.version = hierarchy.version
        self._possible = root / "sys/devices/system/cpu/possible"
        self._time_file = _time_file(directory, hierarchy, root)
        try:
            self.inode = directory.stat().st_ino
        except OSError as error:
            raise files.refused(directory, error) from None

    @classmethod
    def open(cls, path: str | Path, root: Path = Path("/")) -> Self:
        """By its path as in /proc/PID/cgroup ("/machine.slice/vm.scope"), or by its directory. Raises HostError."""
        for hierarchy in _with_controller(root):
            directory = hierarchy.mount / str(path).lstrip("/")
            if Path(path).is_relative_to(hierarchy.mount):
                directory = Path(path)
            if (directory / "cgroup.procs").exists():
                return cls(directory, hierarchy, root)
        raise HostError(
            f"{path}: no cgroup with a cpuset controller",
            hint="is it there, and does /proc/cgroups show cpuset as enabled?",
            errno=errno.ENOENT,
        )

    @classmethod
    def of_process(cls, pid: int, root: Path = Path("/")) -> Self | None:
        """The one that a process is in, which may be the root; None: it has gone. Raises HostError."""
        path = hierarchies.path_of(pid, _CONTROLLER, root)
        return None if path is None else cls.open(path, root)

    @property
    def life(self) -> str:
        """Tells this cgroup from an earlier or later one of the same path."""
        return str(self.inode)

    def alive(self) -> bool:
        """Whether the path still names this cgroup."""
        try:
            return self.directory.stat().st_ino == self.inode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise files.refused(self.directory, error) from None

    @property
    def enabled(self) -> bool:
        """Whether it has lists of its own, which can be written. The root has not."""
        return self.directory != self.mount and (self.directory / "cpuset.cpus").exists()

    def own_cpus(self) -> frozenset[int] | None:
        """Its list as it was set; version 2: empty, it has what the one above has. None: not enabled, or gone."""
        return self._list("cpuset.cpus")

    def own_mems(self) -> frozenset[int] | None:
        """The same, of nodes for memory."""
        return self._list("cpuset.mems")

    def cpus(self) -> frozenset[int] | None:
        """What its threads may run on now, without offline ones; None: it has gone. Also where it is not enabled."""
        return self._effective("cpus")

    def mems(self) -> frozenset[int] | None:
        """The nodes from which it may have memory now."""
        return self._effective("mems")

    def inherits(self, cpus: frozenset[int]) -> bool:
        """Whether such a list of processors has in effect all that the one above has, whatever that gets: an empty one,
        and one with all that there could ever be. Version 2."""
        return self.version == 2 and (not cpus or cpus >= files.cpus(files.text(self._possible)))

    def partition(self) -> str | None:
        """Version 2: "member", "root", "isolated", or one of those with why it is invalid; None: it has none."""
        if self.version == 1:
            return None
        content = files.text(self.directory / "cpuset.cpus.partition")
        return None if content is None else content.strip()

    def moves_memory(self) -> bool:
        """Whether the kernel moves what it has in memory when its nodes change: always in version 2."""
        return self.version == 2 or files.number(self.directory / "cpuset.memory_migrate") == 1

    def set_moves_memory(self, moves: bool) -> None:
        """Version 1 only. Raises HostError."""
        self._write("cpuset.memory_migrate", str(int(moves)))

    def set_cpus(self, cpus: Iterable[int]) -> frozenset[int] | None:
        """Its list; version 2: empty, as the one above (where it cannot be emptied it gets all that there could be:
        `inherits`). What is in effect then; None: it went meanwhile.

        Raises HostError: ENOENT, it has gone, or is not enabled; version 1: EACCES or EINVAL, not part of the one
        above; EBUSY, a cgroup below has more; ENOSPC, empty, and it has threads.
        """
        self._set("cpuset.cpus", cpus, self._possible)
        return self.cpus()

    def set_mems(self, nodes: Iterable[int]) -> frozenset[int] | None:
        """The same, of nodes. Where the kernel moves memory this returns when it has, or has given some up."""
        self._set("cpuset.mems", nodes, self.mount / "cpuset.mems.effective")  # others than those are refused
        return self.mems()

    def processes(self) -> tuple[int, ...]:
        """Those directly in it; of version 2's threaded cgroups none, which only say threads."""
        return self._numbers("cgroup.procs")

    def threads(self) -> tuple[int, ...]:
        """Those directly in it."""
        return self._numbers("cgroup.threads" if self.version == 2 else "tasks")

    def tree(self) -> tuple[Path, ...]:
        """Its directory and those of all cgroups below it, each before what is below it."""
        return tuple(Path(folder) for folder, _, _ in os.walk(self.directory))

    def used_us(self) -> int | None:
        """Processor time that it and all below it have used, in µs, since it was made; None: gone, or not counted."""
        if self._time_file is None:
            return None
        if self.version == 1:
            used_ns = files.number(self._time_file)
            return None if used_ns is None else used_ns // 1000
        return files.table(files.text(self._time_file) or "").get("usage_usec")

    def enabling(self) -> Enabling:
        """What it would take to give it lists of its own; no directories: it has them. Nothing is changed."""
        if self.enabled:
            return Enabling((), 0, None)
        if self.version == 1 or self.directory == self.mount:
            return Enabling((), 0, "the root has all that the host has, and no lists that could be set")
        lacking = [
            each
            for each in reversed(self.directory.parents)
            if each.is_relative_to(self.mount)
            and _CONTROLLER not in (files.text(each / "cgroup.subtree_control") or "").split()
        ]
        if not lacking:
            return Enabling((), 0, "it has gone")
        moved: set[str] = set()
        for folder, _, _ in os.walk(lacking[0]):
            if Path(folder) != lacking[0]:
                moved.update((files.text(Path(folder, "cgroup.procs")) or "").split())
        problem = None
        if _CONTROLLER not in (files.text(lacking[0] / "cgroup.controllers") or "").split():
            problem = f"{lacking[0]} has no cpuset controller to give"
        return Enabling(tuple(lacking), len(moved), problem)

    def _effective(self, what: str) -> frozenset[int] | None:
        name = f"cpuset.{what}.effective" if self.version == 2 else f"cpuset.effective_{what}"
        for each in (self.directory, *self.directory.parents):
            if (content := files.text(each / name)) is not None:
                return files.cpus(content)
            if each == self.mount or not each.exists():
                return None
        return None

    def _list(self, name: str) -> frozenset[int] | None:
        content = files.text(self.directory / name)
        return None if content is None else files.cpus(content)

    def _numbers(self, name: str) -> tuple[int, ...]:
        return tuple(int(line) for line in (files.text(self.directory / name) or "").split())

    def _set(self, name: str, numbers: Iterable[int], all_of_them: Path) -> None:
        value = files.cpu_list(numbers)
        try:
            self._write(name, value)
        except HostError as error:
            if value or self.version == 1 or error.errno != errno.ENOSPC:
                raise
            self._write(name, (files.text(all_of_them) or "").strip())

    def _write(self, name: str, value: str) -> None:
        """To the cgroup that was opened, by its directory: its path may be another one's by now."""
        path = self.directory / name
        try:
            folder = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if os.fstat(folder).st_ino != self.inode:
                    raise FileNotFoundError(errno.ENOENT, "the cgroup has gone; another one has its path")
                file = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, dir_fd=folder)
                try:
                    # An empty list is an empty line: to write no bytes is not to write.
                    os.write(file, f"{value}\n".encode())
                finally:
                    os.close(file)
            finally:
                os.close(folder)
        except OSError as error:
            raise files.refused(path, error, _hint(self, error.errno)) from None


def _with_controller(root: Path) -> list[hierarchies.Hierarchy]:
    return [
        each
        for each in hierarchies.of(_CONTROLLER, root)
        if each.version == 1 or _CONTROLLER in (files.text(each.mount / "cgroup.controllers") or "").split()
    ]


def _time_file(directory: Path, hierarchy: hierarchies.Hierarchy, root: Path) -> Path | None:
    """In version 1 another hierarchy counts time; who makes a cgroup in one of them mostly does so in the other."""
    if hierarchy.version == 2:
        return directory / "cpu.stat"
    for each in hierarchies.of("cpuacct", root):
        path = each.mount / directory.relative_to(hierarchy.mount) / "cpuacct.usage"
        if each.version == 1 and path.exists():
            return path
    return None


def _hint(cpuset: Cpuset, code: int | None) -> str:
    if code in _GONE:
        return (
            "has the cgroup gone, or is cpuset not enabled for it (cgroup.subtree_control of the one above)?"
        )
    if code == errno.EBUSY:
        return "a cgroup below has more than that, or a deadline thread of it would have too little"
    if code == errno.ENOSPC:
        return "it has threads, which need at least one processor and one node"
    if code in (errno.EACCES, errno.EINVAL) and cpuset.version == 1 and os.geteuid() == 0:
        return "in version 1 a cgroup has a part of what the one above has"
    if code in (errno.ERANGE, errno.EINVAL, errno.E2BIG):
        return "this host has no such number, or a cpuset beside it has it for itself"
    return ""
