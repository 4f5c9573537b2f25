"""How much can be taken from each guest, by which way, and which is the cheapest. Pure.

Used by `decide` and `admission`. What a balloon takes first may never have been touched, so that the host gains
nothing from it; only what lies below what the guest now holds is sure. Where that is less than a quarter of what a
guest calls free, the guest would lose its room to grow for little: then it is not costless, and others are asked
first; and for the host's goal a balloon takes nothing there outside the hard states, if less than a quarter of what it
would take is held. The host's swap is for what the balloon cannot do, or not fast enough: in the hard and low states,
or where there is no balloon that can be used; and only after the balloon has taken what the guest calls free.
"""

from dataclasses import dataclass, replace

import numpy as np

from sustain.schedulers.guest_memory import reclaim_cost
from sustain.schedulers.guest_memory.columns import Table, zero
from sustain.schedulers.guest_memory.model import Host
from sustain.schedulers.guest_memory.plan import Column, Mask
from sustain.schedulers.guest_memory.reclaim_cost import Layers

_SPARED_SWAP = 1 / 16  # of the host's swap
_LEAST_YIELD = 0.25  # of what a guest calls free
BALLOON, PAGEOUT, RECLAIM = range(3)


@dataclass(frozen=True)
class Ways:
    """Columns by way."""

    layers: tuple[Layers, ...]
    costless: Column  # of what the guest holds and calls free, what its balloon can take, and it is worth it
    takeable: tuple[Column, ...]  # of what the guest holds
    untouched_bytes: Column  # of what its balloon leaves a guest, and it does not hold
    host_swap_bytes: float

    @property
    def most(self) -> Column:
        """What the best single way can take."""
        found: Column = np.max(self.takeable, axis=0)
        return found

    def at_most(self, amount: Column) -> "Ways":
        """The same, but no more than that by any way."""
        takeable = tuple(np.minimum(each, amount) for each in self.takeable)
        return replace(self, costless=np.minimum(self.costless, amount), takeable=takeable)

    def or_more(self, other: "Ways") -> "Ways":
        """By each way what may be taken by this or by that, whichever is more."""
        takeable = tuple(np.maximum(*both) for both in zip(self.takeable, other.takeable, strict=True))
        return replace(self, costless=np.maximum(self.costless, other.costless), takeable=takeable)

    def cost_s(self, way: int, amount: Column) -> Column:
        """Of taking that much of what the guest holds; NaN where this way cannot."""
        asked = amount + self.untouched_bytes if way == BALLOON else amount
        cost = self.layers[way].cost_s(asked)
        return np.where((amount > 0) & (amount <= self.takeable[way] + 1.0), cost, np.nan)

    def cheapest(self, amounts: tuple[Column, ...], least_bytes: float) -> tuple[Column, Column]:
        """(index of the way, or −1; its cost) for amounts that differ by way."""
        costs = []
        for way, amount in enumerate(amounts):
            with np.errstate(divide="ignore", invalid="ignore"):
                unit = np.where(amount >= least_bytes, self.cost_s(way, amount) / amount, np.inf)
            costs.append(np.where(np.isnan(unit), np.inf, unit))
        table = np.array(costs)
        best = np.argmin(table, axis=0)
        unit = np.take_along_axis(table, best[None, :], axis=0)[0]
        amount = np.take_along_axis(np.array(amounts), best[None, :], axis=0)[0]
        none = np.isinf(unit)
        return np.where(none, -1, best).astype(float), np.where(
            none, np.nan, np.where(none, 0.0, unit) * amount
        )


def ways(
    of: Table,
    host: Host,
    usable: tuple[Mask, ...],
    ready: Mask,
    ceiling_bytes: Column,
    untouched: Column,
    kept_bytes: Column,
    ballooned_bytes: Column,
    taken_since: Mask,
    *,
    deep: Mask,
    hard: bool,
    least_bytes: float,
) -> Ways:
    """`ceiling_bytes`: what a guest may use now; `untouched`: bytes of that it does not hold; `kept_bytes`: what it is
    left with at least of the host's memory, `ballooned_bytes`: by its balloon, of what it may use; `taken_since`: that
    has taken memory since the guest told what it uses; `deep`: active memory may go, too; `hard`: the host's swap is
    used beside the balloon."""
    swap = max(0.0, (host.swap_free_bytes or 0.0) - _SPARED_SWAP * (host.swap_total_bytes or 0.0))
    held = of.known("resident_bytes")
    can = tuple(a & b & ready for a, b in zip(of.can, usable, strict=True))
    layers = (reclaim_cost.balloon(of), reclaim_cost.pageout(of), reclaim_cost.reclaim(of, swap))
    room = np.maximum(zero(held - kept_bytes), 0)
    spare = np.maximum(zero(ceiling_bytes - ballooned_bytes), 0)
    deflated = np.minimum(layers[BALLOON].amount(deep=deep), spare)
    gained = np.maximum(deflated - untouched, 0)
    worth = hard | deep | (gained >= _LEAST_YIELD * deflated)
    by_balloon = np.where(can[BALLOON] & ~taken_since & worth, gained, 0.0)
    free = reclaim_cost.spare_free(of)
    held_free = np.maximum(free - untouched, 0)
    free_first = layers[BALLOON].sizes[0] - untouched >= least_bytes
    # Blind to it: nothing of a machine that has, or may have, free memory.
    free_at_all = ~(free < least_bytes) | (np.isnan(of["free_bytes"]) & ~of.sampled)
    swaps = np.where(can[BALLOON], ~free_first & (hard | ((by_balloon < least_bytes) & ~taken_since)), True)
    if swap < least_bytes:
        swaps = np.zeros_like(swaps)
    by_pageout = np.where(can[PAGEOUT] & swaps, np.minimum(layers[PAGEOUT].amount(deep=deep), room), 0.0)
    by_reclaim = np.where(
        can[RECLAIM] & (of.is_cgroup | (swaps & ~free_at_all)),
        np.minimum(layers[RECLAIM].amount(deep=deep), room),
        0.0,
    )
    costless = np.where(held_free >= _LEAST_YIELD * free, np.minimum(by_balloon, held_free), 0.0)
    return Ways(layers, costless, (by_balloon, np.minimum(by_pageout, swap), by_reclaim), untouched, swap)
