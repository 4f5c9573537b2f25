"""QEMU processes of this host, by their command lines: names, QMP sockets, guest agents' sockets.

Used by the guest memory scheduler to find guests that nobody has named. Options as in qemu-system(1): `-qmp unix:PATH`,
`-mon` with a `-chardev`, a `virtserialport` named org.qemu.guest_agent.0 with a `-chardev`. A process that somebody
else manages gets its sockets as descriptors (libvirt does): such a one is found, without them.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sustain.host import processes, threads
from sustain.host.maps import all_pids
from sustain.host.processes import Identity, identify

_VCPU = re.compile(r"CPU (\d+)/(?:KVM|TCG)")
_AGENT_PORT = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True)
class Found:
    """One of them. Paths are absolute; None: it has none that can be told from its command line."""

    who: Identity
    name: str
    uuid: str | None
    qmp: str | None
    guest_agent: str | None
    managed: bool = False  # by libvirt, which holds its sockets


def vcpus(pid: int, root: Path = Path("/")) -> dict[int, Identity]:
    """The threads of a QEMU process's virtual processors, by number, as `-name …,debug-threads=on` names them, which
    libvirt asks for; none where it is not on, or one thread emulates them all."""
    found = threads.read(pid, root) or ()
    return {int(match[1]): each.who for each in found if (match := _VCPU.fullmatch(each.name))}


def discover(root: Path = Path("/"), pids: Iterable[int] | None = None) -> list[Found]:
    """All that run now and may be looked at, in the order of their pids; of `pids` only, where given."""
    found = []
    for pid in all_pids(root) if pids is None else pids:
        who = identify(pid, str(root))
        try:
            words = (root / "proc" / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if who is None or not _is_qemu(words[0]):
                continue
            folder = os.readlink(root / "proc" / str(pid) / "cwd")
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        found.append(parse(who, words[1:], folder))
    return found


def is_another(pid: int | None, who: Identity, root: Path = Path("/")) -> bool:
    """Whether the process `pid` that listens at a socket (None: unknown) is one besides the guest `who`: not one that
    has given it the socket, which is a parent of it or has ended."""
    if pid is None or pid == who.pid or processes.start_ticks(pid, str(root)) is None:
        return False
    return pid not in processes.parents(who.pid, str(root))


def _is_qemu(program: str) -> bool:
    name = program.rpartition("/")[2]
    return name.startswith("qemu-system-") or name in ("qemu-kvm", "kvm")


def parse(who: Identity, words: list[str], folder: str = "/") -> Found:
    """What a command line says; `folder` is where relative paths begin."""
    name, uuid, qmp = f"qemu-{who.pid}", None, None
    sockets: dict[str, str] = {}  # by chardev
    monitors: list[str] = []
    agents: list[str] = []
    for word, value in pairwise(words):
        option = word.replace("--", "-", 1) if word.startswith("--") else word
        options = _options(value)
        if option == "-name":
            name = options.get("guest") or options.get("") or name
        elif option == "-uuid":
            uuid = value
        elif option in ("-qmp", "-qmp-pretty") and value.startswith("unix:"):
            qmp = qmp or _options(value.removeprefix("unix:")).get("")
        elif option == "-chardev" and options.get("") == "socket" and "path" in options and "id" in options:
            sockets[options["id"]] = options["path"]
        elif option == "-mon" and options.get("mode") == "control" and "chardev" in options:
            monitors.append(options["chardev"])
        elif option == "-device" and options.get("name") == _AGENT_PORT:
            agents.append(options.get("chardev", ""))
    qmp = qmp or next((sockets[each] for each in monitors if each in sockets), None)
    agent = next((sockets[each] for each in agents if each in sockets), None)

    def absolute(path: str | None) -> str | None:
        return None if path is None else os.path.join(folder, path)

    return Found(who, name, uuid, absolute(qmp), absolute(agent), managed="charmonitor" in monitors)


def _options(value: str) -> dict[str, str]:
    """QEMU's "first,key=value,…", where a comma in a value is doubled; the first may have no key, and then "" is its
    key. Devices may be given as JSON instead."""
    if value.startswith("{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            return {}
        return {key: str(each) for key, each in parsed.items()} if isinstance(parsed, dict) else {}
    found: dict[str, str] = {}
    for number, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, rest = part.partition("=")
        if equals:
            found[key] = rest.replace("\0", ",")
        elif number == 0:
            found[""] = key.replace("\0", ",")
        else:
            found[key] = "on"
    return found
