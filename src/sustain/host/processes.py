"""Who a process is: /proc/PID/stat, and signals that never hit a stranger.

Used by failover to end what an earlier supervisor left behind. A pid alone names nobody, since pids are
used again; pid and start time together do. Signals go through a pidfd that is opened *before* the start
time is compared, so a pid that is recycled in between is never hit.
"""

import os
import signal
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """One process for its whole life on this boot."""

    pid: int
    start_ticks: int  # clock ticks since boot, /proc/PID/stat field 22


def start_ticks(pid: int, root: str = "/") -> int | None:
    """When `pid` started; None when there is no such process, or only its zombie is left."""
    try:
        text = Path(root, "proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may hold anything, parentheses too
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def parents(pid: int, root: str = "/") -> set[int]:
    """All processes above `pid`, up to the first one."""
    found: set[int] = set()
    while True:
        try:
            text = Path(root, "proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
            pid = int(text.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return found
        if pid <= 0 or pid in found:
            return found
        found.add(pid)


def child_faults(pid: int, root: str = "/") -> int | None:
    """Page faults of the children that `pid` has waited for (field 11): it grows when one has come and gone."""
    try:
        text = Path(root, "proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[8])
    except (OSError, ValueError, IndexError):
        return None


def identify(pid: int, root: str = "/") -> Identity | None:
    """The identity of a live process."""
    ticks = start_ticks(pid, root)
    return None if ticks is None else Identity(pid, ticks)


def alive(who: Identity, root: str = "/") -> bool:
    return who.pid > 0 and start_ticks(who.pid, root) == who.start_ticks


def kill(who: Identity, signum: int = signal.SIGKILL, *, group: bool = False) -> bool:
    """Signal exactly this process, with `group` also the process group that it leads; False when it has
    gone.

    Raises PermissionError when it belongs to somebody else.
    """
    if who.pid <= 1 or who.pid == os.getpid():
        return False
    try:
        fd = os.pidfd_open(who.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        if start_ticks(who.pid) != who.start_ticks:
            return False
        if group and _leads_group(who.pid):
            os.killpg(who.pid, signum)  # safe: while the leader lives its number names no other group
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wait_gone(who: Identity, timeout_s: float) -> bool:
    """Wait until that process has ended; False at the time-out. Works for processes that are not our children."""
    import select

    try:
        fd = os.pidfd_open(who.pid)
    except OSError:
        return True
    try:
        if start_ticks(who.pid) != who.start_ticks:
            return True
        ready, _, _ = select.select([fd], [], [], timeout_s)
        return bool(ready)
    finally:
        os.close(fd)


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def group_of(pid: int) -> int | None:
    """The process group of `pid`."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def boot_id(root: str = "/") -> str:
    """What tells this boot of the host from every other; "" when unknown."""
    try:
        return Path(root, "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
