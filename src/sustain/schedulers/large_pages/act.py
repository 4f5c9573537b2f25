"""Carrying a plan out: blocks are mapped large or small, one after the other, and what came of each is seen.

Used by the scheduler's loop. The model: first the journal holds what each block is and is about to be (`ours`), then it
is done (`hand`), then what did not come off is taken out of the journal again. A block that has become another before
its turn is noted then. No more than `most_per_s` blocks are dealt with in a second, since each holds up the process
that owns it for as long as its pages are copied; and a call ends after `limit_s`, whatever is left, of which it says
"again later".

A process that executes another program keeps its number and its start time: so the images that the plan was made of
are asked for (`seen`), and a process that shows another one by now is gone; so it is before each block and after it.
Rejected: a thread for each process; what makes a block large takes the machine's processors and memory, not a process's
time.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from sustain.errors import JournalError, SustainError
from sustain.host import smaps
from sustain.host.processes import Identity
from sustain.schedulers.changes import undo_damon
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.large_pages import ours
from sustain.schedulers.large_pages.columns import Mask
from sustain.schedulers.large_pages.hand import Came, Hand, gone
from sustain.schedulers.large_pages.model import (
    NOT_ITS_TURN,
    STOPPING,
    Action,
    Collapse,
    Effect,
    Observation,
    Outcome,
)
from sustain.schedulers.large_pages.ours import Ours, Span, start_of
from sustain.schedulers.large_pages.tidy import tidy
from sustain.schedulers.large_pages.undo import undo
from sustain.schedulers.loop import no_beat

MOST_PER_S = 100.0
LIMIT_S = 5.0
_ANOTHER = Came("gone", "it is another program by now")


class Actuator:
    """What maps blocks of all targets large and small. One thread calls; `stop` may be called from any."""

    def __init__(
        self,
        journal: Journal,
        seen: Callable[[Identity], int | None] = lambda _: None,
        *,
        keep: bool = False,
        most_per_s: float = MOST_PER_S,
        limit_s: float = LIMIT_S,
        root: Path = Path("/"),
    ) -> None:
        """`seen`: the image of a process when it was last looked at, None: unknown; `keep`: what was mapped large or
        small stays so at the end, except for a recount."""
        self._journal = journal
        self._ours = Ours(journal)
        self._seen = seen
        self._keep = keep
        self._pause_s = 1 / most_per_s
        self._limit_s = limit_s
        self._root = root
        self._stop = threading.Event()
        self._next_s = 0.0  # before which nothing more is done

    def carry_out(self, actions: Iterable[Action]) -> list[Effect]:
        """All of them, and what came of each, in the same order. Raises nothing that a target or the host may cause."""
        wanted = list(actions)
        until_s = time.monotonic() + self._limit_s
        by_target: dict[tuple[int, int], list[int]] = {}
        for place, action in enumerate(wanted):
            by_target.setdefault((action.pid, action.started), []).append(place)
        effects: dict[int, Effect] = {}
        for places in by_target.values():
            chosen = [wanted[place] for place in places]
            effects.update(zip(places, self._on_one(chosen, until_s), strict=True))
        return [effects[place] for place in range(len(wanted))]

    def tidy(self, seen: Observation, recounting: Mask) -> None:
        """Let go of notes of what is not ours any more, as it was just seen."""
        with contextlib.suppress(JournalError):  # they stay, and the next look lets go of them
            tidy(self._ours, seen, recounting, self._root)

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        """Put back what was changed, here or by a predecessor; `beat` is called at each block. What `stop` leaves
        undone stays in the journal."""
        return self._journal.restore(
            {
                ours.KIND: partial(undo, keep=self._keep, root=self._root, stop=self._stop, beat=beat),
                **undo_damon(self._root),
            }
        )

    def stop(self) -> None:
        """End what is under way after the block that is being dealt with."""
        self._stop.set()

    def close(self) -> None:
        self.stop()

    def _on_one(self, actions: Sequence[Action], until_s: float) -> list[Effect]:
        """Actions on one target."""
        first = actions[0]
        who = Identity(first.pid, first.started)
        try:
            image = smaps.image_of(who, self._root)
            if image is None or self._seen(who) not in (None, image):
                return [
                    Effect(action=each, outcome=_ANOTHER.outcome, detail=_ANOTHER.detail) for each in actions
                ]
            with Hand(who, self._root, self._stop) as hand:
                return self._with_hand(hand, image, actions, until_s)
        except JournalError as error:
            return [Effect(action=each, outcome="again later", detail=_words(error)) for each in actions]
        except SustainError as error:
            outcome: Outcome = "gone" if gone(error) else "refused"
            return [Effect(action=each, outcome=outcome, detail=_words(error)) for each in actions]

    def _with_hand(self, hand: Hand, image: int, actions: Sequence[Action], until_s: float) -> list[Effect]:
        name, pid, started = actions[0].target, actions[0].pid, actions[0].started
        spans = self._ours.of(name, pid, started, image, (each.address for each in actions))
        for action in actions:
            large = isinstance(action, Collapse)
            found = hand.state(action.address).large
            if found != large:
                start = start_of(action.address)
                spans[start] = spans[start].about_to(
                    action.address, found_large=found, large=large, briefly=action.purpose == "recount"
                )
        for span in spans.values():
            if span.changed:
                self._ours.keep(span)
        effects: list[Effect] = []
        try:
            for action in actions:
                effects.append(self._one(hand, image, spans, action, until_s))
        finally:
            self._settle(hand, spans, actions)
        return effects

    def _settle(self, hand: Hand, spans: dict[int, Span], actions: Sequence[Action]) -> None:
        """What did not come off, or is as it was found again, is not ours to put back. Where that cannot be seen or
        noted, more is noted than was done, and whoever puts back sees that it is as it was."""
        with contextlib.suppress(SustainError):
            for action in actions:
                start = start_of(action.address)
                spans[start] = spans[start].seen(action.address, large=hand.state(action.address).large)
            for span in spans.values():
                self._ours.keep(span)

    def _one(self, hand: Hand, image: int, spans: dict[int, Span], action: Action, until_s: float) -> Effect:
        begun_s = time.monotonic()
        if self._stop.is_set() or max(begun_s, self._next_s) >= until_s:
            return Effect(action=action, outcome="again later", detail=NOT_ITS_TURN)
        if self._stop.wait(max(0.0, self._next_s - begun_s)):
            return Effect(action=action, outcome="again later", detail=STOPPING)
        begun_s = time.monotonic()
        self._next_s = begun_s + self._pause_s
        try:
            came = self._do(hand, image, spans, action)
        except JournalError as error:
            came = Came("again later", _words(error))
        except SustainError as error:
            came = Came("gone" if gone(error) else "refused", _words(error))
        return Effect(
            action=action,
            outcome=came.outcome,
            detail=came.detail,
            bytes=came.grown_bytes,
            seconds=time.monotonic() - begun_s,
        )

    def _do(self, hand: Hand, image: int, spans: dict[int, Span], action: Action) -> Came:
        """With its note, if it has none: since all were noted, a block may have become another than it was then."""
        if smaps.image_of(hand.who, self._root) != image:
            return _ANOTHER
        start, large = start_of(action.address), isinstance(action, Collapse)
        if hand.state(action.address).large != large:
            span = spans[start].about_to(
                action.address, found_large=not large, large=large, briefly=action.purpose == "recount"
            )
            if span != spans[start]:
                self._ours.keep(span)
                spans[start] = span
        came = hand.enlarge(action.address) if large else hand.reduce(action.address)
        now = smaps.image_of(hand.who, self._root)
        if now == image:
            return came
        if now is not None and large:
            self._note_another(now, action)
        return _ANOTHER

    def _note_another(self, image: int, action: Action) -> None:
        """It executed another program just as the kernel was asked, which may have made that one's block large."""
        with Hand(Identity(action.pid, action.started), self._root) as hand:
            if not hand.state(action.address).large:
                return
        start = start_of(action.address)
        span = self._ours.of(action.target, action.pid, action.started, image, [action.address])[start]
        self._ours.keep(span.about_to(action.address, found_large=False, large=True, briefly=False))


def _words(error: SustainError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
