"""What comes out of `decide`: a Plan, the State it will want to see again, and the answer to "would it fit?". Pure.

Used by `decide` and `admission`, which make them; by `explain`, the command line and the metrics, which show them; by
`act`, which carries `Plan.actions` out.

A plan keeps its figures in columns, one array per figure, since it is made every few seconds for thousands of guests
and is read for one. `Plan.guest(name)` gives a row as a value, with None for unknown; inside the columns unknown is
NaN. Rejected: a struct per guest, which costs more than the decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.guest_memory.model import Action, Mechanism

HostState = Literal["unknown", "high", "clear", "soft", "hard", "low"]
Column = NDArray[np.float64]
Mask = NDArray[np.bool_]
MECHANISMS: tuple[Mechanism, ...] = ("balloon", "pageout", "reclaim")


class HostPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The host's side of a plan. `capacity_bytes` is what all guests together may have: what they have, and what is
    available, less the goal."""

    state: HostState
    available_bytes: float | None
    goal_bytes: float | None
    capacity_bytes: float | None
    clear_bytes: float | None = None  # the bounds
    soft_bytes: float | None = None
    hard_bytes: float | None = None
    low_bytes: float | None = None
    problems: tuple[str, ...] = ()


class GuestPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is meant for one guest, and the figures that it follows from."""

    name: str
    source: str  # of its page classes
    size_bytes: float | None
    balloon_bytes: float | None  # what the balloon leaves it now
    held_bytes: float | None  # of the host's memory
    age_s: float | None  # of its page classes
    active_bytes: float | None  # now
    working_set_bytes: float | None  # the greater of the next two
    measured_bytes: float | None  # what is active, over time
    doubted_bytes: (
        float | None
    )  # what is left of all that it had when it was pressed last; None: it never was
    spared_s: float | None  # for so long after that nothing is taken from it for the host's goal
    needs_bytes: float | None  # with headroom, and with room for a rise like those of late
    shares: float
    floor_bytes: float | None
    hidden_bytes: float | None  # what it may use and lists nowhere; None: no balloon
    # What its balloon leaves it whatever happens; more where it does not deflate by itself.
    kept_bytes: float | None
    most_bytes: float | None
    wanted_bytes: float | None  # what it has and what it needs beyond that
    entitlement_bytes: float | None  # if all guests wanted all they may have
    target_bytes: float | None  # of the host's memory
    stall: float | None  # share of time
    swap_in_bytes_per_s: float | None
    refault_bytes_per_s: float | None
    pressed: bool  # gets memory back at once
    mechanism: Mechanism | None
    change_bytes: float  # this plan takes (negative) or gives (positive)
    cost_s: float | None  # of later waiting, by estimate, for what is taken
    balloon_cost_s: float | None  # the same amount by balloon; None: it cannot
    pageout_cost_s: float | None
    reclaim_cost_s: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to do, why, and for every guest the figures behind it."""

    at_s: float
    host: HostPlan
    actions: tuple[Action, ...]
    names: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, Column]  # by the names of GuestPlan's figures
    notes: Mapping[str, tuple[str, ...]]  # beyond what the figures say: problems, back-off

    @property
    def host_state(self) -> HostState:
        return self.host.state

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def _by_guest(self) -> dict[str, Action]:
        return {action.guest: action for action in self.actions}

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def guest(self, name: str) -> GuestPlan:
        """The row of one guest. Raises KeyError."""
        row = self._rows[name]
        action = self._by_guest.get(name)
        figures: dict[str, Any] = {key: _known(column[row]) for key, column in self.columns.items()}
        figures["pressed"] = bool(figures["pressed"])
        reasons = (() if action is None else (action.reason,)) + tuple(self.notes.get(name, ()))
        kind: Mechanism | None = None if action is None else action.__struct_config__.tag  # type: ignore[assignment]
        return GuestPlan(name=name, source=self.sources[row], mechanism=kind, reasons=reasons, **figures)

    @property
    def guests(self) -> tuple[GuestPlan, ...]:
        """All rows."""
        return tuple(self.guest(name) for name in self.names)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found: dict[str, Any] = msgspec.to_builtins(
            {"at_s": self.at_s, "host": self.host, "guests": self.guests, "actions": self.actions}
        )
        return found


@dataclass(frozen=True)
class State:
    """What a decision remembers for the next. A guest that was started anew begins anew."""

    at_s: float
    host_state: HostState
    keys: tuple[tuple[str, str], ...]  # name, life
    columns: Mapping[str, Column]
    backoff_reasons: Mapping[tuple[str, Mechanism], str]
    boots: tuple[str, ...]  # of the systems in them, "" where that was never said


@dataclass(frozen=True)
class Decision:
    """One decision."""

    plan: Plan
    state: State


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one guest would give for another."""

    guest: str
    amount_bytes: float
    mechanism: Mechanism
    seconds: float
    cost_s: float | None  # of later waiting, by estimate


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one more guest fits: now, after some reclaim, or not."""

    verdict: Literal["now", "after reclaim", "no", "unknown"]
    size_bytes: float
    available_bytes: float | None  # beyond the host's goal
    seconds: float | None  # until it fits
    sources: tuple[Share, ...] = ()
    short_bytes: float | None = None  # that are missing even then
    cost_s: float | None = None  # of later waiting of the guests that give
    risk: tuple[str, ...] = ()  # in words: what could make this wrong


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
