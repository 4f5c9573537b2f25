"""Cgroups as groups of threads: which there are, what they have used of the processors, and where they may run.

Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/cpuacct.rst and cpusets.rst. Used by power-aware placement. A
cgroup is named by its path below the mount; of version 1, that has a tree for each controller, the tree is that of
cpuset, and the others are looked up by the same path. A path may be used again; what names a cgroup is its inode there.

What was used is read from files that are kept open: of each cgroup it is asked at every tick. One that is gone refuses
to be read (ENODEV), also when another has its path by then.
"""

import errno
import fnmatch
import os
import re
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from sustain.errors import HostError
from sustain.host import files

_GONE = frozenset((errno.ENODEV, errno.ENOENT, errno.ENOTDIR))
_BYTES = 4096  # more than cpu.stat has before and with its first line
_WILD = re.compile(r"[*?\[]")
_HINT = "give its path below the mount (machine.slice/web.scope), or its directory; with * all that match"


@dataclass(frozen=True, slots=True)
class Trees:
    """Where they lie. None: this host has no such tree, so what it tells is unknown."""

    version: int
    controller: str  # whose tree of version 1 `top` is; "": version 2
    top: Path  # by which they are named: of cpuset, where there is one
    use: Path | None
    cpus: Path | None  # where a cpuset may be read


class Named(NamedTuple):
    """One that is there now."""

    path: str  # "/machine.slice/web.scope"
    life: str


def trees(root: Path = Path("/")) -> Trees:
    """Version 2 where it has the processors' controllers, else version 1. Raises HostError where neither is mounted."""
    second: Path | None = None
    first: dict[str, Path] = {}
    for line in (files.text(root / "proc/self/mounts") or "").splitlines():
        words = line.split()
        if len(words) < 4 or words[2] not in ("cgroup", "cgroup2"):
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1])
        folder = root / place.lstrip("/")
        if words[2] == "cgroup2":
            second = second or folder
        for option in words[3].split(",") if words[2] == "cgroup" else ():
            first.setdefault(option, folder)
    controllers = (files.text(second / "cgroup.controllers") or "").split() if second else []
    use = first.get("cpuacct")
    if second is not None and ("cpuset" in controllers or not ("cpuset" in first or use)):
        return Trees(2, "", second, second, second if "cpuset" in controllers else None)
    for controller in ("cpuset", "cpuacct"):
        if controller in first:
            return Trees(1, controller, first[controller], use, first.get("cpuset"))
    raise HostError(f"{root / 'proc/self/mounts'}: no cgroups are mounted", hint="name processes instead")


def matching(wanted: str, where: Trees, root: Path = Path("/")) -> list[Named]:
    """Those whose path is, or matches, `wanted`: its path below the mount, or its directory; * and ? match within one
    name. In the order of their paths. Raises HostError when there is no such directory to look in."""
    path = _below(wanted, where, root)
    parts = [part for part in path.split("/") if part]
    if not parts:
        raise HostError(f"{wanted}: the root is not a group", hint=_HINT)
    return sorted(_matching(where.top, "", parts, wanted))


