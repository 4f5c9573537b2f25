"""Other orders in which blocks could be mapped large, as baselines for simulated hosts.

- `AddressOrder`: khugepaged's. It goes through the address space from the start, maps whatever has a single page
  (max_ptes_none 511, its default), and begins anew at the end. Its default pace is 4096 pages, 8 blocks, each 10 s;
  it is also run at our pace, so that it is not its pace alone that is compared.
- `RandomOrder`: the same in random order, at our pace.
- `Oracle`: knows how many pages of each block are used in this very period, and has the best of them large, also when
  they change. No policy that has to count can be better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sim.large_pages.world import World

from sustain.schedulers.large_pages.model import Action, Collapse, Demote, Effect, Observation

PACE = 256  # blocks a period: the most actions of our plan
KHUGEPAGED_PACE = 0.8  # blocks a second


class AddressOrder:
    """Block after block, until the budget is spent."""

    def __init__(self, budget: int, pace: int = PACE) -> None:
        self._budget, self._pace, self._next = budget, pace, 0

    def order(self, seen: Observation) -> NDArray[np.intp]:
        return np.roll(np.arange(len(seen.blocks)), -self._next)

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        rows = self.order(seen)[: self._pace]
        self._next += self._pace
        left = self._budget - int(seen.blocks.large.sum())
        rows = rows[~seen.blocks.large[rows] & (seen.blocks.populated[rows] > 0)]
        return [_collapse(seen, row) for row in rows[: max(0, left)].tolist()]


class RandomOrder(AddressOrder):
    """Any block, until the budget is spent."""

    def __init__(self, budget: int, seed: int) -> None:
        super().__init__(budget)
        self._random = np.random.default_rng(seed)
        self._order: NDArray[np.intp] | None = None

    def order(self, seen: Observation) -> NDArray[np.intp]:
        if self._order is None:
            self._order = self._random.permutation(len(seen.blocks))
        return np.roll(self._order, -self._next)


class Oracle:
    """Knows the world that it is in."""

    def __init__(self, budget: int, world: World) -> None:
        self._budget, self._world = budget, world

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        best = np.argsort(-self._world.used, kind="stable")[: self._budget]
        wanted = np.zeros(len(seen.blocks), np.bool_)
        wanted[best] = True
        lost = np.flatnonzero(seen.blocks.large & ~wanted)
        won = np.flatnonzero(~seen.blocks.large & wanted)
        return [_demote(seen, row) for row in lost.tolist()] + [_collapse(seen, row) for row in won.tolist()]


def _collapse(seen: Observation, row: int) -> Collapse:
    target = seen.targets[int(seen.blocks.target[row])]
    return Collapse(
        target=target.name,
        pid=target.pid,
        started=target.started,
        address=int(seen.blocks.address[row]),
        purpose="pays",
        reason="a peer's order",
    )


def _demote(seen: Observation, row: int) -> Demote:
    target = seen.targets[int(seen.blocks.target[row])]
    return Demote(
        target=target.name,
        pid=target.pid,
        started=target.started,
        address=int(seen.blocks.address[row]),
        purpose="budget",
        reason="a peer's order",
    )
