"""Who may have how much: shares per page with a tax on idle memory, between a least and a most for each guest. Pure.

Used by `decide` (what each guest would get if all wanted everything, and what each gets of what they want) and by
`admission`.

ESX (Waldspurger, OSDI 2002) takes memory from the guest with the least shares per page, ρ = S / (P·(f + k·(1 − f)))
with k = 1/(1 − τ): an idle page is charged k times an active one. Where nobody has reason to take from anybody all ρ
are equal: the charge c(P) = P up to the working set W, W + k·(P − W) above it, is the same multiple λ of everyone's
shares. P(λ) is made of straight lines, and so is the sum over all guests, so λ is found exactly by sorting their ends.
Rejected: moving pages one victim after another, which ends in the same place after as many steps as there are pages.
"""

import numpy as np

from sustain.schedulers.guest_memory.plan import Column


def fill(
    capacity_bytes: float,
    working_set_bytes: Column,
    shares: Column,
    least_bytes: Column,
    most_bytes: Column,
    idle_tax: float,
) -> Column:
    """What each guest gets. The sum is `capacity_bytes`, but never less than all least and never more than all most.

    More shares never get less; 0 ≤ idle_tax < 1; shares are positive; least ≤ most is made so.
    """
    most = np.maximum(most_bytes, least_bytes)
    if capacity_bytes <= least_bytes.sum():
        return least_bytes.copy()
    if capacity_bytes >= most.sum():
        return most
    k = 1 / (1 - idle_tax)
    active = np.clip(working_set_bytes, least_bytes, most)
    # Each guest grows at one rate from `least` to `active`, at another from there to `most`.
    rises = np.concatenate(
        (_charge(least_bytes, working_set_bytes, k), _charge(active, working_set_bytes, k))
    )
    ends = np.concatenate((rises[len(shares) :], _charge(most, working_set_bytes, k)))
    rates = np.concatenate((shares, shares / k))
    twice = np.concatenate((shares, shares))
    begin, end = rises / twice, ends / twice
    price = _solve(capacity_bytes - least_bytes.sum(), begin, end, rates)
    charge = shares * price
    below = np.minimum(charge, working_set_bytes)
    return np.clip(below + np.maximum(charge - working_set_bytes, 0) / k, least_bytes, most)


def _charge(held: Column, working_set: Column, k: float) -> Column:
    return np.minimum(held, working_set) + k * np.maximum(held - working_set, 0)


def _solve(amount: float, begin: Column, end: Column, rates: Column) -> float:
    """λ at which all that grow at `rates` between `begin` and `end` have grown by `amount` together."""
    at = np.concatenate((begin, end))
    change = np.concatenate((rates, -rates))
    order = np.argsort(at, kind="stable")
    at, rate = at[order], np.cumsum(change[order])
    grown = np.concatenate(([0.0], np.cumsum(rate[:-1] * np.diff(at))))
    index = int(np.clip(np.searchsorted(grown, amount, side="left"), 1, len(at) - 1))
    low, high = grown[index - 1], grown[index]
    share = (amount - low) / (high - low) if high > low else 0.0
    return float(at[index - 1] + share * (at[index] - at[index - 1]))
