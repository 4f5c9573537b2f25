"""Carrying a plan out: balloons, pages to swap, reclaim of cgroups; what came of each; and putting back.

Used by the scheduler's loop. The model: each guest's actions run in a thread of that guest, one after the other; a call
waits for all of them for a limited time, and goes on without the one that hangs, which is left out until it has come
back. Nothing is believed: an action is done when the balloon has come to its target, pages are in swap, or the cgroup
uses less; `freed_bytes` is what the host's memory really gained.

Before a balloon or a limit is changed, the journal holds what it was: `undo` puts it back.

Rejected: one pool for all guests (hung ones fill it), and taking the answer of `balloon` for the deed.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from sustain.errors import SustainError, unexpected
from sustain.host.cgroup import Cgroup
from sustain.schedulers.guest_memory import changes
from sustain.schedulers.guest_memory.handles import GuestHandle
from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, PageOut, Reclaim
from sustain.schedulers.guest_memory.pageout import Frames, Pager
from sustain.schedulers.guest_memory.undo import (
    NEAR_BYTES,
    OWN_BYTES,
    Restoration,
    balloon_key,
    limit_key,
    moving_key,
)
from sustain.schedulers.journal import Journal, Report

_POLL_S = 0.05  # at first
_STILL_S = 2.0  # a balloon that has hardly moved for so long has stopped
_END = 0.05  # of the time limit, that is left to say so
_CHUNK_BYTES = 64 << 20


@runtime_checkable
class Framed(Protocol):
    """A handle of a guest whose frames can be asked for."""

    def frames(self) -> Frames | None:
        """None: this guest cannot be asked now."""


@dataclass(slots=True)
class _Guest:
    """What is going on with one guest."""

    gate: threading.Lock = field(default_factory=threading.Lock)  # held while something is noted and set
    thread: threading.Thread | None = None
    life: str = ""
    pager: Pager | None = None


@dataclass(slots=True)
class _Round:
    """One call of `carry_out`."""

    until_s: float
    stop_s: float = 0.0  # when balloons are told to stop where they are
    end: threading.Event = field(default_factory=threading.Event)
    effects: dict[int, Effect] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.end.is_set()

    def goes_on(self) -> bool:
        return not self.ended and time.monotonic() < self.until_s


class Actuator:
    """What can act on all guests. `guests` may change between calls: it is looked up by name each time."""

    def __init__(
        self,
        guests: Mapping[str, GuestHandle],
        journal: Journal,
        *,
        root: Path = Path("/"),
        limit_s: float = 10.0,
    ) -> None:
        """`limit_s`: the longest that one call of `carry_out` takes, whatever the guests do."""
        self._handles = guests
        self._journal = journal
        self._root = root
        self._limit_s = limit_s
        self._guests: dict[str, _Guest] = {}
        self._round = _Round(0.0)

    def carry_out(self, actions: Iterable[Action]) -> list[Effect]:
        """All of them, and what came of each, in the same order. Raises nothing that a guest or the host may cause."""
        wanted = list(actions)
        by_guest: dict[str, list[int]] = {}
        for index, action in enumerate(wanted):
            by_guest.setdefault(action.guest, []).append(index)
        until_s = time.monotonic() + self._limit_s
        this = self._round = _Round(until_s, until_s - _END * self._limit_s)
        started: list[threading.Thread] = []
        for name, indexes in by_guest.items():
            guest = self._guests.setdefault(name, _Guest())
            if guest.thread is not None and guest.thread.is_alive():
                continue
            work = partial(self._work, guest, [(index, wanted[index]) for index in indexes], this)
            guest.thread = threading.Thread(target=work, name=f"act {name}", daemon=True)
            guest.thread.start()
            started.append(guest.thread)
        for thread in started:
            thread.join(max(0.0, this.until_s + _POLL_S - time.monotonic()))
        this.end.set()
        effects = dict(this.effects)
        return [effects.get(index) or self._missing(action, started) for index, action in enumerate(wanted)]

    def restore(self) -> Report:
        """Put back all that was changed, here or by a predecessor, and not by somebody else since."""
        self._round.end.set()
        restoration = Restoration(
            self._handles,
            self._journal,
            lambda name: self._guests.setdefault(name, _Guest()).gate,
            root=self._root,
            limit_s=self._limit_s,
        )
        return restoration.restore()

    def close(self) -> None:
        """Start nothing more; what is under way ends at its next step. Changes stay."""
        self._round.end.set()

    def _missing(self, action: Action, started: Sequence[threading.Thread]) -> Effect:
        guest = self._guests[action.guest]
        if guest.thread in started:
            why = f"it has not come back within {self._limit_s:g} s"
            return Effect(action=action, done=False, problem=why, under_way=True)
        return _failed(action, "an earlier action on this guest has not come back yet")

    def _work(self, guest: _Guest, actions: Sequence[tuple[int, Action]], this: _Round) -> None:
        for index, action in actions:
            if this.ended:
                return
            try:
                this.effects[index] = self._one(guest, action, this)
            except (SustainError, OSError) as error:
                hint = getattr(error, "hint", "")
                this.effects[index] = _failed(action, f"{error} ({hint})" if hint else str(error))
            except Exception as error:  # noqa: BLE001 - said as what came of it; the rest goes on
                this.effects[index] = _failed(action, unexpected(error))

    def _one(self, guest: _Guest, action: Action, this: _Round) -> Effect:
        handle = self._handles.get(action.guest)
        life = None if handle is None else handle.life()
        if handle is None or life is None:
            return _failed(action, "the guest has gone")
        if life != action.life:
            return _failed(action, "the guest has been started anew since the plan was made")
        if guest.life != life:
            guest.life, guest.pager = life, None
        match action:
            case Balloon():
                return self._balloon(guest, handle, action, this)
            case PageOut():
                return self._page_out(guest, handle, action, this)
            case Reclaim():
                return self._reclaim(guest, handle, action, this)

    # balloon

    def _balloon(self, guest: _Guest, handle: GuestHandle, action: Balloon, this: _Round) -> Effect:
        before = handle.balloon()
        if before is None:
            return _failed(action, "the guest has no balloon")
        resident = handle.resident()
        goal = int(action.to_bytes)
        if not self._set_balloon(guest, handle, action, before, goal, this):
            return _failed(action, "called off before it began")
        now = self._settle(handle, before, goal, this)
        if now is None:
            return _failed(action, "the guest or its balloon has gone meanwhile")
        after = handle.resident()
        freed = None if resident is None or after is None else resident - after
        if abs(now - goal) <= NEAR_BYTES:
            self._journal.forget(moving_key(action.guest))
            self._forget_what_is_as_it_was(action.guest, now)
            return Effect(
                action=action, done=True, freed_bytes=freed, problem=_yield_problem(before - now, freed)
            )
        stopped = f"the balloon has come from {before} to {now} bytes, not to {goal}"
        late = time.monotonic() >= this.stop_s
        # What the guest cannot give, or not in time, is not asked of it any longer, unless all is called off meanwhile:
        # a balloon whose goal is out of reach swallows each page that the guest frees for itself, until that kills it.
        if this.goes_on() and now > goal and self._set_balloon(guest, handle, action, now, now, this):
            self._journal.forget(moving_key(action.guest))
            self._forget_what_is_as_it_was(action.guest, now)
            why = "it was not there in time" if late else "the guest gives no more"
            why = "no driver runs in the guest" if now == before else why
            return Effect(action=action, done=False, freed_bytes=freed, problem=f"{stopped}: {why}")
        return Effect(
            action=action,
            done=False,
            freed_bytes=freed,
            problem=f"{stopped}; it may still move",
            under_way=True,
        )

    def _set_balloon(
        self, guest: _Guest, handle: GuestHandle, action: Balloon, now: int, goal: int, this: _Round
    ) -> bool:
        target: dict[str, int | float | str] = {"guest": action.guest, "life": action.life}
        aside = changes.aside(self._root)
        with guest.gate:
            if this.ended:
                return False
            self._journal.note(balloon_key(action.guest), "balloon", target, now, goal, aside)
            self._journal.note(moving_key(action.guest), "balloon-moving", target, now, goal, aside)
            handle.set_balloon(goal)
        return True

    def _settle(self, handle: GuestHandle, start: int, goal: int, this: _Round) -> int | None:
        """Where the balloon is when it has reached its goal, hardly moves, or time is up. None: it has gone."""
        last, since_s = start, time.monotonic()
        pause_s = _POLL_S
        while True:
            now = handle.balloon()
            if now is None or abs(now - goal) <= NEAR_BYTES or not this.goes_on():
                return now
            if time.monotonic() >= this.stop_s:
                return now
            if abs(now - last) >= NEAR_BYTES:
                last, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > _STILL_S:
                return now
            # Each look is a connection: with hundreds of guests they cost.
            this.end.wait(max(_POLL_S / 10, min(pause_s, this.stop_s - time.monotonic())))
            pause_s = min(pause_s * 1.5, _STILL_S / 2)

    def _forget_what_is_as_it_was(self, name: str, now: int) -> None:
        for entry in self._journal.entries():
            if entry.key == balloon_key(name) and abs(now - float(entry.prior)) <= NEAR_BYTES:
                self._journal.forget(entry.key)

    # pages to swap

    def _page_out(self, guest: _Guest, handle: GuestHandle, action: PageOut, this: _Round) -> Effect:
        who = handle.process()
        if who is None:
            return _failed(action, "the guest has no process whose pages could be moved")
        if guest.pager is None or guest.pager.who != who:
            frames = handle.frames() if isinstance(handle, Framed) else None
            guest.pager = Pager(who, frames, self._root)
        came = guest.pager.page_out(int(action.amount_bytes), this.goes_on)
        return Effect(
            action=action, done=came.moved_bytes > 0, freed_bytes=came.freed_bytes, problem=came.problem
        )

    # cgroups

    def _reclaim(self, guest: _Guest, handle: GuestHandle, action: Reclaim, this: _Round) -> Effect:
        directory = handle.cgroup()
        if directory is None:
            return _failed(action, "the guest has no cgroup of its own")
        group = Cgroup.open(directory, self._root)
        key = limit_key(group)
        left, freed = int(action.amount_bytes), 0
        problem: str | None = None
        while left > 0 and this.goes_on() and problem is None:
            with guest.gate:
                if this.ended:
                    break
                came = group.reclaim(min(left, _CHUNK_BYTES), self._noter(group, key))
                self._journal.forget(key)
            left -= min(left, _CHUNK_BYTES)
            freed += came.freed_bytes
            problem = came.problem
        if left > 0 and problem is None:
            problem = f"time was up with {left} bytes to go"
        return Effect(action=action, done=freed > 0, freed_bytes=freed, problem=problem)

    def _noter(self, group: Cgroup, key: str) -> Callable[[int, int], None]:
        target: dict[str, int | float | str] = {
            "directory": str(group.directory),
            "inode": group.inode,
            "kills": int(group.kills()),
        }
        return lambda old, new: self._journal.note(key, "cgroup-limit", target, old, new)


def _failed(action: Action, problem: str) -> Effect:
    return Effect(action=action, done=False, problem=problem)


def _yield_problem(taken: int, freed: int | None) -> str | None:
    """What the balloon took, against what the host gained."""
    if freed is None:
        return "what the host gained is not known: the guest's resident memory cannot be read"
    if taken >= OWN_BYTES and freed < taken / 4:
        return (
            f"the balloon took {taken} bytes and the host gained {freed}: the guest had not touched them, has used "
            "others meanwhile, or its memory is pinned (VFIO)"
        )
    return None
