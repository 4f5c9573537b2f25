"""Where a thread may run: `Cpus_allowed_list` of /proc/TID/status, and sched_setaffinity(2). Used by the package
scheduler.

Read from /proc, not by sched_getaffinity: that leaves offline processors out, and what is put back without them would
never come back to them. What is written the kernel cuts to the thread's cpuset, and remembers as asked for (Linux 6.2);
older kernels forget it when the cpuset changes.

There is no call that names a thread by more than its number, so its start time is compared before and after. Between
the two a number can only come to mean another thread when all the numbers that are free were used in that moment; if
that is ever seen, it is said as an error, never passed off as done.
"""

import errno
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from sustain.errors import HostError
from sustain.host import files, threads
from sustain.host.processes import Identity

_ALLOWED = "Cpus_allowed_list:"


class Written(Enum):
    """What came of a write."""

    DONE = "done"
    SAME = "same"  # it was so already; nothing was written
    GONE = "gone"  # the thread has ended, whoever has its number now; nothing was done to that one
    CHANGED = "changed"  # it may run on others than expected; nothing was written


class Outcome(NamedTuple):
    """What came of a write, and where the thread may run now; None: it has gone."""

    written: Written
    cpus: frozenset[int] | None


def read(who: Identity, root: Path = Path("/")) -> frozenset[int] | None:
    """The processors that a thread may run on, offline ones too; None: it has gone. Raises HostError."""
    path = root / f"proc/{who.pid}/status"
    content = files.text(path)
    # What was read is that thread's only if the number was its own until after.
    if not _alive(who, root):
        return None
    for line in (content or "").splitlines():
        if line.startswith(_ALLOWED):
            return files.cpus(line[len(_ALLOWED) :])
    raise HostError(f"{path}: no {_ALLOWED[:-1]}", hint="is /proc mounted?")


def write(who: Identity, cpus: Iterable[int], expected: frozenset[int] | None = None) -> Outcome:
    """Have a thread of this host run on these only; with `expected` not if it may now run on others than those.

    What it may run on then are those of them that are in its cpuset. Somebody who sets it between the look and the
    write is overruled. Raises HostError: EINVAL, none of them is online and in its cpuset, or it is one of the kernel's
    that stay where they are; EBUSY, a deadline thread keeps its processors; EPERM.
    """
    wanted = frozenset(cpus)
    if not wanted:
        raise HostError(
            f"thread {who.pid}: no processor to run on", hint="give at least one", errno=errno.EINVAL
        )
    now = read(who)
    if now is None:
        return Outcome(Written.GONE, None)
    if expected is not None and now != expected:
        return Outcome(Written.CHANGED, now)
    if now == wanted:
        return Outcome(Written.SAME, now)
    try:
        os.sched_setaffinity(who.pid, wanted)
    except ProcessLookupError:
        return Outcome(Written.GONE, None)
    except (OSError, ValueError, OverflowError) as error:
        if not _alive(who, Path("/")):
            return Outcome(Written.GONE, None)
        raise _refused(who, wanted, error) from None
    _check(who)
    now = read(who)
    return Outcome(Written.GONE if now is None else Written.DONE, now)


def _check(who: Identity) -> None:
    """If the number is that thread's still, it was so all the time; if nobody's, nobody else was hit."""
    thread = threads.one(who.pid)
    if thread is not None and thread.who != who:
        raise HostError(
            f"thread {who.pid}: ended while its processors were set, and another one ({thread.name}) has its number",
            hint="look at the other one by `taskset -cp`: it may have been set instead",
            errno=errno.ESRCH,
        )


def _alive(who: Identity, root: Path) -> bool:
    thread = threads.one(who.pid, root)
    return thread is not None and thread.who == who


def _refused(who: Identity, wanted: frozenset[int], error: Exception) -> HostError:
    code = error.errno if isinstance(error, OSError) else errno.EINVAL
    hints = {
        errno.EINVAL: "none of them is online and in its cpuset, or it is a kernel thread that stays where it is",
        errno.EBUSY: "a thread of SCHED_DEADLINE keeps the processors of its root domain",
        errno.EPERM: "it needs CAP_SYS_NICE, or the thread's own user",
    }
    why = os.strerror(code) if code else str(error)
    return HostError(
        f"thread {who.pid}: processors {files.cpu_list(wanted)}: {why}",
        hint=hints.get(code or 0, ""),
        errno=code,
    )
