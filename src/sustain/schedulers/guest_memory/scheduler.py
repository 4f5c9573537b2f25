"""The guest memory scheduler as the loop sees it: its sensor, its decision and its actuator, put together.

Used by the agent and by the verbs that look at guests. Without a journal nothing can be put back, so nothing is acted
upon either; a verb that only looks notes what it changes for that in a journal of its own (`changes`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sustain.clock import Clock
from sustain.errors import ConfigError, UnknownGuest
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.changes import Changes
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.admission import admit
from sustain.schedulers.guest_memory.changes import undo
from sustain.schedulers.guest_memory.config import GuestsConfig
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.explain import explain
from sustain.schedulers.guest_memory.handles import GuestHandle
from sustain.schedulers.guest_memory.measures import measures
from sustain.schedulers.guest_memory.model import Effect, Observation, Policy
from sustain.schedulers.guest_memory.plan import Plan, State
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.schedulers.guest_memory.urgency import Urgency, check, wait_s
from sustain.schedulers.journal import Journal, Report, Undone, restore_left
from sustain.schedulers.loop import Tick, no_beat
from sustain.schedulers.measure import Measure
from sustain.units import parse_size


class GuestMemory:
    """Implements `sustain.schedulers.loop.Scheduler`."""

    name = "guest-memory"

    def __init__(
        self,
        ways: GuestsConfig,
        policy: Policy,
        period_s: float,
        clock: Clock,
        journal: Journal | None,
        urgency: Urgency | None = None,
        changes: Changes | None = None,
        left: Path | None = None,
    ) -> None:
        """`changes`: where what is changed for reading is noted, when not in `journal`; `left`: the journal of verbs
        that only look, of which one may have been killed. Raises ConfigError."""
        urgency = urgency or Urgency()
        check(urgency)
        self.period_s = period_s
        self.least_wait_s = urgency.period_s
        self._urgency = urgency
        self.policy = policy
        self._sensor = Sensor(
            ways, clock=clock, fresh_s=policy.fresh_s, changes=changes or journal, period_s=period_s
        )
        self._changes = changes
        self._left = left
        self._journal = journal
        self._actuator = Actuator(_Handles(self._sensor), journal) if journal is not None else None

    def sense(self) -> Observation:
        return self._sensor.read()

    def decide(
        self, observation: Observation, state: State | None, now_s: float, effects: Sequence[Effect]
    ) -> tuple[Plan, State]:
        decision = decide(observation, state, self.policy, now_s, tuple(effects))
        return decision.plan, decision.state

    def act(self, plan: Plan) -> Sequence[Effect]:
        assert self._actuator is not None
        return self._actuator.carry_out(plan.actions)

    def wait_s(self, plan: Plan, effects: Sequence[Effect]) -> float:
        return wait_s(plan, effects, self._urgency, self.period_s)

    def alarms(self) -> Iterator[Alarm]:
        """Of the host, and of the containers that are there."""
        if not self._urgency.watch:
            return
        stall_s, window_s = self._urgency.stall_s, self._urgency.window_s
        for of, path, life in self._sensor.pressures():
            yield Alarm(of, path, stall_s, window_s, life)

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        undone: tuple[Undone, ...] = ()
        if self._journal is not None and self._actuator is not None and self._journal.entries():
            self._find_guests()
            undone += self._actuator.restore().undone
        if isinstance(self._changes, Journal):
            undone += self._restore_reading(self._changes)
        if self._left is not None:
            undone += restore_left(self._left, self._restore_reading)
        return Report(undone)

    def _restore_reading(self, journal: Journal) -> tuple[Undone, ...]:
        if not journal.entries():
            return ()
        self._find_guests()
        return journal.restore(undo(_Handles(self._sensor))).undone

    def _find_guests(self) -> None:
        if not self._sensor.handles:  # those that were discovered are not known yet
            self._sensor.read()

    def measures(self, observation: Observation, plan: Plan) -> Iterator[Measure]:
        return measures(observation, plan)

    def ask(
        self, question: str, words: Mapping[str, str], tick: Tick[Observation, State, Plan, Effect]
    ) -> dict[str, Any]:
        """plan; explain (`guest`); admit (`size`, `shares`)."""
        assert tick.observation is not None
        assert tick.plan is not None
        if question == "plan":
            found = {"observation": tick.observation, "plan": tick.plan.as_dict(), "effects": tick.effects}
        elif question == "explain":
            guest = words.get("guest", "")
            if guest not in tick.plan:
                raise UnknownGuest(
                    f"{guest}: no such guest",
                    hint=f"there is: {', '.join(tick.plan.names)}"
                    if tick.plan.names
                    else "no guest was found",
                )
            found = {"guest": tick.plan.guest(guest), "text": explain(tick.plan, guest, self.policy)}
        elif question == "admit":
            size, shares = parse_size(words.get("size", "")), _number(words.get("shares"), self.policy)
            found = {
                "admission": admit(
                    tick.observation, tick.state, self.policy, size, shares, period_s=self.period_s
                )
            }
        else:
            raise ConfigError(f"{question}: no such question", hint="there is: plan, explain, admit")
        answer: dict[str, Any] = msgspec.to_builtins(found)
        return answer

    def close(self) -> None:
        if self._actuator is not None:
            self._actuator.close()
        try:
            self._sensor.close()
        finally:
            for journal in (self._journal, self._changes):
                if isinstance(journal, Journal):
                    journal.close()


def _number(shares: str | None, policy: Policy) -> float:
    try:
        found = policy.default.shares if shares is None else float(shares)
    except ValueError:
        found = 0.0
    if not 0.0 < found < math.inf:
        raise ConfigError(f"shares {shares!r} are not a number above 0", hint="1000 is the default")
    return found


class _Handles(Mapping[str, GuestHandle]):
    """The guests that the sensor knows at each moment."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor

    def __getitem__(self, name: str) -> GuestHandle:
        return self._sensor.handles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sensor.handles)

    def __len__(self) -> int:
        return len(self._sensor.handles)
