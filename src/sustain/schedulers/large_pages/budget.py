"""How much there is to spend: large pages, processor time, bytes to fill; and what part of it is whose. Pure.

Used by `decide`. Processor time is an allowance that grows with time and is spent by actions, each at what such actions
have taken so far; it holds at most a minute's worth, so that a pause does not end in a burst.

Of the large pages, `by_shares` are divided by shares: no target gets more than it wants, what one does not want goes
to the others. That part is each target's own. The rest goes to the best blocks of all. Rejected: all by shares, which
spends large pages on cold blocks of one target while hot ones of another wait; and none, by which one target with many
hot blocks leaves nothing to the others.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sustain.schedulers.guest_memory.host_state import min_free_bytes
from sustain.schedulers.large_pages.backoff import FIRST_S
from sustain.schedulers.large_pages.model import BLOCK_BYTES, Blocks, HostView
from sustain.schedulers.large_pages.policy import Policy
from sustain.schedulers.large_pages.state import State

HELD_S = 60.0
_SCARCE = 1.5  # of what the guest memory scheduler aims at: large pages go before it takes anything
_PLENTY = 4 / 3  # of that, when it is over
_PRESSURE_OVER = 0.5  # of the limit


def large_pages(policy: Policy, blocks: Blocks, unseen: int = 0) -> int | None:
    """The most that all targets together may have; None: no limit. `unseen`: blocks that are there, and not told."""
    limits = []
    if policy.budget_bytes is not None:
        limits.append(int(policy.budget_bytes) // BLOCK_BYTES)
    if policy.budget_share is not None:
        limits.append(int(policy.budget_share * (int(np.count_nonzero(blocks.eligible)) + unseen)))
    return min(limits, default=None)


def guaranteed(budget: int, wanted: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Large pages of each target's own: `budget` divided by shares, to nobody more than it wants."""
    own = np.zeros(len(wanted), np.float64)
    left = float(budget)
    open_ = (wanted > 0) & (shares > 0)
    while left > 0 and open_.any():
        part = left * shares * open_ / float(shares[open_].sum())
        full = open_ & (own + part >= wanted)
        if not full.any():
            own += part
            break
        left -= float((wanted - own)[full].sum())
        own[full] = wanted[full]
        open_ &= ~full
    return np.floor(own + 1e-9).astype(np.int64)


def replenished(state: State, policy: Policy, now_s: float) -> State:
    """The allowance with what has come since the last decision."""
    most_s = policy.processor_share * HELD_S
    if math.isnan(state.allowance_s):
        return replace(state, allowance_s=most_s)
    came_s = policy.processor_share * max(0.0, now_s - state.at_s)
    return replace(state, allowance_s=min(most_s, state.allowance_s + came_s))


def cost_s(state: State) -> tuple[float, float]:
    """What a collapse and a demotion are expected to take."""
    collapse_s = FIRST_S if math.isnan(state.collapse_s) else state.collapse_s
    return max(collapse_s, 1e-6), max(FIRST_S / 10 if math.isnan(state.demote_s) else state.demote_s, 1e-6)


def scarce_bytes(policy: Policy, host: HostView) -> float | None:
    """Memory is scarce when less than that is available; None: the host's size is unknown."""
    if policy.scarce_bytes is not None:
        return policy.scarce_bytes
    if host.total_bytes is None:
        return None
    return _SCARCE * max(min_free_bytes(host.total_bytes), policy.aim_bytes or 0.0)


def is_scarce(policy: Policy, host: HostView, before: bool) -> bool:
    """Whether memory is scarce now. It begins at a bound and ends beyond it; what is unknown ends nothing."""
    bound = scarce_bytes(policy, host)
    few = unknown = False
    if bound is None or host.available_bytes is None:
        unknown = True
    else:
        few = host.available_bytes < bound * (_PLENTY if before else 1.0)
    pressed = False
    if host.pressure is None:
        unknown = True
    else:
        pressed = host.pressure >= policy.pressure_limit * (_PRESSURE_OVER if before else 1.0)
    return few or pressed or (before and unknown)


def fillable_bytes(policy: Policy, host: HostView, filled_bytes: float) -> float:
    """What collapses may fill now: the rest of the bloat budget, and half of what is available beyond scarcity."""
    left = math.inf if policy.bloat_bytes is None else max(0.0, policy.bloat_bytes - filled_bytes)
    bound = scarce_bytes(policy, host)
    if bound is not None and host.available_bytes is not None:
        left = min(left, max(0.0, host.available_bytes - bound * _PLENTY) / 2)
    return left
