"""Where schedulers note what they change in order to look at the host, so that it can be put back; and how that is done
for DAMON, which several of them use.

Used by what senses, in `guest_memory` and `large_pages`. A scheduler that acts notes in its own journal; a verb that
only looks notes in one beside it, which the next look, the next agent or `sustain agent restore` puts back should it be
killed. Whoever cannot note changes nothing, and its problems say what is unknown for that.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sustain.errors import JournalError, anew
from sustain.host import damon
from sustain.schedulers.journal import Entry, Outcome, Undo, Value

DAMON = "damon"


class Changes(Protocol):
    """`Journal`, as it is used for that."""

    def note(
        self,
        key: str,
        kind: str,
        target: Mapping[str, Value],
        prior: Value,
        new: Value,
        aside: Callable[[Entry], str | None] = lambda _: None,
    ) -> None: ...

    def forget(self, key: str) -> None: ...


class Unnoted:
    """For a process whose changes end with it, as in tests and benchmarks: what it dies with is not put back."""

    def note(self, *_: object, **__: object) -> None:
        """Nothing."""

    def forget(self, key: str) -> None:
        """Nothing."""


class Refused:
    """Nothing can be noted, so nothing may be changed."""

    def __init__(self, why: JournalError) -> None:
        self._why = why

    def note(self, *_: object, **__: object) -> None:
        raise anew(self._why)

    def forget(self, key: str) -> None:
        """Nothing was noted."""


def note_damon(changes: Changes, inode: int | None) -> None:
    """For `host.damon.Damon`: it is set up as that directory, or (None) given back. Raises JournalError."""
    if inode is None:
        changes.forget(DAMON)
    else:
        changes.note(DAMON, DAMON, {"inode": inode}, 0, damon.SLOTS)


def undo_damon(root: Path = Path("/")) -> dict[str, Undo]:
    """How that kind is put back."""

    def put_back(entry: Entry) -> Outcome:
        return damon.clean_up(int(entry.target["inode"]), root)

    return {DAMON: put_back}
