"""Power-aware placement as the loop sees it: its sensor, its decision, its actuator and what is kept of what it finds.

Used by the agent and by `sustain packages`. Without a journal nothing can be put back, so nothing is moved either. What
a look has proved and what a trial came to is kept beyond this process (`findings`), also by who only looks.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sustain.errors import ConfigError, SustainError
from sustain.host import pressure
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import Tick, no_beat
from sustain.schedulers.measure import Measure
from sustain.schedulers.packages import explain
from sustain.schedulers.packages.decide import decide
from sustain.schedulers.packages.findings import Findings
from sustain.schedulers.packages.independence import Watched, likely, watched
from sustain.schedulers.packages.measures import measures
from sustain.schedulers.packages.model import Action, Effect, Observation
from sustain.schedulers.packages.plan import Plan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.rates import Look, look, rates
from sustain.schedulers.packages.sense import Host
from sustain.schedulers.packages.state import State

_LEAST_WAIT_S = 1.0
_STALL_WINDOW_S = 2.0  # that the kernel watches for without a right of its own
_READINGS = (
    "number",
    "source",
    "read_s",
    "power_source",
    "energy_read_s",
    "base_hz",
    "most_hz",
    "problems",
)


class Looking(Protocol):
    """What `sense.Sensor` does."""

    findings: Findings
    host: Host

    def read(self, parked: Collection[int] = frozenset()) -> Observation: ...
    def close(self) -> None: ...


class Acting(Protocol):
    """What `act.Actuator` does."""

    def carry_out(self, actions: Iterable[Action]) -> Sequence[Effect]: ...
    def restore(self, beat: Callable[[], None] = no_beat) -> Report: ...
    def close(self) -> None: ...


class Packages:
    """Implements `sustain.schedulers.loop.Scheduler`."""

    name = "packages"

    def __init__(
        self,
        policy: Policy,
        period_s: float,
        sensor: Looking,
        actuator: Acting | None,
        journal: Journal | None = None,
        root: Path = Path("/"),
    ) -> None:
        """`actuator`: None, it only looks. `journal`: the actuator's. All are closed by `close`."""
        self.policy = policy
        self.period_s = period_s
        self.least_wait_s = _LEAST_WAIT_S
        self._sensor = sensor
        self._actuator = actuator
        self._journal = journal
        self._root = root
        self._found: Plan | None = None  # what it has found is not kept yet
        self._problem = ""  # why the last one's is not
        self._parked: frozenset[int] = frozenset()
        self._anew = False  # everything was put back
        self._look: Look | None = None  # the last one
        self._watched: dict[tuple[int, str], Watched] = {}  # what many looks make likely

    def sense(self) -> Observation:
        self._keep()
        seen = self._sensor.read(self._parked)
        between = rates(self._look, seen) if self._look is not None else None
        if between is not None:
            self._watched = watched(self._watched, between.awake, between.residency)
        self._look = look(seen)
        if not self._problem:
            return seen
        return msgspec.structs.replace(seen, problems=(*seen.problems, self._problem))

    def decide(
        self, observation: Observation, state: State | None, now_s: float, effects: Sequence[Effect]
    ) -> tuple[Plan, State]:
        """What is remembered is void when all was put back meanwhile: groups would seem to be set by somebody else."""
        if self._anew:
            state, effects, self._anew = None, (), False
        decision = decide(observation, state, self.policy, now_s, tuple(effects))
        self._found, self._parked = decision.plan, frozenset(decision.state.parked)
        return decision.plan, decision.state

    def act(self, plan: Plan) -> Sequence[Effect]:
        assert self._actuator is not None
        self._keep()
        return self._actuator.carry_out(plan.actions)

    def wait_s(self, plan: Plan, effects: Sequence[Effect]) -> float:
        later = any(each.outcome == "again later" for each in effects)
        return self.least_wait_s if later or len(plan.actions) >= self.policy.most_moves else self.period_s

    def alarms(self) -> Iterator[Alarm]:
        """Tasks that wait for processors, while some are kept empty."""
        if self._parked and self.policy.pressure_limit < 1:
            stall_s = self.policy.pressure_limit * _STALL_WINDOW_S
            path = pressure.file_of_host(self._root, "cpu")
            yield Alarm("the host's processors", path, stall_s, _STALL_WINDOW_S)

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        if self._actuator is None:
            return Report()
        self._anew, self._parked = True, frozenset()
        return self._actuator.restore(beat)

    def measures(self, observation: Observation, plan: Plan) -> Iterator[Measure]:
        return measures(observation, plan)

    def ask(
        self, question: str, words: Mapping[str, str], tick: Tick[Observation, State, Plan, Effect]
    ) -> dict[str, Any]:
        """plan; explain (`name` of a group, or number of a package)."""
        assert tick.observation is not None
        assert tick.plan is not None
        assert tick.state is not None
        found: dict[str, Any]
        if question == "plan":
            host = _host(self._sensor.host, tick.observation) | {"likely": self._likely()}
            found = {"host": host, "plan": tick.plan.as_dict(), "effects": tick.effects}
        elif question == "explain":
            name = words.get("name", "")
            text = explain.of_name(tick.plan, name, tick.state, self.policy)
            more = [f"\n  likely        {each['state']}: {each['text']}" for each in self._likely(name)]
            found = {"name": name, "text": text + "".join(more)}
        else:
            raise ConfigError(f"{question}: no such question", hint="there is: plan, explain")
        answer: dict[str, Any] = msgspec.to_builtins(found)
        return answer

    def close(self) -> None:
        """What the last plan has found and cannot be kept is lost without harm: it is found out anew."""
        self._keep()
        try:
            if self._actuator is not None:
                self._actuator.close()
            self._sensor.close()
        finally:
            if self._journal is not None:
                self._journal.close()

    def _likely(self, package: str = "") -> list[dict[str, Any]]:
        """Of that package, or all: states of which a test has told nothing, and watching no proof, but something."""
        return [
            {"package": number, "state": state, "text": text}
            for (number, state), seen in sorted(self._watched.items())
            if package in ("", str(number)) and (text := likely(seen))
        ]

    def _keep(self) -> None:
        """What the last plan has found."""
        plan, self._found = self._found, None
        if plan is None or not (plan.proved or plan.judged):
            return
        self._problem = ""
        try:
            self._sensor.findings.add(plan.proved, plan.judged)
        except (SustainError, OSError) as error:
            hint = getattr(error, "hint", "")
            self._problem = f"what was found out is not kept: {error}" + (f" ({hint})" if hint else "")


def _host(who: Host, seen: Observation) -> dict[str, Any]:
    """Of the host, what a plan does not say: how its packages are measured, and what former trials came to."""
    return {
        "title": who.title,
        "virtual": seen.virtual,
        "pressure": seen.pressure,
        "nodes": seen.nodes,
        "packages": [{name: getattr(each, name) for name in _READINGS} for each in seen.packages],
        "verdicts": seen.verdicts,
    }
