"""Putting back what the actuator has changed, here or a predecessor that was killed, from what the journal holds.

A balloon, or a limit of a cgroup, goes back to what it was unless somebody else has set it since. Of a balloon only
where it stands can be read, not what was asked of it: so what stands where we left it (up to 16 MiB more, which a guest
takes back by itself when it runs out), or, while one of our changes is on its way, between there and where it began,
is ours. Pages in swap need no putting back: they come when they are used.
"""

import math
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from sustain.errors import HostError, JournalError
from sustain.host.cgroup import Cgroup
from sustain.schedulers.guest_memory import changes
from sustain.schedulers.guest_memory.handles import GuestHandle
from sustain.schedulers.journal import Entry, Journal, Outcome, Report, failed, put_back

NEAR_BYTES = 1 << 20  # balloons move in pages, sizes are said in MiB
OWN_BYTES = 16 << 20
_NO_LIMIT = -1
_Start = tuple[str, str]  # of a guest: its name then, and its life


def balloon_key(name: str) -> str:
    """The journal's key of what a guest's balloon was."""
    return f"balloon:{name}"


def moving_key(name: str) -> str:
    """And of a change of it that is on its way."""
    return f"balloon-moving:{name}"


def limit_key(group: Cgroup) -> str:
    return f"cgroup-limit:{group.directory}"


class Restoration:
    """Of what one journal holds. `gate`: the lock that is held while something of the guest is noted and set."""

    def __init__(
        self,
        handles: Mapping[str, GuestHandle],
        journal: Journal,
        gate: Callable[[str], threading.Lock],
        *,
        root: Path,
        limit_s: float,
    ) -> None:
        """`limit_s`: how long an action that is under way is waited for."""
        self._handles = handles
        self._journal = journal
        self._gate = gate
        self._root = root
        self._limit_s = limit_s

    def restore(self) -> Report:
        """Everything that the journal holds."""
        moving = {_start(entry): entry for entry in self._journal.entries() if entry.kind == "balloon-moving"}
        report = self._journal.restore(
            {
                **changes.undo(self._handles, self._root),
                "balloon": partial(self._balloon, moving),
                "cgroup-limit": _limit,
            },
            leave=("balloon-moving",),
        )
        # A balloon that could not be put back is still on its way, for the next time too.
        left = {_start(entry) for entry in self._journal.entries() if entry.kind == "balloon"}
        kept = []
        for start, entry in moving.items():
            if start not in left:
                try:
                    self._journal.forget(entry.key, entry)
                except JournalError as error:
                    kept.append(failed(entry, error))
        return Report((*report.undone, *kept))

    def _balloon(self, moving: Collection[_Start], entry: Entry) -> Outcome:
        handle = changes.reach(entry, self._handles, self._root, f"give it back {entry.prior} bytes")
        if handle is None:
            return "gone"
        gate = self._gate(handle.name)
        if not gate.acquire(timeout=self._limit_s):
            raise HostError(f"{handle.name}: an action on it is still under way", hint="put back again later")
        try:
            now = handle.balloon()
            if now is None:
                return "gone"
            prior, *sets = (float(each) for each in (entry.prior, *entry.sets))
            if abs(now - prior) > NEAR_BYTES and not (
                any(-NEAR_BYTES <= now - each <= OWN_BYTES for each in sets)
                or (_start(entry) in moving and min(prior, *sets) <= now <= max(prior, *sets))
            ):
                return "changed"
            handle.set_balloon(
                int(prior)
            )  # also where it stands there already: it may be on its way elsewhere
            return "restored"
        finally:
            gate.release()


def _start(entry: Entry) -> _Start:
    return str(entry.target["guest"]), str(entry.target["life"])


def _limit(entry: Entry) -> Outcome:
    directory = Path(str(entry.target["directory"]))
    group = Cgroup(directory, 1, int(entry.target["inode"]))
    if not group.alive():
        return "gone"

    def read() -> int | None:
        limit = group.own_limit_bytes()
        return None if limit is None else _NO_LIMIT if math.isinf(limit) else int(limit)

    outcome = put_back(
        entry, read, lambda value: group.set_limit(math.inf if value == _NO_LIMIT else float(value))
    )
    if entry.target["kills"] and not group.kills():
        group.set_kills(True)
    return outcome
