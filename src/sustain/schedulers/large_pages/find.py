"""Which processes are targets, as the operator names them: by number, by a file with it, by command, cgroup or guest.

Used by `sense`, anew at each reading, since processes come and go; `Wanted` is a part of the configuration file.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sustain.errors import ConfigError, SustainError
from sustain.host import cgroup, maps, pid_file, processes, qemu
from sustain.host.processes import Identity, identify

ANY = "*"  # guest: all of them


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process, or all of a kind. Exactly one of the ways is given. Where a way may find several, each is called by
    the name and its number ("db.4711"); all guests are called as they call themselves."""

    name: str
    pid: int | None = None
    pid_file: str | None = None  # its first word is the number
    command: str | None = None  # the command's name, as `ps -o comm` shows it, or its program's file name
    cgroup: str | None = None  # its directory, with all below
    guest: str | None = None  # name or UUID of a QEMU guest, of which only the RAM is looked at; "*": all


@dataclass(frozen=True, slots=True)
class Found:
    """A process that is there now. `only`: ranges of addresses, to which it is narrowed; of a guest its sockets, as far
    as its command line names them."""

    name: str
    wanted: str  # the name of the target by which it was found
    who: Identity
    only: tuple[tuple[int, int], ...] | None = None
    guest: bool = False
    qmp: str | None = None
    guest_agent: str | None = None


def check(wanted: Sequence[Wanted]) -> None:
    """Raises ConfigError for what cannot be meant."""
    names: set[str] = set()
    for each in wanted:
        ways = [each.pid, each.pid_file, each.command, each.cgroup, each.guest]
        if not each.name or each.name in names:
            raise ConfigError(
                f"target {each.name!r}: the name is empty or there twice", hint="names are unique"
            )
        if sum(way is not None for way in ways) != 1:
            raise ConfigError(
                f"target {each.name!r}: it is not named in exactly one way",
                hint="give one of pid, pid_file, command, cgroup, guest",
            )
        names.add(each.name)


def may_be_called(wanted: Sequence[Wanted], name: str) -> bool:
    """Whether one of these is called that, or may find a process that is."""
    for each in wanted:
        numbered = each.command is not None or each.cgroup is not None
        if name == each.name or each.guest == ANY:
            return True
        if numbered and name.startswith(f"{each.name}.") and name[len(each.name) + 1 :].isdecimal():
            return True
    return False


def find(
    wanted: Sequence[Wanted], root: Path = Path("/"), before: Iterable[Found] = ()
) -> tuple[list[Found], list[str]]:
    """Those that are there, each once, and what was not found or cannot be looked at, in words. `before`: what was
    found the last time; of it stays what still runs and can only not be found at this moment, as when its cgroup cannot
    be read or its file of a number is being written."""
    last = list(before)
    found: dict[Identity, Found] = {}
    problems: list[str] = []
    for each in wanted:
        here: list[Found] = []
        try:
            for one in _matches(each, root):
                here.append(one)
            if not here:
                problems.append(f"{each.name}: there is no such process now")
        except (SustainError, OSError) as error:
            there = {one.who for one in here}
            kept = [one for one in last if one.wanted == each.name and one.who not in there]
            here += [one for one in kept if processes.alive(one.who, str(root))]
            hint = getattr(error, "hint", "")
            problems.append(
                f"{each.name}: {error}"
                + (f" ({hint})" if hint else "")
                + ("; what was found before and still runs stays" if here else "")
            )
        for one in here:
            if one.who.pid != os.getpid():
                found.setdefault(one.who, one)
    return list(found.values()), problems


def _matches(wanted: Wanted, root: Path) -> Iterator[Found]:
    if wanted.pid is not None:
        yield from _named(wanted, wanted.pid, root)
    elif wanted.pid_file is not None:
        yield from _named(wanted, pid_file.read(Path(wanted.pid_file), root), root)
    elif wanted.command is not None:
        for pid in maps.all_pids(root):
            if wanted.command in processes.commands(pid, root):
                yield from _named(wanted, pid, root)
    elif wanted.cgroup is not None:
        for pid in cgroup.members(wanted.cgroup, root):
            yield from _named(wanted, pid, root)
    elif wanted.guest is not None:
        yield from _guests(wanted, root)


def _named(wanted: Wanted, pid: int, root: Path) -> Iterator[Found]:
    who = identify(pid, str(root))
    if who is not None:
        name = wanted.name if wanted.command is None and wanted.cgroup is None else f"{wanted.name}.{pid}"
        yield Found(name, wanted.name, who)


def _guests(wanted: Wanted, root: Path) -> Iterator[Found]:
    for each in qemu.discover(root):
        if wanted.guest not in (ANY, each.name, each.uuid):
            continue
        areas = maps.guest_ram(each.who.pid, root=root)
        if areas:
            name = each.name if wanted.guest == ANY else wanted.name
            only = tuple((area.start, area.end) for area in areas)
            yield Found(name, wanted.name, each.who, only, True, each.qmp, each.guest_agent)
