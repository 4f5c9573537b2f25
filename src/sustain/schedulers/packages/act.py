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

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from sustain.errors import JournalError, SustainError, unexpected
from sustain.host.processes import Identity
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import no_beat
from sustain.schedulers.packages import cgroups, per_thread
from sustain.schedulers.packages.came import Came, back_together, together, words
from sustain.schedulers.packages.handles import CgroupHandle, Handle, Locate
from sustain.schedulers.packages.model import Action, Align, Effect, Interrupts, Place, Release
from sustain.schedulers.packages.per_thread import Of
from sustain.schedulers.packages.settings import Affinity, Slack
from sustain.schedulers.packages.undo import Undoing, of_group

LIMIT_S = 5.0
WithoutCpuset = Literal[
    "refuse", "threads"
]  # a cgroup that has none: leave it, or bind its threads one by one
_NS = 1e9
_GONE = Came("gone", "there is no such group any more")


class Actuator:
    """What acts on all groups of a host. One thread calls; `stop` may be called from any."""

    def __init__(
        self,
        journal: Journal,
        locate: Locate,
        *,
        without_cpuset: WithoutCpuset = "refuse",
        limit_s: float = LIMIT_S,
        root: Path = Path("/"),
    ) -> None:
        """`limit_s`: about the longest that one call of `carry_out` takes."""
        self._journal = journal
        self._locate = locate
        self._without_cpuset = without_cpuset
        self._limit_s = limit_s
        self._root = root
        self._stop = threading.Event()

    def carry_out(self, actions: Iterable[Action]) -> list[Effect]:
        """All of them, and what came of each, in the same order. Raises nothing that a group or the host may cause."""
        until_s = time.monotonic() + self._limit_s
        return [self._effect(action, until_s) for action in actions]

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        """Put back all that was changed, here or by a predecessor, and not by somebody else since; `beat` is called at
        each piece."""
        return Undoing(self._journal, self._root, beat).all()

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
        except JournalError as error:
            came = Came("again later", words(error))
        except (SustainError, OSError) as error:
            came = Came("refused", words(error))
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
                return Came("refused", "not yet")
            case Release():
                return self._release(action)
            case Place():
                handle = self._locate(action.group, action.life)
                return _GONE if handle is None else self._place(handle, action, goes_on)
            case Align():
                handle = self._locate(action.group, action.life)
                return _GONE if handle is None else self._align(handle, action, goes_on)

    def _release(self, action: Release) -> Came:
        backs = Undoing(self._journal, self._root).some(of_group(action.group, action.life))
        return back_together(backs) if backs else Came("done", "nothing of it was changed")

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
        bound = of_group(action.group, action.life, Affinity.kind)
        fresh = not any(bound(each) for each in self._journal.entries())
        came = self._each(handle, action, partial(self._bind, action, wanted, goes_on), goes_on)
        if came.outcome == "refused" and fresh:  # half of a group on another package helps nobody
            backs = Undoing(self._journal, self._root).some(bound)
            if backs:
                came = came._replace(detail=f"{came.detail}; what was bound is as before again")
        return came

    def _bind(
        self, action: Place, wanted: frozenset[int], goes_on: Callable[[], bool], process: Identity
    ) -> Came:
        of = Of(action.group, action.life, process)
        return per_thread.change(of, Affinity(self._root), wanted, self._journal, goes_on)

    # timers

    def _align(self, handle: Handle, action: Align, goes_on: Callable[[], bool]) -> Came:
        if action.slack_s is None:
            backs = Undoing(self._journal, self._root).some(of_group(action.group, action.life, Slack.kind))
            return back_together(backs) if backs else Came("done", "nothing of it was changed")
        return self._each(handle, action, partial(self._slacken, action, action.slack_s, goes_on), goes_on)

    def _slacken(self, action: Align, slack_s: float, goes_on: Callable[[], bool], process: Identity) -> Came:
        of = Of(action.group, action.life, process)
        slack_ns = max(1, round(slack_s * _NS))
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
                return together(came.values()) if came else Came("gone", "it has no process any more")
            for process in left:
                if came and not goes_on():
                    return together(
                        [*came.values(), Came("again later", f"processes that are left: {len(left)}")]
                    )
                came[process] = do(process)

    def _processes(self, handle: Handle) -> list[Identity]:
        if isinstance(handle, CgroupHandle):
            return cgroups.members(handle.directory, self._root)
        return list(handle.processes)
