"""A cgroup's processors, changed by its cpuset and put back.

Used by `act` and `undo`. The kernel moves all threads in it, also those that are being started. Since Linux 6.2 it
remembers the affinity that somebody has set for a thread, and gives it back with the processors; before, it forgets.
So threads that have one of their own are noted, looked at after the write, and are given what the kernel has forgotten.

A cgroup that has no cpuset of its own is refused: enabling one resets affinities in the cgroups beside it.
"""

import errno
from pathlib import Path

from sustain.errors import HostError
from sustain.host import affinity, cgroup, files
from sustain.host.affinity import Written
from sustain.host.cpuset import Cpuset
from sustain.host.processes import Identity, identify
from sustain.schedulers.journal import Entry, Journal, Value
from sustain.schedulers.packages.came import Back, Came
from sustain.schedulers.packages.settings import Affinity

KIND = "package-cpuset"
THREAD = "package-cpuset-thread"
Cpus = frozenset[int]


def find(directory: Path, inode: int, root: Path = Path("/")) -> Cpuset | None:
    """The cpuset of that cgroup; None: it has gone. Raises HostError."""
    try:
        found = Cpuset.open(directory, root)
    except HostError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return found if found.inode == inode else None


def members(directory: Path, root: Path = Path("/")) -> list[Identity]:
    """The processes in it and in all cgroups below."""
    try:
        found = (identify(pid, str(root)) for pid in cgroup.members(directory, root))
        return [each for each in found if each is not None]
    except HostError:
        if not directory.exists():
            return []
        raise


def place(group: str, life: str, cpuset: Cpuset, wanted: Cpus, journal: Journal, root: Path) -> Came:
    """`cpuset` is enabled. Raises JournalError: then nothing was done."""
    return _Placing(group, life, cpuset, wanted, journal, root).carry_out()


class _Placing:
    def __init__(
        self, group: str, life: str, cpuset: Cpuset, wanted: Cpus, journal: Journal, root: Path
    ) -> None:
        self._cpuset = cpuset
        self._wanted = wanted
        self._journal = journal
        self._root = root
        self._key = f"{KIND}:{cpuset.inode}:{cpuset.directory}"
        self._target: dict[str, Value] = {
            "group": group,
            "life": life,
            "directory": str(cpuset.directory),
            "inode": cpuset.inode,
        }

    def carry_out(self) -> Came:
        now = self._cpuset.own_cpus()
        if now is None:
            return Came("gone", "the cgroup has gone")
        held = next((each for each in self._journal.entries() if each.key == self._key), None)
        prior = now if held is None else files.cpus(str(held.prior))
        if held is not None and not _is(self._cpuset, now, prior) and not _ours(self._cpuset, held, now):
            return Came(
                "changed", f"somebody else has set it to {files.cpu_list(now) or 'what is above'} since"
            )
        if prior and not self._wanted <= prior:
            return Came("refused", f"somebody else has set it to processors {files.cpu_list(prior)}")
        if now == self._wanted:
            return self._there(self._cpuset.cpus())
        if (partition := self._cpuset.partition()) not in (None, "member"):
            return Came("refused", f"it is a partition ({partition}), whose processors are taken from others")
        return self._write(now, prior, first=held is None)

    def _write(self, now: Cpus, prior: Cpus, *, first: bool) -> Came:
        bound = self._bound()
        for thread, cpus in bound.items():
            self._note_thread(thread, cpus)
        self._journal.note(self._key, KIND, self._target, files.cpu_list(prior), files.cpu_list(self._wanted))
        try:
            effective = self._cpuset.set_cpus(self._wanted)
        except HostError as error:
            if first:
                self._forget(bound)
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return Came("gone", str(error))
            return Came("refused", f"{error} ({error.hint})" if error.hint else str(error))
        came = self._there(effective)
        if came.outcome == "refused":
            self._cpuset.set_cpus(now)
            if first:
                self._forget(bound)
        if came.outcome != "done":
            return came
        details = [came.detail] if came.detail else []
        details += self._keep(bound, effective or frozenset())
        return Came("done", "; ".join(details), 1)

    def _there(self, effective: Cpus | None) -> Came:
        """Whether what is in effect is what was set."""
        if effective is None:
            return Came("gone", "the cgroup went meanwhile")
        if not effective <= self._wanted:
            cpus = files.cpu_list(effective)
            return Came(
                "refused", f"none of these processors is online and in the cgroup above: it runs on {cpus}"
            )
        if effective == self._wanted:
            return Came("done")
        return Came("done", f"only {files.cpu_list(effective)} of them are online and in the cgroup above")

    def _bound(self) -> dict[Identity, Cpus]:
        """What threads were bound to before we came that may not run on all that their cpuset has."""
        setting = Affinity(self._root)
        now = {
            thread: cpus
            for process in members(self._cpuset.directory, self._root)
            for thread, cpus in (setting.all(process) or {}).items()
            if not setting.free(process, cpus)
        }
        held = {
            _thread(each): files.cpus(str(each.prior))
            for each in self._journal.entries()
            if each.kind == THREAD and each.target["inode"] == self._cpuset.inode
        }
        return now | held

    def _keep(self, bound: dict[Identity, Cpus], effective: Cpus) -> list[str]:
        """Let bound threads keep to what they were bound to, as far as they can."""
        forgotten, outside = 0, 0
        for thread, cpus in bound.items():
            kept = cpus & effective
            now = affinity.read(thread, self._root)
            if not kept:
                outside += now is not None
            elif now is not None and now != kept and kept < now:
                forgotten += affinity.write(thread, kept, now).written is Written.DONE
        details = []
        if forgotten:
            details.append(f"threads whose affinity this kernel forgets, set again: {forgotten}")
        if outside:
            details.append(f"threads that were bound to others run here meanwhile: {outside}")
        return details

    def _note_thread(self, thread: Identity, cpus: Cpus) -> None:
        key = f"{THREAD}:{thread.pid}:{thread.start_ticks}"
        target = {**self._target, "thread": thread.pid, "thread_started": thread.start_ticks}
        new = files.cpu_list(cpus & self._wanted or self._wanted)
        self._journal.note(key, THREAD, target, files.cpu_list(cpus), new)

    def _forget(self, bound: dict[Identity, Cpus]) -> None:
        """Nothing was changed."""
        self._journal.forget(self._key)
        for thread in bound:
            self._journal.forget(f"{THREAD}:{thread.pid}:{thread.start_ticks}")


