"""The one tick that every scheduler makes: sense, decide, act, at its period, whatever fails.

Used by the agent, which gives each scheduler a thread with its own loop, and by the command line. A scheduler is
what `Scheduler` says; the guest memory one is in `guest_memory.scheduler`, a small made-up one in `sustain.testing`.

The model: ticks start on a grid of periods; one that takes longer skips what it has missed and counts it, rather than
running after its time. A tick comes sooner when the scheduler wants one (`wait_s`), or when tasks stall (`alarms`) or
somebody else hurries; but not within `least_wait_s` of the end of the last, so that a host under pressure does not
make a loop spin. The grid then begins anew with it. A tick that fails (a source is gone, or we have a defect) ends
there; the next period tries again. A scheduler that has been blind for long puts back what it changed, since it can no
longer see whom that hurts. A loop puts back at its start what a killed predecessor has left, and at its end what it
did itself.

Rejected: one loop for all schedulers, or asyncio: what hangs in the kernel hangs its thread, and nobody else's.
"""

import math
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.schedulers.alarms import Alarm, Alarms
from sustain.schedulers.journal import Report
from sustain.schedulers.measure import Measure

O = TypeVar("O")  # observation  # noqa: E741 - what the others are called follows from it
S = TypeVar("S")  # state
P = TypeVar("P")  # plan
E = TypeVar("E")  # effect of an action


def no_beat() -> None:
    """For whoever does not watch whether something hangs."""


class Scheduler(Protocol[O, S, P, E]):
    """One scheduler, as a loop sees it. Methods are called from the loop's thread where nothing else is said."""

    @property
    def name(self) -> str: ...

    @property
    def period_s(self) -> float: ...

    @property
    def least_wait_s(self) -> float:
        """Between the end of a tick and one before its time."""

    def sense(self) -> O:
        """Look at the host. Raises SustainError or OSError when nothing can be seen; what is unknown of one guest
        alone is in the observation."""

    def decide(self, observation: O, state: S | None, now_s: float, effects: Sequence[E]) -> tuple[P, S]:
        """Pure: what to do, and what to remember. `effects` are those of the plan before; a state of None is the
        beginning."""

    def act(self, plan: P) -> Sequence[E]:
        """Carry a plan out; what came of each of its actions. What cannot be done is an effect, not an exception."""

    def wait_s(self, plan: P, effects: Sequence[E]) -> float:
        """Pure: how soon to be called again after that, `period_s` when there is no hurry."""

    def alarms(self) -> Iterable[Alarm]:
        """Stalls that end the wait, as things are now. What cannot be watched is left out."""

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        """Put back everything that was changed and not put back yet, also by a predecessor. One that may take longer
        than a tick calls `beat` at each piece, from any thread: else it counts as hanging."""

    def measures(self, observation: O, plan: P) -> Iterable[Measure]:
        """What there is to watch in a tick. From any thread."""

    def ask(self, question: str, words: Mapping[str, str], tick: "Tick[O, S, P, E]") -> dict[str, Any]:
        """The answer to a question about a tick that came off, as JSON has it. Each scheduler knows "plan", and others
        as it likes. From any thread. Raises SustainError for what it does not know."""

    def close(self) -> None:
        """Let go of what the scheduler holds; changes stay as they are. Raises SustainError or OSError when something
        could not be given back."""


@dataclass(frozen=True, slots=True)
class Tick(Generic[O, S, P, E]):
    """What one tick came to. Of one that failed, what it had come to; `problem` says why it ended there."""

    number: int
    at_s: float  # CLOCK_BOOTTIME
    state: S | None
    observation: O | None = None
    plan: P | None = None
    effects: tuple[E, ...] = ()
    sense_s: float | None = None
    decide_s: float | None = None
    act_s: float | None = None
    wait_s: float | None = None  # how soon the scheduler wants the next one
    problem: str = ""
    hint: str = ""


@dataclass(slots=True)
class Counts:
    """What a loop has done since it began."""

    ticks: int = 0
    failed: int = 0  # ticks
    skipped: int = 0  # periods, because a tick took longer than one
    hurried: int = 0  # ticks before their time
    actions: int = 0
    refused: int = 0  # actions that did not come off
    restores: int = 0  # because it was blind


