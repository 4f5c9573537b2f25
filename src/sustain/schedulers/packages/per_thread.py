"""One setting of all threads of a process, changed and put back: where they may run, how late their timers may be.

Used by `act` and `undo`. The model: most threads of a process have the same value. The journal has one entry for it,
and one for each thread that has a value of its own, which whoever set it meant: such a thread is moved only within
that. A thread that is started has the value of the one that started it, so a list of threads is stale at once: it is
read again until a whole pass has found nothing to write. When it is put back, a thread that was started meanwhile gets
what the one that started it had before; so do children that were started meanwhile and are still below the process. A
process that has come to the group since, with what we gave another one, is noted as it would have been without us.

Entries of threads with their own values are noted before the process's, and put back after it: so that at no moment
one of them is taken for one of the others.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sustain.errors import HostError
from sustain.host import processes
from sustain.host.affinity import Written
from sustain.host.processes import Identity
from sustain.host.threads import TICKS_PER_S
from sustain.schedulers.journal import Entry, Journal, Value
from sustain.schedulers.packages.came import Came, words
from sustain.schedulers.packages.handles import CgroupHandle

T = TypeVar("T")
MOST_PASSES = 200  # of which each but the last has found threads that were just started


class Setting(Protocol[T]):
    """One of a thread's settings. Reading and writing raise HostError."""

    kind: str  # of a process's entry; with OWN of a thread's

    def all(self, process: Identity) -> dict[Identity, T] | None:
        """Of each thread that can be changed; None: the process has gone."""

    def write(self, thread: Identity, value: T, expected: T) -> tuple[Written, T | None]:
        """And what it has now; None: it has gone."""

    def objection(self, prior: T, wanted: T) -> str:
        """Why a process that has `prior` may not get `wanted`; "": it may."""

    def within(self, own: T, wanted: T) -> T:
        """What a thread gets that has a value of its own."""

    def serves(self, process: Identity, now: T, wanted: T) -> bool:
        """Whether `now` is as good as `wanted`."""

    def is_ours(self, process: Identity, now: T, value: T) -> bool:
        """Whether `now` is what `value` looks like when the kernel has taken it."""

    def free(self, process: Identity, value: T) -> bool:
        """Whether it is what a process has for which nobody has set anything."""

    def back(self, prior: T, *, free: bool) -> T:
        """What to write so that it is as it was."""

    def width(self, value: T) -> int:
        """How little it restricts."""

    def encode(self, value: T) -> Value: ...

    def decode(self, value: Value) -> T: ...


OWN = "-own"


@dataclass(frozen=True, slots=True)
class Of:
    """Whose it is: the group's name and life, and one of its processes; of a cgroup also that."""

    group: str
    life: str
    process: Identity
    cgroup: CgroupHandle | None = None

    def key(self, kind: str) -> str:
        return f"{kind}:{self.process.pid}:{self.process.start_ticks}"

    def target(self) -> dict[str, Value]:
        target: dict[str, Value] = {
            "group": self.group,
            "life": self.life,
            "pid": self.process.pid,
            "started": self.process.start_ticks,
        }
        if self.cgroup is not None:
            target |= {"directory": str(self.cgroup.directory), "inode": self.cgroup.inode}
        return target


class Notes(Generic[T]):
    """What the journal holds of one process and setting."""

    def __init__(self, setting: Setting[T], process: Identity, entries: tuple[Entry, ...]) -> None:
        self._setting = setting
        self.common: Entry | None = None
        self.own: dict[Identity, Entry] = {}
        for entry in entries:
            if entry.kind == setting.kind and process_of(entry) == process:
                self.common = entry
            elif entry.kind == setting.kind + OWN and process_of(entry) == process:
                self.own[thread_of(entry)] = entry

    def sets(self, entry: Entry) -> list[T]:
        return [self._setting.decode(each) for each in entry.sets]

    def prior(self, entry: Entry) -> T:
        return self._setting.decode(entry.prior)


def change(
    of: Of, setting: Setting[T], wanted: T, journal: Journal, goes_on: Callable[[], bool] = lambda: True
) -> Came:
    """Give `wanted` to all threads of a process. Raises JournalError: then no more is done."""
    return _Change(of, setting, wanted, journal).carry_out(goes_on)


