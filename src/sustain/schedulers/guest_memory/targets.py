"""Who gets how much of what there is: what guests hold, want and may lose in, a target for each out. Pure.

Used by `decide`. What there is, is all that guests hold and the host has available. Three claim it: who lacks memory,
who holds some that it hardly uses, and the host, whose goal is not met for nothing. They get it in this order, and so
the last of it goes first:

1. What is left to a guest in any case. The host keeps a reserve, of what its goal would not leave to guests.
2. What a guest uses, or lacks, within its share.
3. What a guest uses beyond its share; but where one lacks memory, and all that is used fits beside the host's goal, it
   comes with 6.
4. The host's goal.
5. What a guest holds within its share and hardly uses.
6. What it holds, or lacks, beyond that.
7. What guests call free costs nobody anything.

The share is what a guest would get if all wanted all they may have (`entitlement`): with an idle tax of 0 an idle guest
keeps it, with a high one most of it goes to those who use theirs. Rejected: to let who lacks memory take what others
use little, whatever their shares are. It does a little more work, and makes shares and tax mean nothing. Also rejected:
to share out between guests first, and then to take for the host; what is right in each is not in both together.

More shares never get less. Each step fills from where the one before ended, so all are one filling: let its level λ be
the number of the step and the price in it (`fill`). Then x_i(λ), what a guest has, rises with λ, with its own shares
and with its own columns; and h(λ), what the host has, rises with λ. Give guest 0 more shares. At the same λ it has no
less, by `fill` and since its share is no less; every other has no more, since its share is no more; the host has as
much, since no share is in h. All together have what there is. If that is now at a higher λ, or the same, guest 0 has no
less. If at a lower one, all others and the host have no more, and guest 0 has the rest, which is no less. So it must
stay: the order and h hang on no shares, and `least` and `in_use` never fall with a guest's own nor rise with another's.
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
    used: Column  # now: what is charged without the idle tax
    weight: Column  # the operator's shares


def share_out(claims: Claims, total: float, goal: float, reserve: float, idle_tax: float) -> Column:
    """A target for each guest. The sum is `total` less `goal`, more where guests cannot lose more or lack more (up to
    `total` less `reserve`), and less where they want less."""
    rises = claims.wanted > claims.held
    middle = np.where(rises, claims.wanted, claims.in_use)
    own = np.maximum(np.minimum(middle, claims.share), claims.least)
    within = np.where(rises, own, np.minimum(own, claims.gentle))
    beyond = np.where(rises, np.maximum(own, claims.gentle), claims.gentle)
    left = total - float(claims.gentle.sum())
    if rises.any() and left >= goal:
        beyond = within
    least = min(reserve, goal, left)  # not even the reserve is met with what is used
    found = claims.least
    for level, kept in (
        (within, least),
        (beyond, least),
        (own, goal),
        (middle, goal),
        (claims.wanted, goal),
    ):
        found = fill(total - kept, claims.used, claims.weight, found, level, idle_tax)
    return found
