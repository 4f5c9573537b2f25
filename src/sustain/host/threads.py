"""The threads of a process, and what they and the whole process have used of the processors: /proc/PID/task/TID/stat
and /proc/PID/stat, proc(5). Used by the package scheduler.

One read for each thread, or one for the process: its own figure has all that its threads have used, also those that
have ended. A thread's number alone names nobody, as a process's does not; number and start time together do
(`Identity`, whose pid is here the thread's number).

The list of a process that starts threads has the new ones missing that came while it was read; they have the affinity
of the thread that started them. So whoever changes something in all of them reads it again until nothing is new.
"""

import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files
from sustain.host.processes import Identity

TICKS_PER_S = os.sysconf("SC_CLK_TCK")  # what times in /proc are counted in: used and start ticks

_GONE = frozenset((errno.ENOENT, errno.ESRCH))
_ENDED = frozenset("ZXx")
_KERNEL, _FIXED = 0x00200000, 0x04000000  # PF_KTHREAD, PF_NO_SETAFFINITY
_BYTES = 4096  # more than the line ever has: 52 fields and a name of at most 64


class Policy(IntEnum):
    """How the kernel schedules a thread, sched(7)."""

    OTHER = 0
    FIFO = 1
    RR = 2
    BATCH = 3
    IDLE = 5
    DEADLINE = 6
    EXT = 7  # by a program of the administrator's (sched_ext)

    @property
    def real_time(self) -> bool:
        return self in (Policy.FIFO, Policy.RR, Policy.DEADLINE)


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread as it was seen."""

    who: Identity
    name: str
    state: str  # R: it runs or wants to; S, D, I: it waits; T, t: it is stopped
    used_ticks: int  # since it started, in user mode and in the kernel
    policy: Policy | int  # a number: one that this program does not know
    real_time_priority: int  # 1 … 99; 0: none
    cpu: int  # the processor that it ran on last
    kernel: bool  # one of the kernel's own
    fixed: bool  # of those: the kernel lets nobody move it

    @property
    def real_time(self) -> bool:
        """Whether it has a claim on time that others must not be in the way of."""
        return isinstance(self.policy, Policy) and self.policy.real_time


@dataclass(frozen=True, slots=True)
class Use:
    """A process as a whole."""

    who: Identity
    used_ticks: int  # by all its threads, also those that have ended; not by its children
    threads: int  # that it has now


def read(pid: int, root: Path = Path("/")) -> tuple[Thread, ...] | None:
    """The threads of a process, in the order of their numbers, without those that have ended; None: it has gone.
    Raises HostError when they may not be looked at."""
    folder = root / "proc" / str(pid) / "task"
    try:
        names = os.listdir(folder)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise files.refused(folder, error) from None
    threads = []
    for tid in sorted(int(name) for name in names if name.isdecimal()):
        line = _line(f"{folder}/{tid}/stat")
        if line is not None and (thread := _thread(tid, *line)) is not None:
            threads.append(thread)
    return tuple(threads) or None


def numbers(pid: int, root: Path = Path("/")) -> list[int]:
    """The numbers of a process's threads; none when it has gone. Raises HostError."""
    folder = root / "proc" / str(pid) / "task"
    try:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise files.refused(folder, error) from None


def one(tid: int, root: Path = Path("/")) -> Thread | None:
    """One thread, by its number; None: there is none. Raises HostError."""
    # Beside processes, /proc has threads under their numbers too, though it does not list them. What is read there of
    # the first thread of a process is of the whole process, so by way of its own list.
    line = _line(str(root / f"proc/{tid}/task/{tid}/stat"))
    return None if line is None else _thread(tid, *line)


def use(pid: int, root: Path = Path("/")) -> Use | None:
    """What a process has used; None: it has gone. Raises HostError."""
    line = _line(str(root / f"proc/{pid}/stat"))
    if line is None:
        return None
    _, fields = line
    threads = int(fields[17])
    # When the first thread has ended, it is left as a zombie for as long as there are others.
    if fields[0] in _ENDED and threads <= 1:
        return None
    return Use(Identity(pid, int(fields[19])), int(fields[11]) + int(fields[12]), threads)


def _line(path: str) -> tuple[str, list[str]] | None:
    """The name, and the fields from the state (3) on; None: it has gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, _BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise files.refused(path, error) from None
    before, _, after = content.decode(errors="replace").rpartition(")")  # the name may hold anything
    fields = after.split()
    if len(fields) < 39:
        raise HostError(f"{path}: not as proc(5) says", hint="is /proc mounted?")
    return before.partition("(")[2], fields


def _thread(tid: int, name: str, fields: list[str]) -> Thread | None:
    if fields[0] in _ENDED:
        return None
    flags, policy = int(fields[6]), int(fields[38])
    return Thread(
        who=Identity(tid, int(fields[19])),
        name=name,
        state=fields[0],
        used_ticks=int(fields[11]) + int(fields[12]),
        policy=_POLICIES.get(policy, policy),
        real_time_priority=int(fields[37]),
        cpu=int(fields[36]),
        kernel=bool(flags & _KERNEL),
        fixed=bool(flags & _FIXED),
    )


_POLICIES = {int(each): each for each in Policy}
