"""A simulated host with processes whose pages are used in a known way; a policy maps their blocks large or not.

The model: each block has pages that are present and pages that are used in each counting period, by its process's
`Load`. Counting is exact, or DAMON's: of a block `samples` pages are looked at, at random, and the share of those that
were used is told, with the error that `host.damon.estimate` states. Of a block that is mapped large only whether it
was used at all is seen: it has one accessed bit, which a single used page sets, whichever pages
are looked at. Mapping large fills a block; what was filled stays. Accesses are spread evenly over the pages
that are used, so the share of accesses in large pages is the share of used pages in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.decide import decide
from sustain.schedulers.large_pages.model import (
    BLOCK_BYTES,
    PAGE_BYTES,
    PAGES,
    Action,
    Blocks,
    Collapse,
    Effect,
    HostView,
    Observation,
    Target,
)
from sustain.schedulers.large_pages.plan import Plan
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import State

Pages = NDArray[np.int64]
_GIB = float(1 << 30)
_HOST = HostView(total_bytes=64 * _GIB, available_bytes=48 * _GIB, pressure=0.0)
_COLLAPSE_S = 0.006
_START_S = 1000.0


@dataclass(frozen=True)
class Load:
    """One process: pages present at the start, and used in a period that ends at a time since then."""

    name: str
    present: Pages
    used: Callable[[float], Pages]


class Controller(Protocol):
    """A policy under test: which blocks are to become large, or small, after one look."""

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]: ...


class Ours:
    """Our decision."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.last: Plan | None = None
        self.state: State | None = None

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        decision = decide(seen, self.state, self.policy, seen.now_s, effects)
        self.last, self.state = decision.plan, decision.state
        return decision.plan.actions


@dataclass
class World:
    """The host. `samples` 0: counting is exact. `answer` says what comes of an action, "done" without one."""

    loads: Sequence[Load]
    period_s: float = 10.0
    samples: int = 0
    seed: int = 1
    host: HostView = _HOST
    answer: Callable[[Action], Any] = lambda _: "done"
    at_s: float = 0.0
    effects: tuple[Effect, ...] = ()
    present: Pages = field(init=False)
    large: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        sizes = [len(load.present) for load in self.loads]
        self.target = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.first = np.concatenate(([0], np.cumsum(sizes)))
        self.address = np.concatenate(
            [(np.arange(size, dtype=np.uint64) + np.uint64(1)) * np.uint64(BLOCK_BYTES) for size in sizes]
        )
        self.present = np.concatenate([load.present for load in self.loads]).astype(np.int64)
        self.began = self.present.copy()
        self.large = np.zeros(len(self.present), np.bool_)
        self.targets = tuple(
            Target(
                name=load.name, pid=100 + index, started=1, counting="damon" if self.samples else "page-idle"
            )
            for index, load in enumerate(self.loads)
        )

    @property
    def used(self) -> Pages:
        """In the period that ends now."""
        return np.concatenate([load.used(self.at_s) for load in self.loads])

    @property
    def coverage(self) -> float:
        """Share of accesses that fall in large pages."""
        used = self.used
        return float(used[self.large].sum() / max(1, used.sum()))

    @property
    def bloat_bytes(self) -> float:
        """What mapping large has filled."""
        return float((self.present - self.began).sum()) * PAGE_BYTES

    def seen(self) -> Observation:
        """One look, as the period ends."""
        touched, error = self._counts()
        blocks = Blocks(
            target=self.target,
            address=self.address,
            touched=np.where(self.large, (self.used > 0) * np.float32(PAGES), touched).astype(np.float32),
            error=error,
            age_s=np.zeros(len(touched), np.float32),
            populated=self.present.astype(np.int16),
            large=self.large.copy(),
            whole=self.large.copy(),
            eligible=np.ones(len(touched), np.bool_),
            guest_large=np.full(len(touched), -1, np.int8),
        )
        return Observation(now_s=_START_S + self.at_s, blocks=blocks, targets=self.targets, host=self.host)

    def step(self, controller: Controller) -> Sequence[Action]:
        """One period: a look at its end, a plan, and the plan carried out."""
        self.at_s += self.period_s
        actions = controller.plan(self.seen(), self.effects)
        self.effects = tuple(self._do(action) for action in actions)
        return actions

    def _do(self, action: Action) -> Effect:
        outcome = self.answer(action)
        row = int(self.first[action.pid - 100]) + int(action.address) // BLOCK_BYTES - 1
        if outcome != "done":
            return Effect(action=action, outcome=outcome, seconds=_COLLAPSE_S / 10)
        filled = 0
        if isinstance(action, Collapse):
            filled = PAGES - int(self.present[row])
            self.present[row] = PAGES
        self.large[row] = isinstance(action, Collapse)
        return Effect(action=action, outcome="done", bytes=float(filled * PAGE_BYTES), seconds=_COLLAPSE_S)

    def _counts(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        used = self.used
        if not self.samples:
            return used.astype(np.float32), np.zeros(len(used), np.float32)
        share = self._random.binomial(self.samples, used / PAGES) / self.samples
        error = np.maximum(np.sqrt(share * (1 - share) / self.samples), 1 / self.samples)
        return (share * PAGES).astype(np.float32), (error * PAGES).astype(np.float32)
