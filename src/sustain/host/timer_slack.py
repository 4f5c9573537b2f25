"""How late a thread's timers may be: /proc/TID/timerslack_ns, proc(5). Used by the package scheduler, so that wake-ups
fall together where a package sleeps only when all do.

50 µs where nobody has set it (prctl(2), PR_SET_TIMERSLACK); a thread has that of the one that started it. The kernel
keeps to nothing of it for real-time and deadline threads. Another process's can be had since Linux 4.6, with
CAP_SYS_NICE.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sustain.errors import HostError
from sustain.host import files, threads
from sustain.host.affinity import Written
from sustain.host.processes import Identity

_GONE = frozenset((errno.ENOENT, errno.ESRCH))
_DIGITS = 24
T = TypeVar("T")


def read(who: Identity, root: Path = Path("/")) -> int | None:
    """A thread's, in nanoseconds; None: it has gone. Raises HostError."""
    return _with_file(who, root, os.O_RDONLY, _number)


def write(who: Identity, slack_ns: int, root: Path = Path("/")) -> Written:
    """Set a thread's. 0 would be its default, and is refused. Raises HostError."""
    if slack_ns < 1:
        raise HostError(f"thread {who.pid}: timers late by {slack_ns} ns", hint="1 ns is the least")

    def put(file: int) -> Written:
        if _number(file) == slack_ns:
            return Written.SAME
        os.write(file, f"{slack_ns}\n".encode())
        return Written.DONE

    came = _with_file(who, root, os.O_RDWR, put)
    return Written.GONE if came is None else came


def _with_file(who: Identity, root: Path, flags: int, use: Callable[[int], T]) -> T | None:
    """The file of that thread: once it is open it is nobody else's, whoever has the number later. None: it has gone."""
    path = root / f"proc/{who.pid}/timerslack_ns"
    try:
        file = os.open(path, flags | os.O_CLOEXEC)
        try:
            thread = threads.one(who.pid, root)
            return use(file) if thread is not None and thread.who == who else None
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _GONE and threads.one(who.pid, root) is None:
            return None
        hint = "it needs CAP_SYS_NICE" if error.errno == errno.EPERM else ""
        raise files.refused(path, error, hint) from None


def _number(file: int) -> int:
    return int(os.pread(file, _DIGITS, 0))