class _Change(Generic[T]):
    def __init__(self, of: Of, setting: Setting[T], wanted: T, journal: Journal) -> None:
        self._of = of
        self._setting = setting
        self._wanted = wanted
        self._journal = journal
        self._written = 0
        self._again = False  # whether this pass has found something to do
        self._stay: dict[Identity, str] = {}
        self._refused: dict[Identity, str] = {}

    def carry_out(self, goes_on: Callable[[], bool]) -> Came:
        now = self._setting.all(self._of.process)
        if not now:
            return Came("gone", f"process {self._of.process.pid} has ended")
        notes = self._read()
        if notes.common is None and self._inherits(self._common(now)):
            notes = self._read()
        if notes.common is None:
            prior = self._common(now)
        else:
            prior = notes.prior(notes.common)
            if not any(self._known(notes, each, prior) for each in now.values()):
                return Came("changed", "somebody else has set all of its threads since")
        if why := self._setting.objection(prior, self._wanted):
            return Came("refused", why)
        if notes.common is None and not any(self._differs(each, prior) for each in now.values()):
            return Came("done")
        self._note(notes, now, prior)
        for _ in range(MOST_PASSES):
            notes, self._again = self._read(), False
            for number, (thread, value) in enumerate(now.items()):
                if number and not goes_on():
                    return Came("again later", f"threads that are left: {len(now) - number}", self._written)
                self._one(notes, thread, value)
            if not self._again:
                return self._end()
            now = self._setting.all(self._of.process) or {}
        return Came("again later", "it starts threads faster than they can be dealt with here", self._written)

    def _end(self) -> Came:
        details = []
        if self._stay:
            which = ", ".join(f"{thread.pid} ({why})" for thread, why in list(self._stay.items())[:3])
            details.append(f"threads that have their own setting stay within it: {len(self._stay)}: {which}")
        if self._refused:
            which = "; ".join(list(self._refused.values())[:3])
            details.append(f"threads that could not be set: {len(self._refused)}: {which}")
        return Came("refused" if self._refused else "done", "; ".join(details), self._written)

    def _read(self) -> Notes[T]:
        return Notes(self._setting, self._of.process, self._journal.entries())

    def _inherits(self, value: T) -> bool:
        """Whether it was started with what we gave another one, whose prior is then its own, and noted as that."""
        giver = self._giver(value)
        if giver is None:
            return False
        target = {**self._of.target(), "free": giver.target["free"], "since": giver.target["since"]}
        key = self._of.key(self._setting.kind)
        self._journal.note(key, self._setting.kind, target, giver.prior, self._setting.encode(value))
        return True

    def _giver(self, value: T) -> Entry | None:
        """The entry of the process that it has `value` from: one above it, else one of its cgroup."""
        process = self._of.process
        above = processes.parents(process.pid)
        here = None if self._of.cgroup is None else (str(self._of.cgroup.directory), self._of.cgroup.inode)
        given = [
            each
            for each in self._journal.entries()
            if each.kind == self._setting.kind
            and process.start_ticks >= int(each.target["since"])
            and (int(each.target["pid"]) in above or (here is not None and cgroup_of(each) == here))
            and value != self._setting.decode(each.prior)
            and any(self._setting.is_ours(process, value, self._setting.decode(one)) for one in each.sets)
        ]
        return max(given, key=lambda each: int(each.target["pid"]) in above, default=None)

    def _common(self, now: Mapping[Identity, T]) -> T:
        """What most threads have; of as many, what restricts least."""
        count = Counter(now.values())
        return max(count, key=lambda each: (count[each], self._setting.width(each)))

    def _known(self, notes: Notes[T], value: T, prior: T) -> bool:
        """Whether a thread has what most had, or what we gave them."""
        return value == prior or any(
            self._setting.is_ours(self._of.process, value, each)
            for each in (notes.sets(notes.common) if notes.common is not None else ())
        )

    def _differs(self, value: T, prior: T) -> bool:
        """Whether a thread that has that before anything was set is to be given something else."""
        to = self._wanted if value == prior else self._setting.within(value, self._wanted)
        return value != to

    def _note(self, notes: Notes[T], now: Mapping[Identity, T], prior: T) -> None:
        """Threads that have their own first."""
        for thread, value in now.items():
            if thread not in notes.own and not self._known(notes, value, prior):
                self._note_own(thread, value, self._setting.within(value, self._wanted))
        held = notes.common
        target = self._of.target() if held is None else held.target
        if held is None:
            target["free"] = int(self._setting.free(self._of.process, prior))
            target["since"] = int(time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_S)
        key = self._of.key(self._setting.kind)
        encode = self._setting.encode
        self._journal.note(key, self._setting.kind, target, encode(prior), encode(self._wanted))

    def _note_own(self, thread: Identity, prior: T, new: T) -> None:
        kind, encode = self._setting.kind + OWN, self._setting.encode
        key = f"{self._of.key(kind)}:{thread.pid}:{thread.start_ticks}"
        target = {**self._of.target(), "thread": thread.pid, "thread_started": thread.start_ticks}
        self._journal.note(key, kind, target, encode(prior), encode(new))

    def _one(self, notes: Notes[T], thread: Identity, now: T) -> None:
        setting = self._setting
        if thread in self._refused:
            return
        own, wanted = notes.own.get(thread), self._wanted
        assert notes.common is not None
        if own is not None:
            prior = notes.prior(own)
            if now != prior and now not in notes.sets(own):
                self._stay[thread] = "set by somebody else since"
                return
            wanted = setting.within(prior, self._wanted)
        elif now != wanted and not self._known(notes, now, notes.prior(notes.common)):
            wanted = setting.within(now, self._wanted)
            self._note_own(thread, now, wanted)
        if wanted != self._wanted:
            self._stay[thread] = str(setting.encode(wanted))
        if setting.serves(self._of.process, now, wanted):
            return
        if own is not None and notes.sets(own)[0] != wanted:
            self._note_own(thread, notes.prior(own), wanted)
        try:
            came, _ = setting.write(thread, wanted, now)
        except HostError as error:
            self._refused[thread] = words(error)
            return
        self._written += came is Written.DONE
        self._again |= came in (Written.DONE, Written.CHANGED)


def cgroup_of(entry: Entry) -> tuple[str, int] | None:
    """Directory and inode of the cgroup that an entry's process was found in; None: it was found otherwise."""
    target = entry.target
    return (str(target["directory"]), int(target["inode"])) if "directory" in target else None


def process_of(entry: Entry) -> Identity:
    return Identity(int(entry.target["pid"]), int(entry.target["started"]))


def thread_of(entry: Entry) -> Identity:
    return Identity(int(entry.target["thread"]), int(entry.target["thread_started"]))
