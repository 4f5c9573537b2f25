"""The two settings that each thread has for itself, as `per_thread` changes them: where it may run, and its timers.

Used by `act` and `undo`. One is made for each thing that is done, since it remembers what it has read of a process.
"""

from pathlib import Path

from sustain.host import affinity, files, threads, timer_slack
from sustain.host.affinity import Written
from sustain.host.cpuset import Cpuset
from sustain.host.processes import Identity
from sustain.schedulers.journal import Value

Cpus = frozenset[int]


class Affinity:
    """The processors that a thread may run on."""

    kind = "package-affinity"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._allowed: dict[Identity, Cpus] = {}
        self._possible: Cpus | None = None

    def all(self, process: Identity) -> dict[Identity, Cpus] | None:
        """Threads of the kernel that nobody can move are left out."""
        found: dict[Identity, Cpus] = {}
        for thread in _threads(process, self._root) or ():
            if not thread.fixed and (cpus := affinity.read(thread.who, self._root)) is not None:
                found[thread.who] = cpus
        return found or None

    def write(self, thread: Identity, value: Cpus, expected: Cpus) -> tuple[Written, Cpus | None]:
        """Before Linux 6.2 a thread is given none that is off line."""
        came = affinity.write(thread, value, expected)
        return came.written, came.cpus

    def objection(self, prior: Cpus, wanted: Cpus) -> str:
        if wanted <= prior:
            return ""
        return f"it was bound to processors {files.cpu_list(prior)} by somebody else"

    def within(self, own: Cpus, wanted: Cpus) -> Cpus:
        return own & wanted or own

    def serves(self, process: Identity, now: Cpus, wanted: Cpus) -> bool:
        """The kernel cuts it to the cpuset."""
        return now == wanted or now == wanted & self._cpuset(process)

    def is_ours(self, process: Identity, now: Cpus, value: Cpus) -> bool:
        """It may be cut, also later when the cpuset changes; where nothing is left of it (all are offline, or in
        another cpuset) the kernel gives all that there are."""
        if now == value:
            return True
        allowed = self._cpuset(process)
        cut = value & allowed
        return now == cut if cut else bool(allowed) and allowed <= now

    def free(self, process: Identity, value: Cpus) -> bool:
        """It may run wherever its cpuset allows."""
        return self._cpuset(process) <= value

    def back(self, prior: Cpus, *, free: bool) -> Cpus:
        """Since Linux 6.2 the kernel remembers what was asked for, and cuts it to the cpuset: so who was free is given
        all processors there can be, and follows its cpuset as before."""
        if not free:
            return prior
        if self._possible is None:
            self._possible = files.cpus(files.text(self._root / "sys/devices/system/cpu/possible"))
        return self._possible or prior

    def width(self, value: Cpus) -> int:
        return len(value)

    def encode(self, value: Cpus) -> Value:
        return files.cpu_list(value)

    def decode(self, value: Value) -> Cpus:
        return files.cpus(str(value))

    def _cpuset(self, process: Identity) -> Cpus:
        """Where its cpuset lets it run; empty: unknown."""
        if process not in self._allowed:
            found = Cpuset.of_process(process.pid, self._root)
            self._allowed[process] = (found.cpus() if found is not None else None) or frozenset()
        return self._allowed[process]


class Slack:
    """How late a thread's timers may be, in nanoseconds. Who has chosen that for itself keeps it."""

    kind = "package-slack"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def all(self, process: Identity) -> dict[Identity, int] | None:
        """Real-time threads are left out: their timers are never late."""
        found: dict[Identity, int] = {}
        listed = _threads(process, self._root)
        for thread in listed or ():
            if not thread.real_time and (slack := timer_slack.read(thread.who, self._root)) is not None:
                found[thread.who] = slack
        return found if listed else None

    def write(self, thread: Identity, value: int, expected: int) -> tuple[Written, int | None]:
        now = timer_slack.read(thread, self._root)
        if now is not None and now != expected:
            return Written.CHANGED, now
        return timer_slack.write(thread, value, self._root), value

    def objection(self, prior: int, wanted: int) -> str:
        return ""

    def within(self, own: int, wanted: int) -> int:
        return own

    def serves(self, process: Identity, now: int, wanted: int) -> bool:
        return now == wanted

    def is_ours(self, process: Identity, now: int, value: int) -> bool:
        return now == value

    def free(self, process: Identity, value: int) -> bool:
        return False

    def back(self, prior: int, *, free: bool) -> int:
        return prior

    def width(self, value: int) -> int:
        return 0

    def encode(self, value: int) -> Value:
        return value

    def decode(self, value: Value) -> int:
        return int(value)


def _threads(process: Identity, root: Path) -> tuple[threads.Thread, ...] | None:
    """Of just that process; None: it has gone."""
    found = threads.read(process.pid, root)
    use = threads.use(process.pid, root)
    # What was read is its own only if the number was so until after.
    if found is None or use is None or use.who != process:
        return None
    return found
