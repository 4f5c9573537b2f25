"""Who gets how much of what there is: what guests hold, want and may lose in, a target for each out. Pure.

Used by `decide`. What there is, is all that guests hold and the host has available. Three claim it: who lacks memory,
who holds some that it hardly uses, and the host, whose goal is not met for nothing. In this order:

1. What guests call free costs nobody anything, and goes before anything else.
2. A guest that lacks memory gets it up to its share, though the host stays below its goal for it, down to a reserve.
3. Beyond its share it gets what is not within the share of another, and what the host has above its goal.
4. The host's goal is met from whoever has least reason to hold what it holds, within its share or not; but nobody is
   kept from what it uses within its share.

The share is what a guest would get if all wanted all they may have (`entitlement`): with an idle tax of 0 an idle guest
keeps it, with a high one most of it goes to those who use theirs. Rejected: to let who lacks memory take what others
use little, whatever their shares are. It does a little more work, and makes shares and tax mean nothing.
"""

from dataclasses import dataclass

import numpy as np

from sustain.schedulers.guest_memory.entitlement import fill
from sustain.schedulers.guest_memory.plan import Column


@dataclass(frozen=True)
class Claims:
    """Columns of bytes, one row for each guest."""

    held: Column
    wanted: Column
    in_use: Column  # what it holds without what it calls free
    gentle: Column  # what the host's goal leaves it
    least: Column  # what is left to it for who lacks memory; at most `gentle`
    share: Column
    used: Column  # now: what is charged without the idle tax, between guests
    working: Column  # over time: the same, for the host's goal
    weight: Column  # the operator's shares


def share_out(claims: Claims, total: float, goal: float, reserve: float, idle_tax: float) -> Column:
    """A target for each guest. The sum is `total` less `goal`, more where guests cannot lose more or lack more (up to
    `total` less `reserve`), and less where they want less."""

    rises = claims.wanted > claims.held

    def between(capacity: float, low: Column, high: Column, used: Column) -> Column:
        # All that is free has gone, and who lacks memory has it.
        middle = np.clip(np.where(rises, high, claims.in_use), low, high)
        if capacity >= float(middle.sum()):
            return fill(capacity, used, claims.weight, middle, high, idle_tax)
        return fill(capacity, used, claims.weight, low, middle, idle_tax)

    own = np.minimum(np.where(rises, claims.wanted, claims.in_use), claims.share)
    own = fill(total - reserve, claims.used, claims.weight, claims.least, own, idle_tax)
    gentle = np.where(rises, np.maximum(claims.gentle, own), claims.gentle)
    # For the goal alone nobody loses what it uses; between guests, where one lacks memory, who is beyond its share may.
    low = own if rises.any() else claims.gentle
    room = max(total - goal, float(claims.gentle.sum()), min(total - reserve, float(gentle.sum())))
    found = between(room, low, np.maximum(claims.wanted, low), claims.used)
    if float(found.sum()) > total - goal:
        # Before that, nobody rises beyond its share.
        within = np.where(rises, np.minimum(found, np.maximum(own, claims.held)), found)
        found = fill(total - goal, claims.used, claims.weight, within, found, idle_tax)
    if float(found.sum()) > total - goal:
        low = np.where(rises, found, np.minimum(found, claims.gentle))
        found = between(total - goal, low, found, claims.working)
    return found
