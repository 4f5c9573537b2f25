"""The large-page prioritiser as the loop sees it: its sensor, its decision and its actuator, put together.

Used by the agent and by `sustain pages`. Without a journal nothing can be put back, so nothing is mapped either; a verb
that only looks notes what it changes for that (DAMON) in a journal of its own (`changes`). A kernel that cannot count
says so with each observation: what is there and what is mapped large is known all the same.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sustain.clock import Clock
from sustain.errors import ConfigError, HostError
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.changes import Changes, undo_damon
from sustain.schedulers.journal import Journal, Report, Undone, restore_left
from sustain.schedulers.large_pages import explain
from sustain.schedulers.large_pages.act import Actuator
from sustain.schedulers.large_pages.config import LargePagesConfig, check
from sustain.schedulers.large_pages.counting import Counter, counter
from sustain.schedulers.large_pages.decide import decide, recounting
from sustain.schedulers.large_pages.measures import measures
from sustain.schedulers.large_pages.model import Effect, Observation
from sustain.schedulers.large_pages.plan import Plan
from sustain.schedulers.large_pages.sense import Sensor
from sustain.schedulers.large_pages.state import State
from sustain.schedulers.loop import Tick, no_beat
from sustain.schedulers.measure import Measure

_LEAST_WAIT_S = 1.0
_COUNT_AGAIN_S = 60.0  # what could not be counted by is tried again
_FRESH = 0.75  # of the age from which counts are not acted upon: no counting period is longer


class LargePages:
    """Implements `sustain.schedulers.loop.Scheduler`."""

    name = "large-pages"

    def __init__(
        self,
        config: LargePagesConfig,
        period_s: float,
        clock: Clock,
        journal: Journal | None,
        changes: Changes | None = None,
        left: Path | None = None,
        counts: Counter | None = None,
        root: Path = Path("/"),
    ) -> None:
        """`counts`: in place of the way that `config` names; `changes`: where what is changed for counting is noted,
        when not in `journal`; `left`: the journal of verbs that only look, of which one may have been killed. Raises
        ConfigError."""
        check(config)
        self.period_s = period_s
        self.least_wait_s = _LEAST_WAIT_S
        self.policy = config.policy
        self._journal = journal
        self._changes = changes
        self._left = left
        self._root = root
        notes: tuple[str, ...] = ()
        found = counts
        self._clock = clock
        self._count = partial(_counter, config, clock, changes or journal, root)
        if found is None:
            found, notes = self._count()
        self._again_s = math.inf if found is not None else self._now_s() + _COUNT_AGAIN_S
        self._sensor = Sensor(config.targets, found, clock, notes=notes, root=root)
        self._actuator = (
            Actuator(journal, self._sensor.image, keep=config.keep, root=root)
            if journal is not None
            else None
        )

    def sense(self) -> Observation:
        if self._now_s() >= self._again_s:  # whoever counted by the host's marks may have ended
            found, notes = self._count()
            self._again_s = math.inf if found is not None else self._now_s() + _COUNT_AGAIN_S
            if found is not None:
                self._sensor.count_by(found, notes)
        return self._sensor.read()

    def decide(
        self, observation: Observation, state: State | None, now_s: float, effects: Sequence[Effect]
    ) -> tuple[Plan, State]:
        decision = decide(observation, state, self.policy, now_s, tuple(effects))
        return decision.plan, decision.state

    def act(self, plan: Plan) -> Sequence[Effect]:
        assert self._actuator is not None
        self._actuator.tidy(plan.seen, recounting(plan.memory, plan.finding))
        return self._actuator.carry_out(plan.actions)

    def wait_s(self, plan: Plan, effects: Sequence[Effect]) -> float:
        return self.period_s

    def alarms(self) -> Iterator[Alarm]:
        """None: what is scarce shows at the next look, and a demotion gives little back at once."""
        return iter(())

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        undone: tuple[Undone, ...] = ()
        if self._actuator is not None and self._journal is not None and self._journal.entries():
            undone += self._actuator.restore(beat).undone
        if isinstance(self._changes, Journal):
            undone += self._restore_counting(self._changes)
        if self._left is not None:
            undone += restore_left(self._left, self._restore_counting)
        return Report(undone)

    def measures(self, observation: Observation, plan: Plan) -> Iterator[Measure]:
        return measures(observation, plan)

    def ask(
        self, question: str, words: Mapping[str, str], tick: Tick[Observation, State, Plan, Effect]
    ) -> dict[str, Any]:
        """plan; explain (`target`, `address` or none); map (`target`)."""
        assert tick.observation is not None
        assert tick.plan is not None
        plan, target = tick.plan, words.get("target", "")
        found: dict[str, Any]
        if question == "plan":
            host = tick.observation.host
            found = {"host": host, "plan": plan.as_dict(), "effects": tick.effects}
        elif question == "explain" and "address" in words:
            address = explain.parse_address(words["address"])
            found = {"target": target, "text": explain.of_block(plan, target, address, self.policy)}
        elif question == "explain":
            found = {"target": target, "text": explain.of_target(plan, target, self.policy)}
        elif question == "map":
            found = {
                "target": explain.find(plan, target)[0],
                "columns": explain.as_columns(plan, target),
                "high": self.policy.high,
            }
        else:
            raise ConfigError(f"{question}: no such question", hint="there is: plan, explain, map")
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

    def _restore_counting(self, journal: Journal) -> tuple[Undone, ...]:
        return journal.restore(undo_damon(self._root)).undone if journal.entries() else ()


def _counter(
    config: LargePagesConfig, clock: Clock, changes: Changes | None, root: Path
) -> tuple[Counter | None, tuple[str, ...]]:
    """What counts, or why nothing does, or nothing better."""
    if changes is None:
        return None, ("nothing is counted: there is no journal to note it in",)
    try:
        longest_s = _FRESH * config.policy.fresh_s
        found, why = counter(config.counting, config.count_period_s, clock, changes, root, longest_s)
    except HostError as error:
        return None, (f"nothing is counted: {error}" + (f" ({error.hint})" if error.hint else ""),)
    return found, (why,) if why else ()