def of_process(pid: int, where: Trees, root: Path = Path("/")) -> str | None:
    """The path of the cgroup that a process is in; None: it has gone."""
    for line in (files.text(root / f"proc/{pid}/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if where.controller in controllers.split(","):
            return path
    return None


def named(path: str, where: Trees) -> Named | None:
    """The one with that path; None: there is none. Raises HostError."""
    try:
        return Named(path, str(os.stat(f"{where.top}{path}").st_ino))
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise files.refused(f"{where.top}{path}", error) from None


def below(path: str, where: Trees) -> Iterator[Path]:
    """The directories of a cgroup and of all below it; none when it has gone."""
    for folder, _, _ in os.walk(where.top / path.lstrip("/")):
        yield Path(folder)


def threads(path: str, where: Trees) -> list[int]:
    """The numbers of its threads, with those of all below it; none when it has gone. Raises HostError."""
    found: list[int] = []
    for folder in below(path, where):
        found += _numbers(folder / ("cgroup.threads" if where.version == 2 else "tasks"))
    return sorted(set(found))


def processes(path: str, where: Trees) -> list[int]:
    """The numbers of its processes, with those of all below it; none when it has gone. Raises HostError."""
    found: list[int] = []
    for folder in below(path, where):
        found += _numbers(folder / "cgroup.procs")
    return sorted(set(found))


def first_process(path: str, where: Trees) -> int | None:
    """One of its processes, or of those below it; None: it has none. Raises HostError."""
    return next((each for folder in below(path, where) for each in _numbers(folder / "cgroup.procs")), None)


def has_cpus(path: str, where: Trees) -> bool:
    """Whether it has a cpuset of its own. Raises HostError."""
    name = "cpuset.cpus.effective" if where.version == 2 else "cpuset.effective_cpus"
    return where.cpus is not None and bool(_content(f"{where.cpus}{path}/{name}"))


def cpus(path: str, where: Trees) -> frozenset[int] | None:
    """The processors that its threads may use, of those that are online: its own, or what it has from above; None:
    unknown, there is no cpuset here. Raises HostError."""
    if where.cpus is None:
        return None
    name = "cpuset.cpus.effective" if where.version == 2 else "cpuset.effective_cpus"
    while True:
        found = _cpus(_content(f"{where.cpus}{path}/{name}"))
        if found or not path:
            return found or None
        path = path.rpartition("/")[0]


@lru_cache(maxsize=1024)
def _cpus(content: bytes) -> frozenset[int]:
    return files.cpus(content.decode("ascii", "replace"))


def _content(path: str) -> bytes:
    """Of a small file; of one that is not there nothing. Raises HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _GONE:
            return b""
        raise files.refused(path, error) from None


class Use:
    """What cgroups have used of the processors, of many and often. Close it."""

    def __init__(self, where: Trees) -> None:
        self._where = where
        self._held: dict[Named, int] = {}
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4

    def read_s(self, of: Iterable[Named]) -> dict[Named, float]:
        """Seconds since each began, of all its threads and of those below it. One that has gone, or whose use is not
        counted here, is left out; files of those that are not asked for are closed. Raises HostError."""
        asked = dict.fromkeys(of)
        for gone in [each for each in self._held if each not in asked]:
            os.close(self._held.pop(gone))
        if self._where.use is None:
            return {}
        found = {}
        for each in asked:
            used_s = self._one(each, self._where.use)
            if used_s is not None:
                found[each] = used_s
        return found

    def _one(self, group: Named, use: Path) -> float | None:
        second = self._where.version == 2
        fd = self._held.get(group)
        path = f"{use}{group.path}/{'cpu.stat' if second else 'cpuacct.usage'}"
        keep = fd is not None
        try:
            if fd is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                # What is open now is that group's only if the path still names it.
                keep = len(self._held) < self._most and named(group.path, self._where) == group
                if keep:
                    self._held[group] = fd
            try:
                content = os.pread(fd, _BYTES, 0)
            finally:
                if not keep:
                    os.close(fd)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise files.refused(path, error) from None
        if not second:
            return int(content) / 1e9 if content.strip().isdigit() else None
        first, _, rest = content.partition(b"usage_usec ")
        digits = rest.partition(b"\n")[0]
        return int(digits) / 1e6 if digits.isdigit() and not first.strip(b"\n") else None

    def close(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _below(wanted: str, where: Trees, root: Path) -> str:
    """What follows the mount."""
    for top in (where.top, "/" / where.top.relative_to(root)):
        if wanted == str(top) or wanted.startswith(f"{top}/"):
            return wanted[len(str(top)) :]
    return wanted


def _matching(top: Path, path: str, parts: list[str], wanted: str) -> Iterator[Named]:
    part, *rest = parts
    folder = f"{top}{path}"
    try:
        if not _WILD.search(part):
            inode = os.stat(f"{folder}/{part}").st_ino
            found = [(part, inode)]
        else:
            with os.scandir(folder) as entries:
                found = [
                    (each.name, each.inode())
                    for each in entries
                    if fnmatch.fnmatchcase(each.name, part) and each.is_dir()
                ]
    except OSError as error:
        if error.errno in _GONE and not path and not _WILD.search(part):
            raise HostError(f"{wanted}: no such cgroup below {top}", hint=_HINT) from None
        if error.errno in _GONE:
            return
        raise files.refused(f"{folder}/{part}", error) from None
    for name, inode in found:
        if rest:
            yield from _matching(top, f"{path}/{name}", rest, wanted)
        else:
            yield Named(f"{path}/{name}", str(inode))


def _numbers(path: Path) -> list[int]:
    """None where it has gone, and of a cgroup that has no threads of its own by its kind (EOPNOTSUPP)."""
    return [int(word) for word in (files.text(path) or "").split()]
