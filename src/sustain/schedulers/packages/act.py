"""Carrying a plan out: groups get the processors that it says, with their memory; interrupts and timers follow; what
came of each is seen; and all of it is put back.

Used by the scheduler's loop. The model: the journal holds what each thing was before it is changed, in the order in
which it is changed, so that each step is safe to be the last. One action after the other, for at most `limit_s`; what
is left then is "again later". Nothing is believed: a group is placed when no thread of it is found that may run
elsewhere, but for those that somebody has bound more narrowly.

What somebody else has set since is left alone, here and when it is put back; and a group is never given a processor
that it could not use before we came.

Rejected: threads of ours for each group. What is done for one takes milliseconds, except its memory, which is moved in
pieces over many calls.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from sustain.errors import JournalError, SustainError, unexpected
from sustain.host.processes import Identity
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages import cgroups, interrupts, per_thread, pins
from sustain.schedulers.packages.came import Came, back_together, passes, together, words
from sustain.schedulers.packages.handles import CgroupHandle, DomainHandle, Handle, Locate
from sustain.schedulers.packages.memory import Memory, Pace
from sustain.schedulers.packages.model import Action, Align, Effect, Interrupts, Place, Release
from sustain.schedulers.packages.per_thread import Of
from sustain.schedulers.packages.settings import Affinity, Slack
from sustain.schedulers.packages.undo import Undoing, of_group

LIMIT_S = 5.0
MEMORY_LIMIT_S = 2.0
MEMORY_BYTES_PER_S = float(256 << 20)
WithoutCpuset = Literal[
    "refuse", "threads"
]  # a cgroup that has none: leave it, or bind its threads one by one
_NS = 1e9
_TIDY_S = 600.0  # every so often, what has gone is let go of
_NOTHING = "nothing of it was changed"
_NAMED = 3  # of those that were left alone
_GONE = Came("gone", "there is no such group any more")


class Actuator:
    """What acts on all groups of a host. One thread calls; `stop` may be called from any."""

    def __init__(
        self,
        journal: Journal,
        locate: Locate,
        *,
        without_cpuset: WithoutCpuset = "refuse",
        memory_bytes_per_s: float = MEMORY_BYTES_PER_S,
        memory_limit_s: float = MEMORY_LIMIT_S,
        limit_s: float = LIMIT_S,
        root: Path = Path("/"),
    ) -> None:
        """`limit_s`: about the longest that one call of `carry_out` takes, and `memory_limit_s` for memory on top.
        `memory_bytes_per_s` of 0: memory stays where it is, but for what a predecessor has moved."""
        self._journal = journal
        self._locate = locate
        self._without_cpuset = without_cpuset
        self._limit_s = limit_s
        self._root = root
        self._stop = threading.Event()
        self._tidy_s = time.monotonic() + _TIDY_S
        self._memory_limit_s = memory_limit_s
        self._memory_moves = memory_bytes_per_s > 0
        self._pace = Pace(memory_bytes_per_s or MEMORY_BYTES_PER_S, self._stop)
        self._memory = Memory(journal, self._pace, root)

    def carry_out(self, actions: Iterable[Action]) -> list[Effect]:
        """All of them, and what came of each, in the same order; and pieces of memory that are on their way. Raises
        nothing that a group or the host may cause.

        Of a Place with nodes the memory may take many calls: until it is there, each call with that Place says "again
        later" and, as `moved_bytes`, how much has come. A Release for measuring waits until it is back."""
        until_s = time.monotonic() + self._limit_s
        effects = [self._effect(action, until_s) for action in actions]
        with contextlib.suppress(JournalError):  # it stays noted, and is put back another time
            self._memory.go_on(self._memory_limit_s)
        effects = [self._with_memory(effect) for effect in effects]
        if time.monotonic() >= self._tidy_s:
            self._tidy_s = time.monotonic() + _TIDY_S
            self._memory.tidy()
            with contextlib.suppress(JournalError):
                self._undoing().tidy()
        return effects

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        """Put back all that was changed, here or by a predecessor, and not by somebody else since; `beat` is called at
        each piece. What `stop` leaves undone stays in the journal."""
        self._memory.forget()
        return Undoing(self._journal, self._pace, self._root, beat).all()

    def stop(self) -> None:
        """End what is under way at its next step. Changes stay."""
        self._stop.set()

    def close(self) -> None:
        self.stop()

    def _effect(self, action: Action, until_s: float) -> Effect:
        begun_s = time.monotonic()
        if self._stop.is_set():
            return Effect(action=action, outcome="again later", detail="everything is being stopped")
        if begun_s >= until_s:
            return Effect(action=action, outcome="again later", detail="its turn comes in the next tick")
        try:
            came = self._one(action, lambda: not self._stop.is_set() and time.monotonic() < until_s)
        except (SustainError, OSError) as error:
            came = Came("again later" if passes(error) else "refused", words(error))
        except Exception as error:  # noqa: BLE001 - said as what came of it; the rest goes on
            came = Came("refused", unexpected(error))
        return Effect(
            action=action,
            outcome=came.outcome,
            detail=came.detail,
            written=came.written,
            seconds=time.monotonic() - begun_s,
        )

    def _one(self, action: Action, goes_on: Callable[[], bool]) -> Came:
        match action:
            case Interrupts():
                return self._interrupts(action)
            case Release():
                return self._release(action)
            case Place():
                handle = self._locate(action.group, action.life)
                if handle is None:
                    return _GONE
                came = self._place(handle, action, goes_on)
                if came.outcome == "done" and action.nodes and self._memory_moves:
                    self._memory.to(action.group, action.life, self._processes(handle), action.nodes)
                return came
            case Align():
                handle = self._locate(action.group, action.life)
                return _GONE if handle is None else self._align(handle, action, goes_on)

    def _release(self, action: Release) -> Came:
        if action.purpose != "measure":
            self._memory.back(action.group, action.life)
        elif self._memory.comes_back(action.group, action.life):
            return Came("again later", "its memory goes back first, so that none moves while it is measured")
        backs = self._undoing().some(of_group(action.group, action.life))
        return back_together(backs) if backs else Came("done", _NOTHING)

    def _with_memory(self, effect: Effect) -> Effect:
        """What came of a Place whose memory is to follow."""
        action = effect.action
        if not (isinstance(action, Place) and action.nodes and effect.done and self._memory_moves):
            return effect
        job = self._memory.job(action.group, action.life)
        if job is None:
            return effect
        details = [effect.detail] if effect.detail else []
        details += [f"memory that stays: {each}" for each in job.problems]
        return msgspec.structs.replace(
            effect,
            outcome="done" if job.done else "again later",
            detail="; ".join(details if job.done else [*details, "its memory is on its way"]),
            moved_bytes=float(job.moved_bytes),
        )

    def _interrupts(self, action: Interrupts) -> Came:
        away, cpus = frozenset(action.away), frozenset(action.cpus)
        if not away:
            backs = self._undoing().some(lambda entry: entry.kind == interrupts.KIND)
            return back_together(backs) if backs else Came("done", _NOTHING)
        if not cpus - away:
            return Came("refused", "interrupts need at least one processor to come to")
        return interrupts.move(away, cpus - away, self._journal, self._root)

    def _undoing(self) -> Undoing:
        return Undoing(self._journal, self._pace, self._root)

    # processors

    def _place(self, handle: Handle, action: Place, goes_on: Callable[[], bool]) -> Came:
        wanted = frozenset(action.cpus)
        if not wanted:
            return Came("refused", "a group needs at least one processor")
        if isinstance(handle, CgroupHandle):
            cpuset = cgroups.find(handle.directory, handle.inode, self._root)
            if cpuset is None:
                return _GONE
            if cpuset.enabled:
                return cgroups.place(action.group, action.life, cpuset, wanted, self._journal, self._root)
            if self._without_cpuset == "refuse":
                return Came("refused", cgroups.refusal(cpuset))
        pinned = isinstance(handle, DomainHandle)
        bound = of_group(action.group, action.life, pins.KIND if pinned else Affinity.kind)
        fresh = not any(bound(each) for each in self._journal.entries())
        if isinstance(handle, DomainHandle):
            came = pins.place(action.group, action.life, handle, wanted, self._journal)
        else:
            came = self._each(handle, action, partial(self._bind, handle, action, wanted, goes_on), goes_on)
        if came.outcome == "refused" and fresh:  # half of a group on another package helps nobody
            backs = self._undoing().some(bound)
            if backs:
                came = came._replace(detail=f"{came.detail}; what was bound is as before again")
        return came

    def _bind(
        self,
        handle: Handle,
        action: Place,
        wanted: frozenset[int],
        goes_on: Callable[[], bool],
        process: Identity,
    ) -> Came:
        of = _of(action, handle, process)
        return per_thread.change(of, Affinity(self._root), wanted, self._journal, goes_on)

    # timers

    def _align(self, handle: Handle, action: Align, goes_on: Callable[[], bool]) -> Came:
        if action.slack_s is None:
            backs = self._undoing().some(of_group(action.group, action.life, Slack.kind))
            return back_together(backs) if backs else Came("done", _NOTHING)
        slack_ns = max(1, round(action.slack_s * _NS))
        return self._each(handle, action, partial(self._slacken, handle, action, slack_ns, goes_on), goes_on)

    def _slacken(
        self, handle: Handle, action: Align, slack_ns: int, goes_on: Callable[[], bool], process: Identity
    ) -> Came:
        of = _of(action, handle, process)
        return per_thread.change(of, Slack(self._root), slack_ns, self._journal, goes_on)

    def _each(
        self,
        handle: Handle,
        action: Place | Align,
        do: Callable[[Identity], Came],
        goes_on: Callable[[], bool],
    ) -> Came:
        """For each process of a group, until none is found that was not dealt with."""
        came: dict[Identity, Came] = {}
        while True:
            left = [each for each in self._processes(handle) if each not in came]
            if not left:
                return _of_processes(came) if came else Came("gone", "it has no process any more")
            for process in left:
                if came and not goes_on():
                    later = Came("again later", f"processes that are left: {len(left)}")
                    return together((_of_processes(came), later))
                came[process] = do(process)

    def _processes(self, handle: Handle) -> list[Identity]:
        if isinstance(handle, CgroupHandle):
            return cgroups.members(handle.directory, self._root)
        return list(handle.processes)


def _of_processes(came: Mapping[Identity, Came]) -> Came:
    """Of a group, one process after the other: some that somebody else has set do not keep the others from it."""
    changed = [process.pid for process, each in came.items() if each.outcome == "changed"]
    others = [each for each in came.values() if each.outcome != "changed"]
    if not changed or not any(each.outcome in ("done", "again later") for each in others):
        return together(came.values())
    which = ", ".join(str(each) for each in changed[:_NAMED])
    left = f"processes that somebody else has set since are left alone: {len(changed)}: {which}"
    return together((*others, Came("done", left)))


def _of(action: Place | Align, handle: Handle, process: Identity) -> Of:
    cgroup = handle if isinstance(handle, CgroupHandle) else None
    return Of(action.group, action.life, process, cgroup)