def refusal(cpuset: Cpuset) -> str:
    """Why a cgroup that has no cpuset of its own is left alone, and what to do."""
    what = cpuset.enabling()
    if what.problem is not None:
        return f"it has no cpuset of its own: {what.problem}"
    where = ", ".join(str(each) for each in what.directories)
    return (
        f"it has no cpuset of its own, and giving it one moves {what.processes} processes, also of the cgroups "
        f"beside it (write +cpuset to cgroup.subtree_control of {where}, or give the unit an AllowedCPUs=)"
    )


def put_back(entry: Entry, root: Path = Path("/")) -> Back:
    """A cgroup's own entry. Raises HostError."""
    cpuset = find(Path(str(entry.target["directory"])), int(entry.target["inode"]), root)
    now = None if cpuset is None else cpuset.own_cpus()
    if cpuset is None or now is None:
        return Back("gone")
    prior = files.cpus(str(entry.prior))
    if _is(cpuset, now, prior):
        return Back("restored")
    if not _ours(cpuset, entry, now):
        return Back("changed", f"somebody else has set it to {files.cpu_list(now) or 'what is above'} since")
    try:
        cpuset.set_cpus(prior)
    except HostError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return Back("gone")
        raise
    return Back("restored", "", 1)


def put_back_thread(entry: Entry, root: Path = Path("/")) -> Back:
    """A thread's that was bound, after its cgroup's: where the kernel has not given back what it was bound to."""
    thread = _thread(entry)
    now = affinity.read(thread, root)
    if now is None:
        return Back("gone")
    prior = files.cpus(str(entry.prior))
    if now == prior:
        return Back("restored")
    inside = Cpuset.of_process(thread.pid, root)
    allowed = (inside.cpus() if inside is not None else None) or frozenset()
    sets = [files.cpus(str(each)) for each in entry.sets]
    if not (now in sets or allowed <= now) or not prior & allowed:
        return Back("changed", f"thread {thread.pid} was set by somebody else since, or is elsewhere")
    came = affinity.write(thread, prior, now).written
    return Back("gone" if came is Written.GONE else "restored", "", int(came is Written.DONE))


def _thread(entry: Entry) -> Identity:
    return Identity(int(entry.target["thread"]), int(entry.target["thread_started"]))


def _is(cpuset: Cpuset, now: Cpus, prior: Cpus) -> bool:
    """A list of version 2 that was empty can only be emptied while there are no threads; then it is given all
    processors that there could be, which is the same in effect."""
    return now == prior or (not prior and cpuset.inherits(now))


def _ours(cpuset: Cpuset, entry: Entry, now: Cpus) -> bool:
    """Version 1 takes offline processors out of its lists."""
    sets = [files.cpus(str(each)) for each in entry.sets]
    return now in sets or (cpuset.version == 1 and any(now and now < each for each in sets))