Listener = Callable[["Loop[Any, Any, Any, Any]", Tick[Any, Any, Any, Any]], None]


class Loop(Generic[O, S, P, E]):
    """One scheduler in time.

    `tell` gets a line for people at each change for the worse or the better. `listeners` are called after each tick
    and must not raise. With `act=False` plans are made and not carried out, and nothing is put back.
    """

    def __init__(
        self,
        scheduler: Scheduler[O, S, P, E],
        clock: Clock,
        *,
        act: bool = True,
        blind_after_s: float = 300.0,
        tell: Callable[[str], None] = lambda _: None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.scheduler = scheduler
        self.acts = act
        self.counts = Counts()
        self.last: Tick[O, S, P, E] | None = None  # replaced whole: any thread may read it
        self.good: Tick[O, S, P, E] | None = None  # the last one that did not fail
        self.restored: Report | None = None  # the last time something was put back
        self.left: tuple[
            str, ...
        ] = ()  # what was not, the last time that was tried, in words; also at the close
        self.failure = ""  # since the last good tick
        self._clock = clock
        self._blind_after_s = blind_after_s
        self._tell = tell
        self._listeners = tuple(listeners)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._hurried = False  # since the last tick began
        self.alarms = Alarms(self.hurry, tell)
        self._seen_s = self.beat_s = self._now_s()  # beat: when the loop last came round
        self._put_back = False  # since it has been blind
        self._effects: tuple[E, ...] = ()  # that no decision has heard of yet
        self._unwatched = ""  # why the last tick's alarms are not watched

    def run(self) -> None:
        """Tick until `stop`; then put everything back and let go."""
        try:
            if self.acts:
                self.restore("left by an agent that was killed")
            start_s = self._now_s()
            while not self._stop.is_set():
                self._hurried = False
                tick = self.tick()
                self._watch()
                start_s, skipped = next_start(start_s, self.scheduler.period_s, self._now_s())
                self.counts.skipped += skipped
                start_s = self._wait(start_s, tick)
        finally:
            self.alarms.close()
            if self.acts:
                self.restore("the scheduler stops")
            self._close()

    def stop(self) -> None:
        """End `run` after the tick that is going on. From any thread, also from a signal handler."""
        self._stop.set()
        self._wake.set()

    def hurry(self) -> None:
        """Tick as soon as may be rather than at the end of the period. From any thread."""
        self._hurried = True
        self._wake.set()

    @property
    def blind_s(self) -> float:
        """How long nothing has been seen."""
        return max(0.0, self._now_s() - self._seen_s)

    def tick(self) -> Tick[O, S, P, E]:
        """One sense, decide, act."""
        before = self.last
        tick: Tick[O, S, P, E]
        self._beat()
        now_s = self.beat_s
        number, state = (before.number + 1, before.state) if before else (1, None)
        found: dict[str, Any] = {}
        try:
            found["observation"] = seen = self.scheduler.sense()
            found["sense_s"] = self._since(now_s)
            begun_s = self._now_s()
            found["plan"], state = self.scheduler.decide(seen, state, begun_s, self._effects)
            found["decide_s"] = self._since(begun_s)
            self._effects = ()
            begun_s = self._now_s()
            if self.acts and not self._stop.is_set():
                found["effects"] = self._effects = tuple(self.scheduler.act(found["plan"]))
                found["act_s"] = self._since(begun_s)
                found["wait_s"] = self.scheduler.wait_s(found["plan"], self._effects)
        except Exception as error:  # noqa: BLE001 - whatever it is, the guests must not stay as they are for ever
            found |= self._failed(error)
        tick = Tick(number, now_s, state, **found)
        self._account(tick)
        for listener in self._listeners:
            listener(self, tick)
        return tick

    def restore(self, why: str) -> Report:
        """Put back what was changed, and say so; what fails stays in the journal."""
        self._beat()
        try:
            report = self.scheduler.restore(self._beat)
        except (SustainError, OSError) as error:
            self.left = (f"cannot put back what was changed: {error}",)
            self._tell(f"cannot put back what was changed ({why}): {error}")
            return Report()
        self.left = tuple(f"{each.entry.key} is not put back" for each in report.failed)
        if report.undone:
            self.restored = report
            done = sum(each.outcome == "restored" for each in report.undone)
            self._tell(f"put back {done} of {len(report.undone)} changes: {why}")
        for each in report.failed:
            self._tell(f"{each.entry.key} is not put back: {each.problem}")
        return report

    def _close(self) -> None:
        """Let go, and say what could not be given back."""
        try:
            self.scheduler.close()
        except (SustainError, OSError) as error:
            said = f"not all could be given back: {error}"
            hint = getattr(error, "hint", "")
            self.left = (*self.left, said)
            self._tell(said + (f" ({hint})" if hint else ""))

    def _watch(self) -> None:
        """What the scheduler wants watched now; when that cannot be known, what was watched before, and its period."""
        try:
            self.alarms.watch(self.scheduler.alarms())
        except (SustainError, OSError) as error:
            if str(error) != self._unwatched:
                self._tell(f"what is to be watched for stalls is unknown: {error}")
            self._unwatched = str(error)
        else:
            self._unwatched = ""

    def _wait(self, next_s: float, tick: Tick[O, S, P, E]) -> float:
        """Until the next tick is due, which is at `next_s` or sooner; when it begins."""
        ended_s = self._now_s()
        while not self._stop.is_set():
            self._wake.clear()
            at_s = due(ended_s, next_s, tick.wait_s, self.scheduler.least_wait_s, self._hurried)
            now_s = self._now_s()
            if now_s >= at_s:
                self.counts.hurried += at_s < next_s
                return next_s if at_s == next_s else now_s
            if not self._stop.is_set():  # set before the flag was cleared
                self._wake.wait(at_s - now_s)
        return next_s

    def _account(self, tick: Tick[O, S, P, E]) -> None:
        counts = self.counts
        counts.ticks += 1
        counts.actions += len(tick.effects)
        counts.refused += sum(not getattr(effect, "done", True) for effect in tick.effects)
        self.last = tick
        if tick.problem:
            counts.failed += 1
            if tick.problem != self.failure:
                self._tell(tick.problem + (f" ({tick.hint})" if tick.hint else ""))
            self.failure = tick.problem
            if self.acts and not self._put_back and self.blind_s >= self._blind_after_s:
                self._put_back = True
                counts.restores += 1
                self.restore(f"nothing has been seen for {self.blind_s:.0f} s")
            return
        if self.failure:
            self._tell("goes on")
        self.good = tick
        self.failure, self._put_back, self._seen_s = "", False, self._now_s()

    def _failed(self, error: Exception) -> dict[str, Any]:
        if isinstance(error, SustainError):
            return {"problem": str(error), "hint": error.hint}
        if isinstance(error, OSError):
            return {"problem": str(error)}
        problem = f"unexpected {type(error).__name__}: {error}"
        if problem != self.failure:
            self._tell("".join(traceback.format_exception(error)).rstrip())
        return {"problem": problem, "hint": "a defect of Sustain; the lines before say where"}

    def _beat(self) -> None:
        self.beat_s = self._now_s()

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9

    def _since(self, begun_s: float) -> float:
        return self._now_s() - begun_s


def next_start(started_s: float, period_s: float, now_s: float) -> tuple[float, int]:
    """(when the next tick starts, periods that are skipped): the first place on the grid that is not in the past."""
    behind = max(1, math.ceil((now_s - started_s) / period_s))
    return started_s + behind * period_s, behind - 1


def due(ended_s: float, next_s: float, wait_s: float | None, least_wait_s: float, hurried: bool) -> float:
    """When the next tick starts: at `next_s`, the next place on the grid, or sooner, as the scheduler wants (`wait_s`)
    or since somebody hurries; but then not within `least_wait_s` of the end of the last one."""
    if hurried:
        return min(next_s, ended_s + least_wait_s)
    return next_s if wait_s is None else min(next_s, ended_s + max(wait_s, least_wait_s))
