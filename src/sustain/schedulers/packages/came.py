"""What came of a step, before it is an effect or a line of a report."""

import errno
from collections.abc import Iterable
from typing import NamedTuple

from sustain.errors import JournalError, SustainError
from sustain.schedulers.journal import Outcome as Undone
from sustain.schedulers.packages.model import Outcome


class Came(NamedTuple):
    """Of changing something."""

    outcome: Outcome
    detail: str = ""
    written: int = 0


class Back(NamedTuple):
    """Of putting something back."""

    outcome: Undone
    detail: str = ""
    written: int = 0
    passes: bool = False  # what kept it from being put back


def together(came: Iterable[Came]) -> Came:
    """Of several things that are one: the worst that came, and all that was written."""
    parts = list(came)
    worst = max(parts, key=lambda each: _BAD.index(each.outcome), default=Came("gone"))
    details = dict.fromkeys(each.detail for each in parts if each.detail)
    return Came(worst.outcome, "; ".join(details), sum(each.written for each in parts))


def back_together(backs: Iterable[Back]) -> Came:
    """What putting back all of a group's came to, for whoever has asked for it."""
    parts = list(backs)
    details = dict.fromkeys(each.detail for each in parts if each.detail)
    outcomes = {each.outcome for each in parts}
    outcome: Outcome = "done"
    if "failed" in outcomes:
        outcome = (
            "again later" if all(each.passes for each in parts if each.outcome == "failed") else "refused"
        )
    elif "restored" not in outcomes and outcomes:
        outcome = "changed" if "changed" in outcomes else "gone"
    return Came(outcome, "; ".join(details), sum(each.written for each in parts))


def words(error: SustainError | OSError) -> str:
    """An error with its hint."""
    hint = getattr(error, "hint", "")
    return f"{error} ({hint})" if hint else str(error)


def passes(error: Exception) -> bool:
    """Whether it may be otherwise in a moment: nobody answered, or there was no room. All else is refused for good."""
    return isinstance(error, JournalError) or getattr(error, "errno", None) in _PASSING


_PASSING = frozenset(
    (
        errno.EAGAIN,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    )
)

# A process that has gone while the others of its group go on is no failure of theirs.
_BAD: tuple[Outcome, ...] = ("gone", "done", "again later", "changed", "refused")
