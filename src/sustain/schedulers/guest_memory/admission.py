"""Would one more guest fit: now, after some reclaim, or not? Pure.

Used by `sustain memory admit`. The newcomer is taken for a guest that uses all of its size at once, with the shares it
would get; it fits if the targets of the others, made with it among them, leave that much. From whom, how fast (a step
each period) and at what cost follows from the same ways by which a plan takes. Rejected: to promise what idle guests
hold above their working sets without saying that they may want it back; the risk says how much that is.
"""

import numpy as np

from sustain.schedulers.guest_memory.columns import zero
from sustain.schedulers.guest_memory.decide import steps
from sustain.schedulers.guest_memory.entitlement import fill
from sustain.schedulers.guest_memory.model import Observation, Policy
from sustain.schedulers.guest_memory.plan import MECHANISMS, Admission, Column, Share, State
from sustain.schedulers.guest_memory.situation import Situation, situation
from sustain.schedulers.guest_memory.ways import BALLOON
from sustain.units import format_size


def admit(
    observation: Observation,
    state: State | None,
    policy: Policy,
    size_bytes: float,
    shares: float | None = None,
    *,
    period_s: float = 10.0,
    now_s: float | None = None,
) -> Admission:
    """`shares` None: those of the default policy. `period_s`: between two steps. `now_s` None: when it was observed."""
    it = situation(observation, state, policy, observation.at_s if now_s is None else now_s)
    if it.reasons:
        return Admission(
            verdict="unknown", size_bytes=size_bytes, available_bytes=None, seconds=None, risk=it.reasons
        )
    spare = it.available_bytes - it.goal_bytes
    if spare >= size_bytes:
        return Admission(
            verdict="now",
            size_bytes=size_bytes,
            available_bytes=spare,
            seconds=0.0,
            cost_s=0.0,
            risk=_risk(it, size_bytes),
        )
    takes = _takes(it, policy, size_bytes, policy.default.shares if shares is None else shares)
    found, seconds = _sources(it, policy, takes, period_s)
    short = size_bytes - spare - sum(each.amount_bytes for each in found)
    fits = short <= 1.0
    costs = [each.cost_s for each in found]
    return Admission(
        verdict="after reclaim" if fits else "no",
        size_bytes=size_bytes,
        available_bytes=spare,
        seconds=seconds if fits else None,
        sources=found,
        short_bytes=None if fits else short,
        cost_s=None if None in costs else sum(each for each in costs if each is not None),
        risk=_risk(it, size_bytes),
    )


def _takes(it: Situation, policy: Policy, size_bytes: float, shares: float) -> Column:
    """What each guest would give, so that the newcomer has its size and the host its goal."""
    held = it.held_bytes
    least = np.append(np.minimum(it.gentle_bytes, held), 0.0)
    most = np.append(held, size_bytes)
    working = np.append(zero(it.use.working_set_bytes), size_bytes)
    capacity = float(held.sum()) + it.available_bytes - it.goal_bytes
    # It needs its size to start at all: its shares decide from whom it comes, and whether it could be kept.
    least[-1] = size_bytes
    target = fill(capacity, working, np.append(it.of.shares, shares), least, most, policy.idle_tax)
    takes: Column = np.maximum(held - target[:-1], 0)
    return takes


def _sources(
    it: Situation, policy: Policy, takes: Column, period_s: float
) -> tuple[tuple[Share, ...], float]:
    amounts = tuple(np.minimum(takes, takeable) for takeable in it.ways.takeable)
    way, cost = it.ways.cheapest(amounts, 1.0)
    limit, balloon_limit = steps(it, policy)
    found, longest = [], 0.0
    for row in np.flatnonzero(way >= 0).tolist():
        index = int(way[row])
        amount = float(amounts[index][row])
        moved = amount + (float(it.ways.untouched_bytes[row]) if index == BALLOON else 0.0)
        step = float((balloon_limit if index == BALLOON else limit)[row])
        seconds = float(np.ceil(moved / step)) * period_s
        longest = max(longest, seconds)
        found.append(
            Share(
                guest=it.of.guests[row].name,
                amount_bytes=amount,
                mechanism=MECHANISMS[index],
                seconds=seconds,
                cost_s=None if np.isnan(cost[row]) else float(cost[row]),
            )
        )
    found.sort(key=lambda each: -each.amount_bytes)
    return tuple(found), longest


def _risk(it: Situation, size_bytes: float) -> tuple[str, ...]:
    found = []
    held, needs = it.held_bytes, zero(it.use.needs_bytes)
    capacity = float(held.sum()) + it.available_bytes - it.goal_bytes
    used = float(np.where(it.ready, needs, held).sum()) + size_bytes
    if used > capacity:
        missing = format_size(int(used - capacity))
        found.append(f"working sets with headroom, and all of the newcomer, are {missing} more than there is")
    most = float(np.where(it.ready, np.maximum(it.of.most_bytes, held), held).sum()) + size_bytes
    if most > capacity:
        found.append(
            f"if all guests used all they may have, {format_size(int(most - capacity))} would be missing"
        )
    unknown = int((~it.ready).sum())
    if unknown:
        found.append(f"what {unknown} of the guests use is unknown; they are counted with what they hold")
    return tuple(found)
