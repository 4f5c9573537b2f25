"""Making a program stand still, and letting it go on: by signal, by cgroup, by QEMU's own `stop`.

Used by the pre-copier: at an outage before the last changed pages are looked for, and in short slices when the
program changes more than the battery allows. `freeze` returns when everything *has* stopped, not when it was told to:
a thread that is in the kernel goes on until it comes out. Both calls may be repeated, also by another process
than the one that froze: nothing is remembered that /proc, the cgroup or QEMU does not say.

What is under way in the kernel on behalf of a stopped process (asynchronous I/O that was submitted) is not stopped
by any of them.
"""

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from sustain.errors import ConfigError, HostError, RegionBusy, RegionIOError
from sustain.host.maps import all_pids
from sustain.host.processes import Identity, identify, kill, start_ticks
from sustain.host.qmp import Qmp

_POLL_S = 0.0005
_STOPPED = frozenset("TtZX")


class Freezer(ABC):
    """One way, for one program."""

    @abstractmethod
    def freeze(self, timeout_s: float = 10.0) -> None:
        """Until all of it stands still. Raises RegionBusy at the time-out, RegionIOError; the program may be half
        stopped then: `thaw`."""

    @abstractmethod
    def thaw(self) -> None:
        """All of it goes on. Never fails for what has ended meanwhile."""


class SignalFreezer(Freezer):
    """SIGSTOP to a process group (None: there is none) and to all of its session, and to `others`, which do not
    belong to it."""

    def __init__(self, group: int | None, root: Path = Path("/")) -> None:
        if group is not None and (group <= 1 or os.getpgid(0) == group or os.getsid(0) == group):
            raise ConfigError(
                f"process group {group} cannot be frozen from within",
                hint="give the group of a program that runs in a session of its own",
            )
        self.others: set[Identity] = set()
        self._group = group
        self._root = root
        self._leader = None if group is None else identify(group, str(root))

    def members(self) -> set[Identity]:
        """Those of the group and its session that live now, without `others`."""
        if self._group is None:
            return set()
        leader = identify(self._group, str(self._root))
        if leader is not None and self._leader is not None and leader != self._leader:
            return set()  # the number names somebody else by now
        found = set()
        for pid in all_pids(self._root):
            group, session = _group_and_session(pid, self._root)
            ticks = start_ticks(pid, str(self._root)) if self._group in (group, session) else None
            if ticks is not None:
                found.add(Identity(pid, ticks))
        return found

    def freeze(self, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        settled: set[Identity] | None = None
        while True:
            # A member may be starting another one while it is told: until nobody new comes and all have stopped.
            late = time.monotonic() > deadline
            members = self.members() | self.others
            running = {each for each in members if not _has_stopped(each, self._root)}
            if not running and members == settled:
                return
            # To look at all processes may take longer than the time-out: a look that began after it decides.
            if late and (running or settled is not None):
                raise _busy(running, timeout_s)
            settled = members if not running else None
            for each in running:
                kill(each, signal.SIGSTOP)
            if running:
                time.sleep(_POLL_S)

    def thaw(self) -> None:
        for each in self.members() | self.others:
            kill(each, signal.SIGCONT)


class CgroupFreezer(Freezer):
    """The freezer of a cgroup, version 2 (`cgroup.freeze`) or 1 (`freezer.state`)."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._second = (self._directory / "cgroup.freeze").exists()
        if not self._second and not (self._directory / "freezer.state").exists():
            raise ConfigError(
                f"{directory}: not a cgroup that can be frozen",
                hint="give the directory of a cgroup below the root, with cgroup.freeze or freezer.state",
            )

    def freeze(self, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        self._set("cgroup.freeze" if self._second else "freezer.state", "1" if self._second else "FROZEN")
        while not self._frozen():
            if time.monotonic() > deadline:
                raise RegionBusy(
                    f"{self._directory}: not frozen within {timeout_s:g} s",
                    hint="a process of it is in an uninterruptible call; look at its /proc/PID/stack",
                )
            time.sleep(_POLL_S)

    def thaw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._set("cgroup.freeze" if self._second else "freezer.state", "0" if self._second else "THAWED")

    def _frozen(self) -> bool:
        text = self._get("cgroup.events" if self._second else "freezer.state")
        return "frozen 1" in text.splitlines() if self._second else text.strip() == "FROZEN"

    def _get(self, name: str) -> str:
        path = self._directory / name
        try:
            return path.read_text(encoding="ascii")
        except OSError as error:
            raise RegionIOError(f"{path}: {error.strerror}", hint="") from None

    def _set(self, name: str, value: str) -> None:
        path = self._directory / name
        try:
            path.write_text(value, encoding="ascii")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RegionIOError(
                f"{path}: {error.strerror}", hint="it needs root, or a delegated cgroup"
            ) from None


class QmpFreezer(Freezer):
    """A QEMU guest: `stop` returns when no processor runs and the devices have come to rest."""

    def __init__(self, path: str) -> None:
        self._path = path

    def freeze(self, timeout_s: float = 10.0) -> None:
        try:
            with Qmp(self._path, timeout_s) as guest:
                guest.ask("stop")
                running = guest.ask("query-status").get("running")
        except HostError as error:
            raise RegionIOError(str(error), hint=error.hint, errno=error.errno) from None
        if running:
            raise RegionBusy(f"{self._path}: the guest still runs after `stop`", hint="")

    def thaw(self) -> None:
        with contextlib.suppress(HostError), Qmp(self._path) as guest:
            guest.ask("cont")


def open_freezer(spec: str, group: int | None) -> Freezer:
    """The one that `spec` names: signal (for `group`), cgroup:DIR, qmp:SOCKET."""
    kind, _, place = spec.partition(":")
    if kind == "signal" and not place:
        return SignalFreezer(group)
    if kind == "cgroup" and place:
        return CgroupFreezer(place)
    if kind == "qmp" and place:
        return QmpFreezer(place)
    raise ConfigError(f"--freeze {spec!r} is not known", hint="signal, cgroup:DIR or qmp:SOCKET")


def _has_stopped(who: Identity, root: Path) -> bool:
    """Whether all its threads stand still; so does what has ended."""
    if start_ticks(who.pid, str(root)) != who.start_ticks:
        return True
    folder = root / "proc" / str(who.pid) / "task"
    try:
        threads = os.listdir(folder)
    except OSError:
        return True
    return all(_state(folder / each / "stat") in _STOPPED for each in threads)


def _state(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def _group_and_session(pid: int, root: Path) -> tuple[int, int]:
    try:
        text = (root / "proc" / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return int(fields[2]), int(fields[3])
    except (OSError, IndexError, ValueError):
        return 0, 0


def _busy(running: Iterable[Identity], timeout_s: float) -> RegionBusy:
    names = ", ".join(str(each.pid) for each in sorted(running)) or "new ones all the time"
    return RegionBusy(
        f"processes not stopped within {timeout_s:g} s: {names}",
        hint="a process in an uninterruptible call stops when that ends; look at its /proc/PID/stack",
    )


def cgroup_freezers(root: Path = Path("/")) -> list[str]:
    """Where this host's cgroups can be frozen: "version 2 at …", "version 1 at …"."""
    base = root / "sys/fs/cgroup"
    second = [each for each in (base, base / "unified") if (each / "cgroup.controllers").exists()]
    first = [each for each in (base / "freezer",) if (each / "cgroup.procs").exists()]
    return [f"version 2 at {each}" for each in second] + [f"version 1 at {each}" for each in first]
