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


def reach(
    entry: Entry, handles: Mapping[str, "GuestHandle"], root: Path, what_for: str
) -> "GuestHandle | None":
    """The handle of the guest of an entry; None: that start of it is over. Raises HostError when it is not, or when
    nobody can tell, with `what_for` it would have been reached.

    Of a guest that is a process, the process tells; of a domain, only libvirt, so that one which is no longer
    configured is unknown."""
    name, noted = str(entry.target["guest"]), str(entry.target["life"])
    pid, _, ticks = noted.partition(":")
    is_process = pid.isdecimal() and ticks.isdecimal()
    handle = handles.get(name)
    life = None if handle is None else handle.life()
    knows = handle is not None and (handle.kind == "libvirt") != is_process  # such lives as that was
    if knows and life is not None:
        return handle if life == noted else None
    if is_process:
        if processes.alive(Identity(int(pid), int(ticks)), str(root)):
            raise HostError(
                f"{name}: it runs, and cannot be reached to {what_for}",
                hint="is its QMP socket configured, or held by another client?",
            )
    elif not knows:
        raise HostError(
            f"{name}: whether that domain still runs is unknown, since it is not configured: nobody can {what_for}",
            hint='configure it again as it was (kind = "libvirt"); one that is shut off or no longer defined is gone',
        )
    return None


def _undo_statistics(handles: Mapping[str, "GuestHandle"], root: Path, entry: Entry) -> Outcome:
    handle = reach(entry, handles, root, "switch its balloon's statistics off")
    if handle is None or not isinstance(handle, Statistical):
        return "gone"
    return put_back(entry, handle.period, lambda period_s: handle.set_period(int(period_s)))
