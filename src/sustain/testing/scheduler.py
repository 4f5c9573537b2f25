"""A small scheduler over files: for tests of what runs schedulers, and to read before writing one.

Its host is a directory of dials, files with a number in them. It turns each one down to `goal`, by at most `step` a
tick, and can put all of them back. Since the dials are files, it can be killed, and another process can go on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sustain.errors import SustainError
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.journal import Entry, Journal, Outcome, Report, put_back
from sustain.schedulers.loop import Tick, no_beat
from sustain.schedulers.measure import Measure


class Dials(msgspec.Struct, frozen=True):
    """Observation."""

    at_s: float
    values: dict[str, int]


class Turn(msgspec.Struct, frozen=True, tag="turn"):
    """Action."""

    dial: str
    from_value: int
    to_value: int
    reason: str


class TurnPlan(msgspec.Struct, frozen=True):
    """Plan."""

    actions: tuple[Turn, ...] = ()


class Turned(msgspec.Struct, frozen=True):
    """Effect."""

    action: Turn
    done: bool
    problem: str | None = None


class DialPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Policy."""

    goal: int = 0
    step: int = 1


def decide(seen: Dials, state: int | None, policy: DialPolicy) -> tuple[TurnPlan, int]:
    """The state is the number of dials turned so far."""
    turns = tuple(
        Turn(
            name, value, max(policy.goal, value - policy.step), f"{value} is above the goal of {policy.goal}"
        )
        for name, value in sorted(seen.values.items())
        if value > policy.goal
    )
    return TurnPlan(turns), (state or 0) + len(turns)


class DialScheduler:
    """Implements `sustain.schedulers.loop.Scheduler`. `fault`, when set, is called at each step with its name and
    may raise."""

    name = "dials"

    def __init__(
        self, directory: Path, journal: Journal, policy: DialPolicy | None = None, period_s: float = 0.01
    ) -> None:
        self.period_s = period_s
        self.least_wait_s = 0.0
        self.soon_s: float | None = None  # how soon it wants to be called again while it turns dials
        self.watched: tuple[Alarm, ...] = ()
        self.fault: Callable[[str], None] = lambda step: None
        self.heard: list[Turned] = []  # the effects that decisions were told of
        self._directory, self._journal, self._policy = directory, journal, policy or DialPolicy()

    def sense(self) -> Dials:
        self.fault("sense")
        return Dials(0.0, {path.name: int(path.read_text()) for path in self._directory.glob("[!.]*")})

    def decide(
        self, observation: Dials, state: int | None, now_s: float, effects: Sequence[Turned]
    ) -> tuple[TurnPlan, int]:
        self.fault("decide")
        self.heard += effects
        return decide(observation, state, self._policy)

    def act(self, plan: TurnPlan) -> Sequence[Turned]:
        self.fault("act")
        return [self._turn(action) for action in plan.actions]

    def wait_s(self, plan: TurnPlan, effects: Sequence[Turned]) -> float:
        return self.period_s if self.soon_s is None or not plan.actions else self.soon_s

    def alarms(self) -> Iterable[Alarm]:
        return self.watched

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        return self._journal.restore({"dial": self._undo})

    def measures(self, observation: Dials, plan: TurnPlan) -> Iterable[Measure]:
        for name, value in observation.values.items():
            yield Measure("sustain_dial", "what a dial shows", value, (("dial", name),))

    def ask(
        self, question: str, words: Mapping[str, str], tick: Tick[Dials, int, TurnPlan, Turned]
    ) -> dict[str, Any]:
        if question != "plan":
            raise SustainError(f"dials know nothing of {question}", hint="ask for the plan")
        found: dict[str, Any] = msgspec.to_builtins(
            {"observation": tick.observation, "state": tick.state, "plan": tick.plan}
        )
        return found

    def close(self) -> None:
        self._journal.close()

    def _turn(self, action: Turn) -> Turned:
        path = self._directory / action.dial
        if not path.exists():
            return Turned(action, False, "it is gone")
        self._journal.note(action.dial, "dial", {}, action.from_value, action.to_value)
        _set(path, action.to_value)
        return Turned(action, True)

    def _undo(self, entry: Entry) -> Outcome:
        path = self._directory / entry.key
        return put_back(
            entry,
            lambda: int(path.read_text()) if path.exists() else None,
            lambda value: _set(path, value),
        )


def _set(path: Path, value: object) -> None:
    """Whole or not at all: whoever sets it may be killed."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(str(value))
    draft.replace(path)
