"""What is remembered of targets that could not be looked at this time: their blocks are as they were, as far as anybody
knows. Pure.

Used by `decide`. Their rows stay behind those of the blocks that were seen, until their target is looked at again or
has gone. Meanwhile what is large of them keeps its place in the budget, and what was filled of them counts as bloat:
nothing is done with them, and nobody gets what is theirs.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.large_pages.model import PAGES, Observation
from sustain.schedulers.large_pages.state import Memory, State


@dataclass(frozen=True)
class Unseen:
    """Columns of one length."""

    target: NDArray[np.int32]  # index into the targets of the observation
    address: NDArray[np.uint64]
    memory: Memory

    @property
    def places(self) -> int:
        """Blocks that are large, or small only for a recount."""
        return int(np.count_nonzero(self.memory.large | (self.memory.recount_s > -np.inf)))

    @property
    def bloat_pages(self) -> float:
        """At most: what was filled may have gone since."""
        base = self.memory.base[self.memory.base >= 0].astype(np.float64)
        estimate = np.nan_to_num(self.memory.estimate[self.memory.base >= 0], nan=0.0)
        return float(np.maximum(PAGES - np.maximum(base, estimate), 0).sum())

    def behind(
        self, target: NDArray[np.int32], address: NDArray[np.uint64], memory: Memory
    ) -> dict[str, Any]:
        """Those of the blocks that were seen, and then these: as `State` has them."""
        return {
            "target": np.concatenate((target, self.target)),
            "address": np.concatenate((address, self.address)),
            "memory": Memory(
                **{
                    each.name: np.concatenate((getattr(memory, each.name), getattr(self.memory, each.name)))
                    for each in fields(Memory)
                }
            ),
        }


def unseen(seen: Observation, state: State | None) -> Unseen | None:
    """None: all were looked at, or nothing is remembered."""
    if state is None or all(each.looked for each in seen.targets):
        return None
    now = {each.life: place for place, each in enumerate(seen.targets) if not each.looked}
    moved = np.array([now.get(life, -1) for life in state.lives], np.int32)
    owner = moved[state.target] if len(state.target) else state.target
    rows = np.flatnonzero(owner >= 0)
    columns = {each.name: getattr(state.memory, each.name)[rows] for each in fields(Memory)}
    return Unseen(owner[rows], state.address[rows], Memory(**columns))
