"""Which groups of threads are placed, as the operator names them: cgroups, processes, guests.

Used by `sense`, anew at each reading, since groups come and go; by `act`, which finds the group of an action by it; and
`Wanted` is a part of the configuration file. A group is a cgroup with all below it, one process with its threads, or a
guest: the threads of a QEMU process, by the cgroup that libvirt made for it alone, where there is one.

Groups share no threads, or what they use would be counted twice, and they would be moved against each other. So of two
that lie within each other the outer one is a group, and that is said of the other.

Processes are searched by command (and guests) among all that run. That is done whole every 30 s; in between only those
are looked at that were not there then, several times, since a process changes its command when it executes another.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from sustain.errors import ConfigError, SustainError
from sustain.host import cgroup_use, maps, pid_file, processes, qemu
from sustain.host.cgroup_use import Named, Trees
from sustain.host.processes import Identity, identify
from sustain.schedulers.packages.model import Kind

ANY = "*"  # guest: all of them
WHOLE_S = 30.0  # every so often all processes are looked at
_WILD = re.compile(r"[*?\[]")
_GUEST_SCOPE = re.compile(r"machine-qemu.*\.scope|.*\.libvirt-qemu")  # as libvirt calls them, version 2 and 1


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group, or all of a kind. Exactly one of the ways is given. Where a way may find several, each is called by
    the name and its own: "vms.web1.scope", "db.4711"; all guests are called by the name and as they call themselves."""

    name: str
    cgroup: str | None = None  # path below the mount, or directory; with * each that matches is a group
    pid: int | None = None
    pid_file: str | None = None  # its first word is the number
    command: str | None = None  # the command's name, as `ps -o comm` shows it, or its program's file name
    guest: str | None = None  # name or UUID of a QEMU guest; "*": all


@dataclass(frozen=True, slots=True)
class Found:
    """A group that is there now."""

    name: str
    wanted: str  # by which it was found
    kind: Kind
    life: str  # of a cgroup its inode, of a process and a guest "pid:start"
    who: Identity | None = None  # the process; of a guest QEMU's
    cgroup: Named | None = None  # the cgroup that it is, or of a guest the one that it has for itself
    guest: str = ""  # of a guest its UUID, or the name that it has for itself

    @property
    def by_cgroup(self) -> bool:
        """Whether it is the threads of a cgroup that are placed."""
        return self.cgroup is not None


def check(wanted: Sequence[Wanted]) -> None:
    """Raises ConfigError for what cannot be meant."""
    names: set[str] = set()
    for each in wanted:
        ways = [each.pid, each.pid_file, each.command, each.cgroup, each.guest]
        if not each.name or each.name in names or "." in each.name:
            raise ConfigError(
                f"group {each.name!r}: the name is empty, has a dot, or is there twice",
                hint="names are unique, and what follows a dot tells those apart that one name finds",
            )
        if sum(way is not None for way in ways) != 1:
            raise ConfigError(
                f"group {each.name!r}: it is not named in exactly one way",
                hint="give one of cgroup, pid, pid_file, command, guest",
            )
        if each.cgroup is not None and not each.cgroup.strip("/"):
            raise ConfigError(
                f"group {each.name!r}: the root cgroup is the host itself",
                hint="name the slices that may move: machine.slice/*",
            )
        names.add(each.name)


def many(wanted: Wanted) -> bool:
    """Whether it may find several groups, each called by the name and its own."""
    return (
        wanted.command is not None
        or wanted.guest == ANY
        or (wanted.cgroup is not None and _WILD.search(wanted.cgroup) is not None)
    )


def may_be_called(wanted: Sequence[Wanted], name: str) -> bool:
    """Whether one of these is called that, or may find groups that are."""
    return any(name == each.name or (many(each) and name.startswith(f"{each.name}.")) for each in wanted)


