"""Putting back what reading guests changes: balloon statistics that are switched on, DAMON that is set up; and which
guest an entry of a journal means. Used by `sense`, what it is made of, and `undo`; noted as `schedulers.changes` says.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sustain.errors import HostError
from sustain.host import processes
from sustain.host.processes import Identity
from sustain.schedulers.changes import undo_damon
from sustain.schedulers.journal import Entry, Outcome, Undo, put_back

if TYPE_CHECKING:
    from sustain.schedulers.guest_memory.handles import GuestHandle

STATISTICS = "statistics"


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
    return {STATISTICS: partial(_undo_statistics, handles, root), **undo_damon(root)}


def aside(root: Path = Path("/")) -> Callable[[Entry], str | None]:
    """For `note`, of guests: what was changed of one that runs still, and whose name is another's now, stays noted."""

    def key(entry: Entry) -> str | None:
        noted = str(entry.target["life"])
        who = _process(noted)
        gone = who is not None and not processes.alive(who, str(root))
        return None if gone else f"{entry.key}@{noted}"

    return key


def reach(
    entry: Entry, handles: Mapping[str, "GuestHandle"], root: Path, what_for: str
) -> "GuestHandle | None":
    """The handle of the guest of an entry, which may have another name now; None: that start of it is over. Raises
    HostError when it is not, or when nobody can tell, with `what_for` it would have been reached.

    Of a guest that is a process, the process tells; of a domain, only libvirt, so that one which is no longer
    configured is unknown."""
    name, noted = str(entry.target["guest"]), str(entry.target["life"])
    who = _process(noted)
    handle = handles.get(name)
    knows = handle is not None and (handle.kind == "libvirt") == (who is None)  # such lives as that was
    life = None if handle is None else handle.life()
    if knows and life == noted:
        return handle
    if who is not None and not processes.alive(who, str(root)):
        return None
    if knows and who is None and _same_domain(life, noted):
        return None
    others = (each for each in handles.values() if each is not handle and each.kind != "cgroup")
    found = _who_lives(noted, others)
    if found is not None or (knows and who is None):  # a domain of that name that was made anew
        return found
    if who is not None:
        raise HostError(
            f"{name}: it runs, and cannot be reached to {what_for}",
            hint="is its QMP socket configured, or held by another client?",
        )
    raise HostError(
        f"{name}: whether that domain still runs is unknown, since it is not configured: nobody can {what_for}",
        hint='configure it again as it was (kind = "libvirt"); one that is shut off or no longer defined is gone',
    )


def _process(life: str) -> Identity | None:
    """Of a life that is a process's; None: it is a domain's."""
    pid, _, ticks = life.partition(":")
    return Identity(int(pid), int(ticks)) if pid.isdecimal() and ticks.isdecimal() else None


def _same_domain(life: str | None, noted: str) -> bool:
    """Whether a handle that says `life` knows the domain that was noted: by its UUID; one that is off has none."""
    return life is None or life.partition(":")[0] == noted.partition(":")[0]


def _who_lives(life: str, handles: Iterable["GuestHandle"]) -> "GuestHandle | None":
    for each in handles:
        with contextlib.suppress(HostError):  # it is another one that cannot be reached
            if each.life() == life:
                return each
    return None


def _undo_statistics(handles: Mapping[str, "GuestHandle"], root: Path, entry: Entry) -> Outcome:
    handle = reach(entry, handles, root, "switch its balloon's statistics off")
    if handle is None or not isinstance(handle, Statistical):
        return "gone"
    return put_back(entry, handle.period, lambda period_s: handle.set_period(int(period_s)))
