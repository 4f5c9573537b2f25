"""A setting of all threads of a process put back as it was before `per_thread.change`.

Used by `undo`. A thread that was started since gets what the one that started it had before; so do children that were
started since and are still below the process, or in its cgroup. What somebody else has set since is left alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from sustain.errors import HostError
from sustain.host import processes
from sustain.host.affinity import Written
from sustain.host.processes import Identity
from sustain.schedulers.journal import Entry
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages import cgroups
from sustain.schedulers.packages.came import Back, words
from sustain.schedulers.packages.handles import CgroupHandle
from sustain.schedulers.packages.per_thread import (
    MOST_PASSES,
    Notes,
    Setting,
    cgroup_of,
    process_of,
    thread_of,
)

T = TypeVar("T")


def put_back(
    setting: Setting[T], entry: Entry, entries: tuple[Entry, ...], beat: Callable[[], None] = no_beat
) -> Back:
    """A process's entry: all its threads but those that have one of their own (`entries`: all of the journal). Raises
    HostError when some could not be put back."""
    return _PutBack(setting, entry, entries).carry_out(beat)


class _PutBack(Generic[T]):
    def __init__(self, setting: Setting[T], entry: Entry, entries: tuple[Entry, ...]) -> None:
        self._setting = setting
        self._process = process_of(entry)
        self._notes = Notes(setting, self._process, entries)
        self._sets = self._notes.sets(entry)
        self._prior = self._notes.prior(entry)
        self._back = setting.back(self._prior, free=bool(entry.target["free"]))
        self._since = int(entry.target["since"])
        self._others = {process_of(each) for each in entries if each.kind == setting.kind}
        self._cgroup = _first_of_cgroup(entry, entries)
        self._written = 0
        self._again = False
        self._given: dict[Identity, T] = {}  # what the kernel has made of it
        self._refused: dict[Identity, str] = {}

    def carry_out(self, beat: Callable[[], None]) -> Back:
        for _ in range(MOST_PASSES):
            now = self._setting.all(self._process)
            if now is None:
                self._follow(self._in_cgroup(), beat)
                return Back("gone")
            self._again, others = False, 0
            for thread, value in now.items():
                beat()
                if thread not in self._notes.own and thread not in self._refused:
                    others += not self._one(thread, value)
            self._follow(processes.descendants(self._process.pid) + self._in_cgroup(), beat)
            if not self._again:
                return self._end(others, len(now))
        raise HostError(
            f"process {self._process.pid} starts threads faster than they can be put back",
            hint="stop it, or try again",
        )

    def _in_cgroup(self) -> list[Identity]:
        """Those that have left their parent are still in it."""
        if self._cgroup is None or not self._cgroup.there():
            return []
        return cgroups.members(self._cgroup.directory)

    def _follow(self, children: list[Identity], beat: Callable[[], None]) -> None:
        """Who was started since has it from us. Children that are set otherwise, or were there before, are not ours."""
        for child in children:
            if child in self._others or child.start_ticks < self._since:
                continue
            for thread, value in (self._setting.all(child) or {}).items():
                beat()
                if thread not in self._refused and value != self._prior:
                    self._one(thread, value)

    def _one(self, thread: Identity, value: T) -> bool:
        """False: somebody else has set it."""
        if value == self._prior or self._given.get(thread) == value:
            return True
        was = self._was(value)
        if was is None:
            return False
        try:
            came, now = self._setting.write(thread, self._back if was == self._prior else was, value)
        except HostError as error:
            self._refused[thread] = words(error)
        else:
            self._written += came is Written.DONE
            self._again |= came in (Written.DONE, Written.CHANGED)
            if came is Written.DONE and now is not None:
                self._given[thread] = now
        return True

    def _was(self, value: T) -> T | None:
        """What a thread that has that had before us; None: it is not from us."""
        if any(self._setting.is_ours(self._process, value, each) for each in self._sets):
            return self._prior
        for own in self._notes.own.values():  # it was started by such a one
            if value in self._notes.sets(own):
                return self._notes.prior(own)
        return None

    def _end(self, others: int, of: int) -> Back:
        if self._refused:
            raise HostError(
                f"process {self._process.pid}: {len(self._refused)} threads are not as they were: "
                f"{next(iter(self._refused.values()))}",
                hint="it is tried again the next time something is put back",
            )
        if not others:
            return Back("restored", "", self._written)
        detail = f"threads that somebody else has set since are left alone: {others}"
        return Back("changed" if others == of else "restored", detail, self._written)


def put_back_own(setting: Setting[T], entry: Entry) -> Back:
    """The entry of a thread that had its own. Raises HostError."""
    process, thread = process_of(entry), thread_of(entry)
    now = (setting.all(process) or {}).get(thread)
    if now is None:
        return Back("gone")
    prior = setting.decode(entry.prior)
    if now == prior:
        return Back("restored")
    if not any(setting.is_ours(process, now, setting.decode(each)) for each in entry.sets):
        return Back("changed", f"thread {thread.pid} was set by somebody else since")
    came, _ = setting.write(thread, prior, now)
    return Back("gone" if came is Written.GONE else "restored", "", int(came is Written.DONE))


def _first_of_cgroup(entry: Entry, entries: tuple[Entry, ...]) -> CgroupHandle | None:
    """The cgroup whose threads are bound one by one, of its earliest entry: one is enough to look at all of it."""
    where = cgroup_of(entry)
    if where is None:
        return None
    same = [
        (int(each.target["since"]), each.key)
        for each in entries
        if each.kind == entry.kind and cgroup_of(each) == where
    ]
    if same and min(same)[1] != entry.key:
        return None
    return CgroupHandle(Path(where[0]), where[1])
