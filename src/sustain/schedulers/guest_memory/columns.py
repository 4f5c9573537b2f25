"""Observation and policy as columns: one array per figure, one row per guest, NaN where unknown. Pure.

Used by `decide` and what it is made of. Units and names are those of `model.Figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from sustain.schedulers.guest_memory.model import Figures, Guest, GuestPolicy, Observation, Policy
from sustain.schedulers.guest_memory.plan import MECHANISMS, Column, Mask

_FIELDS = tuple(Figures.__struct_fields__)


@dataclass(frozen=True)
class Table:
    """All guests of one observation, with what the policy says of each."""

    guests: Sequence[Guest]
    figures: dict[str, Column]
    can: tuple[Mask, ...]  # by MECHANISMS: possible now, and allowed
    is_cgroup: Mask
    sampled: Mask  # its classes are seen from the host only
    shares: Column
    reservation_bytes: Column
    most_bytes: Column  # its limit or its size

    def __getitem__(self, name: str) -> Column:
        return self.figures[name]

    def known(self, name: str) -> Column:
        """The same, with nothing where it is unknown: for what may only be taken when it is known to be there."""
        return np.nan_to_num(self.figures[name], nan=0.0)


def table(observation: Observation, policy: Policy) -> Table:
    """The columns of an observation."""
    guests = observation.guests
    told = zip(*(msgspec.structs.astuple(each.figures) for each in guests), strict=True)
    figures = {name: _column(values) for name, values in zip(_FIELDS, told, strict=bool(guests))}
    if not guests:
        figures = dict.fromkeys(_FIELDS, np.zeros(0))
    shares, reservations, limits = _policies(guests, policy)
    size = figures["size_bytes"]
    return Table(
        guests=guests,
        figures=figures,
        can=_can(guests, policy),
        is_cgroup=np.array([each.kind == "cgroup" for each in guests], dtype=bool),
        sampled=np.array([each.source == "sampling" for each in guests], dtype=bool),
        shares=shares,
        reservation_bytes=np.fmin(reservations, size),
        most_bytes=np.fmin(limits, size),
    )


def _column(values: Sequence[float | None]) -> Column:
    """NaN for None; fastest where there is none, or nothing else."""
    unknown = values.count(None)
    if unknown == len(values):
        return np.full(len(values), np.nan)
    return np.array(values, np.float64) if unknown else np.fromiter(values, np.float64, len(values))


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
    kinds: dict[object, int] = {}
    default, own = policy.default.mechanisms, policy.guests
    if own:
        keys = [(guest.can, own.get(guest.name, policy.default).mechanisms) for guest in guests]
    else:
        keys = [(guest.can, default) for guest in guests]
    rows = np.fromiter((kinds.setdefault(key, len(kinds)) for key in keys), dtype=np.intp, count=len(keys))
    table = [[each in can and each in allowed for each in MECHANISMS] for can, allowed in dict.fromkeys(keys)]
    masks = np.array(table, dtype=bool).reshape(len(table), len(MECHANISMS))[rows]
    return tuple(np.ascontiguousarray(column) for column in masks.T)
