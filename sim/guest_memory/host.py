"""A simulated host with simulated guests, on which a policy runs; and what came of it.

When guests leave the host less than a hundredth of its memory, its kernel swaps, of all guests alike, since it cannot
know better; that is what a policy is there to avoid. Effects are what a balloon and the host's memory show one period
later.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sim.guest_memory.guest import Load, ModelGuest
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.model import (
    Action,
    Balloon,
    Effect,
    Host,
    Observation,
    PageOut,
    Policy,
)
from sustain.schedulers.guest_memory.plan import Plan, State

_LOW = 0.01
Timeline = Mapping[str, Callable[[float], Load]]  # load of each guest over time


class Controller(Protocol):
    """A policy under test."""

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]: ...


class Nothing:
    """No policy: the host's kernel alone."""

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        return ()


@dataclass
class Ours:
    """Our own decision, with its state."""

    policy: Policy
    state: State | None = None
    last: Plan | None = None

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        made = decide(seen, self.state, self.policy, seen.at_s, effects)
        self.state, self.last = made.state, made.plan
        return made.plan.actions


@dataclass
class Outcome:
    """What a run came to; simulated. Means are over time."""

    simulated: bool = True
    work: float = 0.0  # of what all guests could have done
    held_bytes: float = 0.0  # of the host, by all guests; mean
    available_bytes: float = 0.0  # mean
    stall: float = 0.0  # share of time, mean of guests
    free_swapped_bytes: float = 0.0
    swings_per_hour: float = 0.0
    goal_share: float = 0.0  # of the time at the goal
    goal_after_s: float | None = None  # since the host first fell below it; None: never came back
    killed_s: float = 0.0
    by_guest: dict[str, float] = field(default_factory=dict)  # work
    ceilings: list[dict[str, float]] = field(default_factory=list)  # each period


@dataclass
class ModelHost:
    """A host: `others` is what is not its guests'."""

    total: float
    guests: Sequence[ModelGuest]
    others: float = 0.0
    swap: float = 0.0
    now_s: float = 1000.0
    free_swapped: float = 0.0

    @property
    def held(self) -> float:
        return sum(each.resident for each in self.guests)

    @property
    def available(self) -> float:
        return self.total - self.others - self.held

    @property
    def swap_free(self) -> float:
        return max(0.0, self.swap - sum(each.host_swapped for each in self.guests))

    def step(self, dt_s: float) -> None:
        for guest in self.guests:
            guest.step(dt_s)
        self.now_s += dt_s
        lack = min(_LOW * self.total - self.available, self.swap_free)
        if lack > 0:
            held = self.held
            for guest in self.guests:
                self.free_swapped += guest.page_out_blindly(lack * guest.resident / held)

    def seen(self) -> Observation:
        swaps = self.swap > 0
        return Observation(
            at_s=self.now_s,
            host=Host(
                total_bytes=self.total,
                free_bytes=max(0.0, self.available),
                available_bytes=max(0.0, self.available),
                swap_total_bytes=self.swap,
                swap_free_bytes=self.swap_free,
            ),
            guests=tuple(each.seen(self.now_s, host_swaps=swaps) for each in self.guests),
        )

    def run(
        self,
        controller: Controller,
        timeline: Timeline,
        seconds: float,
        *,
        period_s: float = 10.0,
        goal: float = 0.0,
    ) -> Outcome:
        """Let it run under a policy."""
        by_name = {each.name: each for each in self.guests}
        outcome, effects = Outcome(), list[Effect]()
        turns: dict[str, float] = {}
        fell_s: float | None = None
        begun_s, steps, swings = self.now_s, int(seconds), 0
        for number in range(steps):
            for name, load in timeline.items():
                by_name[name].load = load(float(number))
            if number % period_s == 0:
                actions = controller.plan(self.seen(), effects)
                before = {each.name: each.resident for each in self.guests}
                swings += self._act(by_name, actions, turns)
            self.step(1.0)
            if number % period_s == period_s - 1:
                effects = self._effects(by_name, actions, before)
                outcome.ceilings.append({each.name: each.ceiling for each in self.guests})
            outcome.held_bytes += self.held / steps
            outcome.available_bytes += self.available / steps
            if self.available >= goal * 0.98:
                outcome.goal_share += 1 / steps
                if fell_s is not None and outcome.goal_after_s is None:
                    outcome.goal_after_s = self.now_s - fell_s
            elif fell_s is None:
                fell_s = self.now_s
        passed = self.now_s - begun_s
        outcome.by_guest = {each.name: each.work_s / passed for each in self.guests}
        outcome.work = sum(outcome.by_guest.values()) / len(self.guests)
        outcome.stall = sum(each.stall_s for each in self.guests) / passed / len(self.guests)
        outcome.killed_s = sum(each.killed_s for each in self.guests)
        outcome.free_swapped_bytes = self.free_swapped
        outcome.swings_per_hour = swings / (passed / 3600)
        return outcome

    def _act(
        self, guests: Mapping[str, ModelGuest], actions: Sequence[Action], turns: dict[str, float]
    ) -> int:
        """Do it; how many balloons were turned around."""
        swings = 0
        for action in actions:
            guest = guests[action.guest]
            if isinstance(action, Balloon):
                way = 1.0 if action.to_bytes > guest.ceiling else -1.0
                swings += turns.get(action.guest, way) != way
                turns[action.guest] = way
                guest.goal = min(action.to_bytes, guest.size)
            elif isinstance(action, PageOut):
                guest.page_out(min(action.amount_bytes, self.swap_free))
        return swings

    def _effects(
        self, guests: Mapping[str, ModelGuest], actions: Sequence[Action], before: Mapping[str, float]
    ) -> list[Effect]:
        found = []
        for action in actions:
            guest = guests[action.guest]
            done = not isinstance(action, Balloon) or abs(guest.ceiling - guest.goal) < 1 << 20
            freed = before[action.guest] - guest.resident
            found.append(Effect(action=action, done=done, freed_bytes=freed))
        return found
