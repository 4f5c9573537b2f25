"""Groups of threads on this machine: processes of our own, and cgroups of our own with processes in them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sustain.host import affinity, files, threads
from sustain.host.affinity import Written
from sustain.host.cpuset import Cpuset
from sustain.host.processes import Identity, identify
from sustain.schedulers.packages.handles import CgroupHandle, Handle, ProcessHandle
from sustain.schedulers.packages.model import Align, Kind, Place, Purpose, Release
from tests.host.threaded import Program, wait_until

ONLINE = sorted(os.sched_getaffinity(0))
FIRST, SECOND, BOTH = frozenset(ONLINE[:1]), frozenset(ONLINE[1:2]), frozenset(ONLINE[:2])
LIFE = "1"


@dataclass
class Located:
    """What `find` does for the scheduler: groups by name, all in life "1"."""

    handles: dict[str, Handle] = field(default_factory=dict)

    def __call__(self, name: str, life: str) -> Handle | None:
        return self.handles.get(name) if life == LIFE else None


def place(
    group: str, cpus: frozenset[int], kind: Kind = "process", nodes: tuple[int, ...] | None = None
) -> Place:
    return Place(
        group=group,
        life=LIFE,
        kind=kind,
        cpus=tuple(sorted(cpus)),
        packages=(0,),
        nodes=nodes,
        purpose="pack",
        reason="a test",
    )


def release(group: str, kind: Kind = "process", purpose: Purpose = "revert") -> Release:
    return Release(group=group, life=LIFE, kind=kind, purpose=purpose, reason="a test")


def align(group: str, slack_s: float | None) -> Align:
    return Align(group=group, life=LIFE, kind="process", slack_s=slack_s, purpose="align", reason="a test")


def process(program: Program | int) -> ProcessHandle:
    who = identify(program if isinstance(program, int) else program.pid)
    assert who is not None
    return ProcessHandle((who,))


def where(pid: int) -> dict[Identity, frozenset[int]]:
    """Where each thread of a process may run."""
    found = {}
    for thread in threads.read(pid) or ():
        cpus = affinity.read(thread.who)
        if cpus is not None:
            found[thread.who] = cpus
    return found


def slack(pid: int) -> dict[int, int]:
    """How late the timers of each thread may be, in nanoseconds; {}: we may not ask."""
    if os.geteuid() != 0:
        return {}
    return {
        int(each.name): int(Path(f"/proc/{each.name}/timerslack_ns").read_text())
        for each in Path(f"/proc/{pid}/task").iterdir()
    }


def bind(tid: int, cpus: frozenset[int]) -> None:
    """As a user does it."""
    thread = threads.one(tid)
    assert thread is not None
    assert affinity.write(thread.who, cpus).written is Written.DONE


@contextlib.contextmanager
def running(*before: str) -> Iterator[Program]:
    """A program with one thread; the one that it has begun with has ended."""
    with Program(*before) as program:
        wait_until(lambda: len(threads.read(program.pid) or ()) == 1)
        yield program


def as_found(cpuset: Cpuset) -> frozenset[int]:
    """Its own list; all that there could be is none: version 2 empties no list while there are threads."""
    own = cpuset.own_cpus()
    assert own is not None
    possible = files.cpus(files.text(Path("/sys/devices/system/cpu/possible")))
    return frozenset() if cpuset.version == 2 and own == possible else own


def handle(cpuset: Cpuset) -> CgroupHandle:
    return CgroupHandle(cpuset.directory, cpuset.inode)
