"""What reading guests changes on the host, noted so that it can be put back: balloon statistics that are switched on,
DAMON that is set up.

Used by `sense` and what it is made of. A scheduler that acts notes in its own journal; a verb that only looks notes in
one beside it, which the next look, the next agent or `sustain agent restore` puts back should it be killed. Whoever
cannot note changes nothing, and the guest's problems say what is unknown for that.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sustain.errors import HostError, JournalError, anew
from sustain.host import damon, processes
from sustain.host.processes import Identity
from sustain.schedulers.journal import Entry, Outcome, Undo, Value, put_back

if TYPE_CHECKING:
    from sustain.schedulers.guest_memory.handles import GuestHandle


DAMON = "damon"
STATISTICS = "statistics"


class Changes(Protocol):
    """`Journal`, as it is used here."""

    def note(self, key: str, kind: str, target: Mapping[str, Value], prior: Value, new: Value) -> None: ...

    def forget(self, key: str) -> None: ...


class Unnoted:
    """For a process whose changes end with it, as in tests and benchmarks: what it dies with is not put back."""

    def note(self, key: str, kind: str, target: Mapping[str, Value], prior: Value, new: Value) -> None:
        """Nothing."""

    def forget(self, key: str) -> None:
        """Nothing."""


class Refused:
    """Nothing can be noted, so nothing may be changed."""

    def __init__(self, why: JournalError) -> None:
        self._why = why

    def note(self, key: str, kind: str, target: Mapping[str, Value], prior: Value, new: Value) -> None:
        raise anew(self._why)

    def forget(self, key: str) -> None:
        """Nothing was noted."""


def statistics(name: str) -> str:
    """The journal's key for the statistics of that guest's balloon."""
    return f"{STATISTICS}:{name}"


@runtime_checkable
class Statistical(Protocol):
    """A handle of a guest whose balloon can have statistics."""

    def period(self) -> int | None:
        """Seconds between two of them; 0: they are off, None: it has no balloon."""

    def set_period(self, period_s: int) -> None: ...


def undo(handles: Mapping[str, "GuestHandle"], root: Path = Path("/")) -> dict[str, Undo]:
    """How each kind is put back. `handles`: the guests that are known now."""
    return {
        STATISTICS: partial(_undo_statistics, handles, root),
        DAMON: lambda entry: damon.clean_up(int(entry.target["inode"]), root),
    }


def still_runs(entry: Entry, handles: Mapping[str, "GuestHandle"], root: Path) -> bool:
    """Whether the guest of an entry does, though its handle does not know: of one that is a process, its process."""
    pid, _, ticks = str(entry.target["life"]).partition(":")
    if not pid.isdecimal() or not ticks.isdecimal():
        return str(entry.target["guest"]) in handles
    return processes.alive(Identity(int(pid), int(ticks)), str(root))


def _undo_statistics(handles: Mapping[str, "GuestHandle"], root: Path, entry: Entry) -> Outcome:
    name = str(entry.target["guest"])
    handle = handles.get(name)
    life = None if handle is None else handle.life()
    if handle is None or life is None:
        if still_runs(entry, handles, root):
            raise HostError(
                f"{name}: it runs, and cannot be reached to switch its balloon's statistics off",
                hint="is its QMP socket configured, or held by another client?",
            )
        return "gone"
    if life != entry.target["life"] or not isinstance(handle, Statistical):
        return "gone"
    return put_back(entry, handle.period, lambda period_s: handle.set_period(int(period_s)))
