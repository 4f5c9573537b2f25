"""A host that has nothing but a few real guests, and just so much memory: what the scheduler's loop is tried on.

The guests, their processes, the host's swap and all that is done to them are real; only the size of the host is made:
its /proc is a tree of links to the real one, with a `meminfo` that takes what the guests hold from `total_bytes`. So
what other programs of this machine do in the meantime decides nothing.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sustain.clock import SystemClock
from sustain.errors import SustainError
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestsConfig
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.explain import explain
from sustain.schedulers.guest_memory.model import Action, Effect, Observation, Policy
from sustain.schedulers.guest_memory.plan import Plan, State
from sustain.schedulers.guest_memory.sense import Sensor
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import Loop, no_beat
from sustain.schedulers.measure import Measure
from tests.lab.guests import GuestVm


class SmallHost:
    """A scheduler as `Loop` runs it. `plans` and `effects` are all that it made."""

    name = "guest-memory"
    least_wait_s = 0.5

    def __init__(
        self,
        place: Path,
        guests: Sequence[GuestVm],
        ways: GuestsConfig,
        total_bytes: int,
        policy: Policy,
        period_s: float = 0.5,
    ) -> None:
        self.period_s = period_s
        self.total_bytes = total_bytes
        self.least_available_bytes = total_bytes
        self.policy = policy
        self.plans: list[Plan] = []
        self.effects: list[Effect] = []
        self._guests = guests
        self._root = place / "root"
        proc = self._root / "proc"
        proc.mkdir(parents=True)
        (self._root / "sys").symlink_to("/sys")
        (self._root / "dev").symlink_to("/dev")
        for name in ("vmstat", "swaps", "pressure", *(str(guest.pid) for guest in guests)):
            (proc / name).symlink_to(f"/proc/{name}")
        self.available_bytes()
        self._journal = Journal(place / "small-journal")
        self._sensor = Sensor(ways, self._root, fresh_s=policy.fresh_s)
        self._actuator = Actuator(self._sensor.handles, self._journal, root=self._root, limit_s=5.0)

    @property
    def actions(self) -> list[Action]:
        return [action for plan in self.plans for action in plan.actions]

    def used(self, guest: str) -> set[str]:
        """The mechanisms that freed memory of a guest."""
        # A balloon that is not there in time is not done, and has freed what it has.
        done = [each for each in list(self.effects) if (each.freed_bytes or 0) > 0]
        return {str(each.action.__struct_config__.tag) for each in done if each.action.guest == guest}

    def available_bytes(self) -> int:
        """What the guests have left of the host; /proc/meminfo says so from now on."""
        left = max(0, self.total_bytes - self.taken_bytes())
        self.least_available_bytes = min(self.least_available_bytes, left)
        sizes = {"MemTotal": self.total_bytes, "MemFree": left, "MemAvailable": left}
        draft = self._root / "proc/meminfo.new"
        draft.write_text("".join(f"{name}: {size >> 10} kB\n" for name, size in sizes.items()))
        draft.replace(self._root / "proc/meminfo")
        return left

    def taken_bytes(self) -> int:
        """Of the host's memory, by the guests."""
        return sum(guest.resident_bytes() for guest in self._guests)

    def sense(self) -> Observation:
        self.available_bytes()
        return self._sensor.read()

    def decide(
        self, observation: Observation, state: State | None, now_s: float, effects: Sequence[Effect]
    ) -> tuple[Plan, State]:
        decision = decide(observation, state, self.policy, now_s, effects)
        self.plans.append(decision.plan)
        return decision.plan, decision.state

    def act(self, plan: Plan) -> Sequence[Effect]:
        effects = self._actuator.carry_out(plan.actions)
        self.effects.extend(effects)
        return effects

    def wait_s(self, plan: Plan, effects: Sequence[Effect]) -> float:
        return self.period_s

    def alarms(self) -> Sequence[Alarm]:
        return ()

    def restore(self, beat: Callable[[], None] = no_beat) -> Report:
        return self._actuator.restore()

    def measures(self, observation: Observation, plan: Plan) -> Sequence[Measure]:
        return ()

    def ask(self, question: str, words: Mapping[str, str], tick: object) -> dict[str, Any]:
        raise SustainError(f"nobody asks this host, and not {question}", hint="")

    def close(self) -> None:
        self._actuator.close()
        self._sensor.close()
        self._journal.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[Loop[Observation, State, Plan, Effect]]:
        """The loop in its thread; at the end everything is put back."""
        loop: Loop[Observation, State, Plan, Effect] = Loop(self, SystemClock())
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield loop
        finally:
            loop.stop()
            thread.join(60)
            assert not thread.is_alive()

    def story(self) -> str:
        """What was done, for a test that fails."""
        states = " ".join(plan.host_state for plan in self.plans)
        lines = [
            f"{each.action} done={each.done} freed={each.freed_bytes} {each.problem}" for each in self.effects
        ]
        last = [explain(self.plans[-1], guest.name, self.policy) for guest in self._guests]
        return "\n".join((states, *lines, *last))
