"""Putting back where groups ran, and what else was set for them, from what the journal holds.

Used by `act`: for one group when it is released, for all when the scheduler ends, and for what a predecessor has left
that was killed. In stages, since what a thread had for itself can only be put back inside of what its process or cgroup
has.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from sustain.errors import JournalError, SustainError
from sustain.schedulers.journal import Entry, Journal, Outcome, Report, Undo, Undone
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages import cgroups, per_thread
from sustain.schedulers.packages.came import Back, words
from sustain.schedulers.packages.per_thread import OWN, Setting
from sustain.schedulers.packages.settings import Affinity, Slack

T = TypeVar("T")
PutBack = Callable[[Entry], Back]  # raises HostError: it is not put back, and tried again another time


class Undoing:
    """Of what one journal holds."""

    def __init__(self, journal: Journal, root: Path = Path("/"), beat: Callable[[], None] = no_beat) -> None:
        self._journal = journal
        self._root = root
        self._beat = beat

    def stages(self) -> tuple[Mapping[str, PutBack], ...]:
        """How each kind is put back: those of one stage before those of the next."""
        return (
            {
                cgroups.KIND: partial(cgroups.put_back, root=self._root),
                Affinity.kind: lambda entry: self._process(Affinity(self._root), entry),
                Slack.kind: lambda entry: self._process(Slack(self._root), entry),
            },
            {
                cgroups.THREAD: partial(cgroups.put_back_thread, root=self._root),
                Affinity.kind + OWN: lambda entry: per_thread.put_back_own(Affinity(self._root), entry),
                Slack.kind + OWN: lambda entry: per_thread.put_back_own(Slack(self._root), entry),
            },
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
        """Those entries, and what came of each. A "failed" one stays in the journal."""
        backs: list[Back] = []
        for stage in self.stages():
            for entry in self._journal.entries():
                if entry.kind in stage and which(entry):
                    backs.append(self._one(stage[entry.kind], entry))
        return backs

    def _one(self, put_back: PutBack, entry: Entry) -> Back:
        try:
            back = put_back(entry)
            self._journal.forget(entry.key, entry)
        except JournalError as error:
            return Back("failed", f"it is as it was, and that cannot be noted: {words(error)}")
        except (SustainError, OSError) as error:
            return Back("failed", words(error))
        return back

    def _process(self, setting: Setting[T], entry: Entry) -> Back:
        return per_thread.put_back(setting, entry, self._journal.entries(), self._beat)

    def _outcome(self, put_back: PutBack) -> Undo:
        def undo(entry: Entry) -> Outcome:
            self._beat()
            return put_back(entry).outcome

        return undo


def of_group(group: str, life: str, kind: str = "") -> Callable[[Entry], bool]:
    """Which entries are one group's; of a `kind`: also those of its threads."""
    return lambda entry: (
        entry.target.get("group") == group
        and entry.target.get("life") == life
        and entry.kind.startswith(kind)
    )