class Finder:
    """Finds them, and remembers what it has looked at."""

    def __init__(self, wanted: Sequence[Wanted], root: Path = Path("/"), *, scopes: bool = True) -> None:
        """`scopes`: guests are placed by the cgroups that libvirt made for them; else by their threads. Raises
        ConfigError."""
        check(wanted)
        self._scopes = scopes
        self._wanted = tuple(wanted)
        self._root = root
        self._last: tuple[Found, ...] = ()
        self._searches = any(each.command is not None or each.guest is not None for each in wanted)
        self._whole_s: float | None = None  # when all processes were looked at
        self._seen: frozenset[int] = frozenset()  # that were there then
        self._trees: Trees | None = None

    @property
    def trees(self) -> Trees | None:
        """Where cgroups lie, as far as any group has to do with them."""
        return self._trees

    def find(self, now_s: float) -> tuple[tuple[Found, ...], list[str]]:
        """Those that are there, each once, and what was not found or is left out, in words. What was found the last
        time, still is there, and can only not be found at this moment, stays."""
        problems: list[str] = []
        self._find_trees(problems)
        there, new = self._processes(now_s)
        found: dict[str, Found] = {}
        for each in self._wanted:
            here: list[Found] = []
            try:
                here += self._matches(each, there, new)
                if not here:
                    problems.append(f"{each.name}: there is no such group now")
            except (SustainError, OSError) as error:
                lives = {one.life for one in here}
                here += [
                    one
                    for one in self._last
                    if one.wanted == each.name and one.life not in lives and self.alive(one)
                ]
                hint = getattr(error, "hint", "")
                problems.append(
                    f"{each.name}: {error}"
                    + (f" ({hint})" if hint else "")
                    + ("; what was found before and is there still stays" if here else "")
                )
            for one in here:
                if one.who is None or one.who.pid != os.getpid():
                    found.setdefault(one.life, one)
        self._last = _told_apart(found.values())
        return self._apart(problems), problems

    def alive(self, found: Found) -> bool:
        """Whether it is there still. Raises HostError."""
        if found.who is not None:
            return processes.alive(found.who, str(self._root))
        assert found.cgroup is not None
        assert self._trees is not None
        return cgroup_use.named(found.cgroup.path, self._trees) == found.cgroup

    def _find_trees(self, problems: list[str]) -> None:
        if self._trees is None and any(
            each.cgroup is not None or each.guest is not None for each in self._wanted
        ):
            try:
                self._trees = cgroup_use.trees(self._root)
            except SustainError as error:
                if any(each.cgroup is not None for each in self._wanted):
                    problems.append(f"{error} ({error.hint})")

    def _processes(self, now_s: float) -> tuple[frozenset[int], list[int]]:
        """All, and those of them that are to be looked at."""
        if not self._searches:
            return frozenset(), []
        there = frozenset(maps.all_pids(self._root))
        if self._whole_s is None or now_s - self._whole_s >= WHOLE_S:
            self._whole_s, self._seen = now_s, there
            return there, sorted(there)
        return there, sorted(there - self._seen)

    def _matches(self, wanted: Wanted, there: frozenset[int], new: list[int]) -> Iterator[Found]:
        if wanted.cgroup is not None:
            yield from self._cgroups(wanted, wanted.cgroup)
        elif wanted.pid is not None:
            yield from self._process(wanted, wanted.pid)
        elif wanted.pid_file is not None:
            yield from self._process(wanted, pid_file.read(Path(wanted.pid_file), self._root))
        else:
            looked = set(new)
            for one in self._last:  # not looked at again now, and there
                if one.wanted == wanted.name and one.who is not None and one.who.pid in there - looked:
                    yield from (one,) if processes.alive(one.who, str(self._root)) else ()
            if wanted.command is not None:
                for pid in new:
                    if wanted.command in processes.commands(pid, self._root):
                        yield from self._process(wanted, pid)
            else:
                yield from self._guests(wanted, new)

    def _cgroups(self, wanted: Wanted, pattern: str) -> Iterator[Found]:
        if self._trees is None:
            return
        several = many(wanted)
        for each in cgroup_use.matching(pattern, self._trees, self._root):
            name = f"{wanted.name}.{each.path.rpartition('/')[2]}" if several else wanted.name
            yield Found(name, wanted.name, "cgroup", each.life, None, each)

    def _process(self, wanted: Wanted, pid: int) -> Iterator[Found]:
        who = identify(pid, str(self._root))
        if who is not None:
            name = wanted.name if wanted.command is None else f"{wanted.name}.{pid}"
            yield Found(name, wanted.name, "process", _life(who), who)

    def _guests(self, wanted: Wanted, pids: Iterable[int]) -> Iterator[Found]:
        for each in qemu.discover(self._root, pids):
            if wanted.guest in (ANY, each.name, each.uuid):
                name = f"{wanted.name}.{each.name}" if wanted.guest == ANY else wanted.name
                scope, its_own = self._scope(each.who), each.uuid or each.name
                yield Found(name, wanted.name, "guest", _life(each.who), each.who, scope, its_own)

    def _scope(self, who: Identity) -> Named | None:
        """The cgroup that libvirt made for a guest alone, with what it put below; None: it is in no such."""
        if self._trees is None or not self._scopes:
            return None
        path = cgroup_use.of_process(who.pid, self._trees, self._root)
        if path is None:
            return None
        parts = path.split("/")
        for depth, part in enumerate(parts):
            if _GUEST_SCOPE.fullmatch(part):
                return cgroup_use.named("/".join(parts[: depth + 1]), self._trees)
        return None

    def _apart(self, problems: list[str]) -> tuple[Found, ...]:
        """Without those that lie within another."""
        outer = {each.cgroup.path: each.name for each in self._last if each.cgroup is not None}
        if not outer:
            return self._last
        left = []
        for each in self._last:
            if each.cgroup is not None:
                path = each.cgroup.path.rpartition("/")[0]
            elif each.who is not None and self._trees is not None:
                path = cgroup_use.of_process(each.who.pid, self._trees, self._root) or ""
            within = [outer[above] for above in _upwards(path) if above in outer]
            if not within:
                left.append(each)
            else:
                problems.append(f"{each.name}: lies within {within[-1]}, with which it is placed")
        return tuple(left)


def _life(who: Identity) -> str:
    return f"{who.pid}:{who.start_ticks}"


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def _told_apart(found: Iterable[Found]) -> tuple[Found, ...]:
    """With names that are unique: of those of one name, as of cgroups in different slices, each is told by its life,
    too."""
    each_of: dict[str, list[Found]] = {}
    for each in found:
        each_of.setdefault(each.name, []).append(each)
    return tuple(
        each if len(same) == 1 else replace(each, name=f"{each.name}.{each.life}")
        for same in each_of.values()
        for each in same
    )
