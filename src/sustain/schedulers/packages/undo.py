"""Putting back where groups ran, and what else was set for them, from what the journal holds.

Used by `act`: for one group when it is released, for all when the scheduler ends, and for what a predecessor has left
that was killed. In stages, since what a thread had for itself can only be put back inside of what its process or cgroup
has; memory, which takes long, comes last.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from sustain.errors import JournalError, SustainError
from sustain.host import processes, threads
from sustain.schedulers.journal import Entry, Journal, Outcome, Report, Undo, Undone
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages import cgroups, interrupts, memory, per_thread, per_thread_undo, pins
from sustain.schedulers.packages.came import Back, passes, words
from sustain.schedulers.packages.handles import CgroupHandle
from sustain.schedulers.packages.memory import Pace
from sustain.schedulers.packages.per_thread import OWN, Setting
from sustain.schedulers.packages.settings import Affinity, Slack

T = TypeVar("T")
PutBack = Callable[[Entry], Back]  # raises HostError: it is not put back, and tried again another time


class Undoing:
    """Of what one journal holds."""

    def __init__(
        self, journal: Journal, pace: Pace, root: Path = Path("/"), beat: Callable[[], None] = no_beat
    ) -> None:
        """`pace`: of memory that goes back."""
        self._journal = journal
        self._pace = pace
        self._root = root
        self._beat = beat

    def stages(self) -> tuple[Mapping[str, PutBack], ...]:
        """How each kind is put back: those of one stage before those of the next."""
        return (
            {
                cgroups.KIND: partial(cgroups.put_back, root=self._root),
                pins.KIND: pins.put_back,
                interrupts.KIND: partial(interrupts.put_back, root=self._root),
                Affinity.kind: lambda entry: self._process(Affinity(self._root), entry),
                Slack.kind: lambda entry: self._process(Slack(self._root), entry),
            },
            {
                cgroups.THREAD: partial(cgroups.put_back_thread, root=self._root),
                Affinity.kind + OWN: lambda entry: per_thread_undo.put_back_own(Affinity(self._root), entry),
                Slack.kind + OWN: lambda entry: per_thread_undo.put_back_own(Slack(self._root), entry),
            },
            {memory.KIND: partial(memory.put_back, pace=self._pace, root=self._root, beat=self._beat)},
        )

    def all(self) -> Report:
        """Everything. What is of a kind that nothing here knows is said once."""
        undone: list[Undone] = []
        stages = self.stages()
        known = {kind for stage in stages for kind in stage}
        for number, stage in enumerate(stages):
            kinds = {entry.kind for entry in self._journal.entries()}
            later = known - set(stage) if number == 0 else kinds - set(stage)
            undone += self._journal.restore(
                {kind: self._outcome(put_back) for kind, put_back in stage.items()}, leave=later
            ).undone
        return Report(tuple(undone))

    def some(self, which: Callable[[Entry], bool]) -> list[Back]:
        """Those entries, but memory's, which takes its time; and what came of each. A "failed" one stays in the
        journal."""
        backs: list[Back] = []
        for stage in self.stages()[:-1]:
            for entry in self._journal.entries():
                if entry.kind in stage and which(entry):
                    backs.append(self._one(stage[entry.kind], entry))
        return backs

    def tidy(self) -> None:
        """Let go of notes of what has gone, of which there is nothing to put back. Raises JournalError."""
        for entry in self._journal.entries():
            if self._gone(entry):
                self._journal.forget(entry.key, entry)

    def _gone(self, entry: Entry) -> bool:
        target = entry.target
        try:
            if "thread" in target:
                thread = threads.one(int(target["thread"]), self._root)
                return thread is None or thread.who != per_thread.thread_of(entry)
            if "pid" in target:
                gone = not processes.alive(per_thread.process_of(entry), str(self._root))
                return gone and not self._speaks_for_others(entry)
            if "inode" in target:
                directory = Path(str(target["directory"]))
                return cgroups.find(directory, int(target["inode"]), self._root) is None
        except SustainError:  # not to be known now
            return False
        return False

    def _speaks_for_others(self, entry: Entry) -> bool:
        """Whether it is the last note of what processes of its cgroup had that were started meanwhile. Raises
        HostError."""
        where = per_thread.cgroup_of(entry)
        if (
            where is None
            or "since" not in entry.target
            or any(_covers(each, entry) for each in self._journal.entries())
        ):
            return False
        cgroup = CgroupHandle(Path(where[0]), where[1])
        return cgroup.there() and bool(cgroups.members(cgroup.directory, self._root))

    def _one(self, put_back: PutBack, entry: Entry) -> Back:
        try:
            back = put_back(entry)
            self._journal.forget(entry.key, entry)
        except JournalError as error:
            return Back("failed", f"it is as it was, and that cannot be noted: {words(error)}", 0, True)
        except (SustainError, OSError) as error:
            return Back("failed", words(error), 0, passes(error))
        return back

    def _process(self, setting: Setting[T], entry: Entry) -> Back:
        return per_thread_undo.put_back(setting, entry, self._journal.entries(), self._beat)

    def _outcome(self, put_back: PutBack) -> Undo:
        def undo(entry: Entry) -> Outcome:
            self._beat()
            return put_back(entry).outcome

        return undo


def _covers(other: Entry, entry: Entry) -> bool:
    """Whether all that is known by `entry` of a cgroup's processes is known by another one, too."""
    return (
        other.key != entry.key
        and other.kind == entry.kind
        and per_thread.cgroup_of(other) == per_thread.cgroup_of(entry)
        and other.prior == entry.prior
        and set(entry.sets) <= set(other.sets)
        and int(other.target["since"]) <= int(entry.target["since"])
    )


def of_group(group: str, life: str, kind: str = "") -> Callable[[Entry], bool]:
    """Which entries are one group's; of a `kind`: also those of its threads."""
    return lambda entry: (
        entry.target.get("group") == group
        and entry.target.get("life") == life
        and entry.kind.startswith(kind)
    )
