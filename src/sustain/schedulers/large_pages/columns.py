"""Columns with a row for each block, and how they are dealt with quickly. Pure.

Used by whatever looks at every block. What makes it quick, for a million of them:

- In pieces: what is made of some rows on the way stays in the processor's caches.
- On the boundaries of cache lines (`column`): arithmetic that writes across them takes twice as long, and memory as it
  is commonly given lies across them. So steps of a sum are written to columns of ours, one after the other in place.
- Without branches (`write`, `masked`, `put`): a mask at random makes a processor guess wrong every other time, at some
  15 ns each; bits are combined at a few elements in a nanosecond. `numpy.where` takes several times as long.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
F = TypeVar("F", np.float32, np.float64)

PIECE = 1 << 16  # rows that are dealt with at once; whole cache lines of any column
_LINE_BYTES = 64
_SIGNED: dict[Any, Any] = {np.float32: np.int32, np.float64: np.int64}
_INFINITE = np.float32(np.inf).view(np.int32)
_FEW = 32  # of so many rows one or fewer: they are gone through by themselves


def pieces(count: int) -> Iterator[slice]:
    """All rows of columns of that length."""
    return (slice(begin, min(begin + PIECE, count)) for begin in range(0, count, PIECE))


def column(count: int, kind: type[F]) -> NDArray[F]:
    """One that is not filled in yet."""
    size = count * np.dtype(kind).itemsize
    room = np.empty(size + _LINE_BYTES, np.uint8)
    begin = -room.__array_interface__["data"][0] % _LINE_BYTES
    return room[begin : begin + size].view(kind)


def write(into: NDArray[F], where: Mask, values: NDArray[F]) -> None:
    """Write the values where the mask is set."""
    count = int(np.count_nonzero(where))
    if count > len(where) // _FEW:
        for rows in pieces(len(where)):
            bits = _lanes(where[rows], into.dtype.type)
            held = into[rows].view(bits.dtype)
            bits &= held ^ values[rows].view(bits.dtype)
            held ^= bits
    elif count:
        few = np.flatnonzero(where)
        into[few] = values[few]


def masked(where: Mask, values: NDArray[F]) -> NDArray[F]:
    """The values where the mask is set, else 0; or these themselves."""
    if np.count_nonzero(where) == len(where):
        return values
    bits = _lanes(where, values.dtype.type)
    bits &= values.view(bits.dtype)
    found: NDArray[F] = bits.view(values.dtype)
    return found


def blank(where: Mask, values: NDArray[F], out: NDArray[F]) -> None:
    """Write the values to `out`, but NaN where the mask is set."""
    bits = _lanes(where, values.dtype.type)
    np.bitwise_or(bits, values.view(bits.dtype), out=out.view(bits.dtype))


def later(
    times: NDArray[np.float64], others: NDArray[np.float64], where: Mask, out: NDArray[np.float64]
) -> None:
    """Write to `out`, which is none of these, the later of both times where the mask is set, else the first."""
    blank(~where, others, out)
    np.fmax(out, times, out=out)  # what is blank is none


def lift(values: NDArray[np.float32], where: Mask) -> None:
    """Make the values where the mask is set, which are not −infinite, infinite."""
    bits = _lanes(where, np.float32)
    bits &= _INFINITE
    values += bits.view(np.float32)


def put(codes: NDArray[np.uint8], value: int, where: Mask) -> None:
    """Write `value` where the mask is set."""
    if np.count_nonzero(where):
        change = codes ^ np.uint8(value)
        change &= np.negative(where.view(np.uint8))
        codes ^= change


def spread(of_each: Mask, target: NDArray[np.int32]) -> Mask:
    """What is said of each target, for each of its blocks."""
    count = int(np.count_nonzero(of_each))
    if not count or count == len(of_each):
        return np.full(len(target), count > 0, np.bool_)
    return of_each.take(target)


def _lanes(where: Mask, kind: Any) -> Any:
    """All bits where the mask is set, else none, in integers as wide as that type."""
    bits = column(len(where), kind).view(_SIGNED[kind])
    bits[:] = np.negative(where.view(np.int8))
    return bits
