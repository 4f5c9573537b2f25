"""Who a process is: /proc/PID/stat, and signals that never hit a stranger; and what memory it has.

Used by failover to end what an earlier supervisor left behind, and by the guest memory scheduler. A pid alone names
nobody, since pids are used again; pid and start time together do. Signals go through a pidfd that is opened *before*
the start time is compared, so a pid that is recycled in between is never hit.
"""

import os
import signal
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from sustain.errors import HostError
from sustain.host import files


class Identity(NamedTuple):
    """One process for its whole life on this boot."""

    pid: int
    start_ticks: int  # clock ticks since boot, /proc/PID/stat field 22


class Memory(NamedTuple):
    """What a process has of the host's memory. Bytes; None: this kernel does not say."""

    resident: int | None
    swapped: int | None
    huge: int | None  # of the resident, mapped large
    anonymous: int | None
    file: int | None
    shared: int | None  # tmpfs, memfd and the like
    locked: int | None


def peer(connection: socket.socket) -> int | None:
    """The pid of who listened at the other end of a UNIX socket; None: it is in another pid namespace."""
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid if pid > 0 else None


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


def descendants(pid: int, root: str = "/") -> list[Identity]:
    """All processes below `pid`, each after the one that started it. Those whose parent has ended are not below it any
    more. While others start or end, some may be missing: look again."""
    proc = Path(root, "proc")
    # With CONFIG_PROC_CHILDREN the kernel lists them; else all processes are asked for their parent.
    listed = (proc / str(pid) / "task" / str(pid) / "children").exists()
    by_parent = {} if listed else _by_parent(proc)
    found: list[Identity] = []
    left = [pid]
    while left:
        parent = left.pop()
        for child in _children(proc / str(parent)) if listed else by_parent.get(parent, ()):
            who = identify(child, root)
            if who is not None:
                found.append(who)
                left.append(child)
    return found


def _children(folder: Path) -> list[int]:
    try:
        tasks = os.listdir(folder / "task")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # it has gone, or may not be looked at
    words = [(files.text(folder / "task" / task / "children") or "").split() for task in tasks]
    return [int(word) for each in words for word in each]


def _by_parent(proc: Path) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdecimal() and (above := _parent(folder)) is not None:
            children.setdefault(above, []).append(int(folder.name))
    return children


def _parent(folder: Path) -> int | None:
    try:
        text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def child_faults(pid: int, root: str = "/") -> int | None:
    """Page faults of the children that `pid` has waited for (field 11): it grows when one has come and gone."""
    try:
        text = Path(root, "proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[8])
    except (OSError, ValueError, IndexError):
        return None


def major_faults(pid: int, root: str = "/") -> int | None:
    """Page faults of `pid` that waited for a disk (field 12), of all its threads since it started."""
    fields = (files.text(Path(root, "proc", str(pid), "stat")) or "").rpartition(")")[2].split()
    return int(fields[9]) if len(fields) > 9 and fields[9].isdecimal() else None


def memory(pid: int, root: str = "/") -> Memory | None:
    """What `pid` has; None: it has gone. Raises HostError when it may not be looked at.

    From smaps_rollup, which walks the page tables (some 0.1 s for each 10 GiB of small pages), since the counters in
    `status` lag by up to hundreds of megabytes on large hosts and know nothing of shared memory in swap. A kernel or a
    container without it: from `status`, and the rest is unknown.
    """
    folder = Path(root, "proc", str(pid))
    rolled = files.text(folder / "smaps_rollup")
    sizes = _sizes(rolled or files.text(folder / "status") or "")
    if not rolled:
        known = "VmRSS" in sizes
        return (
            Memory(
                sizes["VmRSS"],
                None,
                None,
                sizes.get("RssAnon"),
                sizes.get("RssFile"),
                sizes.get("RssShmem"),
                sizes.get("VmLck"),
            )
            if known
            else None
        )
    status = _sizes(files.text(folder / "status") or "")
    large = [sizes.get(each) for each in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")]
    hugetlb = sizes.get("Shared_Hugetlb", 0) + sizes.get("Private_Hugetlb", 0)  # which is not in Rss
    known_large = [each for each in large if each is not None]
    return Memory(
        sizes["Rss"] + hugetlb if "Rss" in sizes else None,
        sizes.get("Swap"),
        sum(known_large) + hugetlb if known_large else None,
        sizes.get("Anonymous"),
        status.get("RssFile"),
        status.get("RssShmem"),
        sizes.get("Locked"),
    )


def _sizes(content: str) -> dict[str, int]:
    """Bytes, of the lines "Name:   12 kB"."""
    found = {}
    for line in content.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            found[name] = int(words[0]) * 1024
    return found


def identify(pid: int, root: str = "/") -> Identity | None:
    """The identity of a live process."""
    ticks = start_ticks(pid, root)
    return None if ticks is None else Identity(pid, ticks)


def alive(who: Identity, root: str = "/") -> bool:
    return who.pid > 0 and start_ticks(who.pid, root) == who.start_ticks


def commands(pid: int, root: Path = Path("/")) -> set[str]:
    """What a process may be called: its command's name as `ps -o comm` shows it, and its program's file name. None of
    them when it has gone, is another user's, or is a thread of the kernel."""
    folder = root / "proc" / str(pid)
    try:
        names = {(files.text(folder / "comm") or "").strip(), os.path.basename(os.readlink(folder / "exe"))}
    except (OSError, HostError):
        return set()
    return names - {""}


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
