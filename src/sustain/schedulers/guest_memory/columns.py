"""Observation and policy as columns: one array per figure, one row per guest, NaN where unknown. Pure.

Used by `decide` and what it is made of. Units and names are those of `model.Figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
import numpy as np

from sustain.schedulers.guest_memory.model import Figures, Guest, GuestPolicy, Observation, Policy
from sustain.schedulers.guest_memory.plan import MECHANISMS, Column, Mask

_FIELDS = tuple(Figures.__struct_fields__)

Key = tuple[str, str]  # a guest's name and its life


@dataclass(frozen=True)
class Table:
    """All guests of one observation, with what the policy says of each."""

    guests: Sequence[Guest]
    keys: tuple[Key, ...]
    figures: dict[str, Column]
    can: tuple[Mask, ...]  # by MECHANISMS: possible now, and allowed
    is_cgroup: Mask
    sampled: Mask  # its classes are seen from the host only
    deflates: Mask  # its balloon gives back when it runs out of memory
    shares: Column
    reservation_bytes: Column
    most_bytes: Column  # its limit or its size

    def __getitem__(self, name: str) -> Column:
        return self.figures[name]

    def known(self, name: str) -> Column:
        """The same, with nothing where it is unknown: for what may only be taken when it is known to be there."""
        return zero(self.figures[name])


def zero(column: Column) -> Column:
    """Nothing where it is unknown."""
    return np.where(np.isnan(column), 0.0, column)


def told_total(of: Table, ceiling: Column) -> Column:
    """What a guest says it has, less what its balloon has taken: one that deflates by itself is not taken off its own
    total."""
    total = of["total_bytes"]
    return np.where(np.isnan(total), np.nan, np.fmin(total, ceiling))


def table(observation: Observation, policy: Policy) -> Table:
    """The columns of an observation."""
    guests = observation.guests
    figures = _figures(guests)
    shares, reservations, limits = _policies(guests, policy)
    size = figures["size_bytes"]
    return Table(
        guests=guests,
        keys=tuple([(each.name, each.life) for each in guests]),
        figures=figures,
        can=_can(guests, policy),
        is_cgroup=np.array([each.kind == "cgroup" for each in guests], dtype=bool),
        sampled=np.array([each.source == "sampling" for each in guests], dtype=bool),
        deflates=np.array([each.deflates is True for each in guests], dtype=bool),
        shares=shares,
        reservation_bytes=np.fmin(reservations, size),
        most_bytes=np.fmin(limits, size),
    )


def _figures(guests: Sequence[Guest]) -> dict[str, Column]:
    """By name; NaN for None, as `fromiter` makes it. Row by row, since tuples that live only for a moment stay near."""
    rows = map(msgspec.structs.astuple, [each.figures for each in guests])
    flat = np.fromiter(chain.from_iterable(rows), np.float64, len(guests) * len(_FIELDS))
    columns = flat.reshape(len(guests), len(_FIELDS)).T.copy()
    return dict(zip(_FIELDS, columns, strict=True))


def _policies(guests: Sequence[Guest], policy: Policy) -> tuple[Column, Column, Column]:
    def figures(one: GuestPolicy) -> tuple[float, float, float]:
        limit = np.inf if one.limit_bytes is None else one.limit_bytes
        return one.shares, one.reservation_bytes, limit

    found = np.tile(figures(policy.default), (len(guests), 1))
    if policy.guests:
        for row, guest in enumerate(guests):
            own = policy.guests.get(guest.name)
            if own is not None:
                found[row] = figures(own)
    return found[:, 0], found[:, 1], found[:, 2]


def _can(guests: Sequence[Guest], policy: Policy) -> tuple[Mask, ...]:
    """Few combinations are different: each is looked at once."""
    default, own = policy.default.mechanisms, policy.guests
    if own:
        keys = [(guest.can, own.get(guest.name, policy.default).mechanisms) for guest in guests]
    else:
        keys = [(guest.can, default) for guest in guests]
    kinds = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    rows = np.array([kinds[key] for key in keys], dtype=np.intp)
    table = [[each in can and each in allowed for each in MECHANISMS] for can, allowed in kinds]
    masks = np.array(table, dtype=bool).reshape(len(table), len(MECHANISMS))[rows]
    return tuple(np.ascontiguousarray(column) for column in masks.T)
