"""How far the log may be trimmed, which destination to let go, and how long to wait before the next try.
Pure.

Used by the shipper. The model: each destination *pins* the log from some position on, or nothing. Required
ones pin from the moment they are named; others only while a snapshot of theirs runs. A destination that is
away, or connected but not moving, may pin only until the log is `limit` full of pinned bytes; then it is let
go ("needs a snapshot"), since otherwise one dead peer would stop the application. One that is slow but moving
is never let go: it is back-pressure.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

UNKNOWN = 2**64 - 1  # as in the control words: nothing is pinned


@dataclass(frozen=True)
class Pin:
    """One destination's claim on the log."""

    slot: int
    lsn: int  # needs everything from here on
    moving: bool  # connected and has acknowledged something new, or had nothing to do, within the stall time


@dataclass(frozen=True)
class Verdict:
    floor: int  # least LSN still needed; UNKNOWN: none
    dropped: tuple[int, ...]  # slots that are let go


def decide_pins(pins: Iterable[Pin], committed: int, log_size: int, limit: float) -> Verdict:
    """The floor of the log, and who is let go so that it can be there.

    `limit` is the share of the log (0…1) that a destination which does not move may hold.
    """
    kept, dropped = [], []
    for pin in pins:
        held_bytes = committed - pin.lsn
        if not pin.moving and held_bytes > limit * log_size:
            dropped.append(pin.slot)
        else:
            kept.append(pin.lsn)
    return Verdict(min(kept, default=UNKNOWN), tuple(dropped))


class Backoff:
    """Seconds to wait before the next try: doubling from `first_s` to `limit_s`, each drawn from its upper
    half.

    `draw(low, high)` is `random.uniform`, or a test's. It keeps several destinations that died together from
    returning together.
    """

    def __init__(self, first_s: float, limit_s: float, draw: Callable[[float, float], float]) -> None:
        assert 0 < first_s <= limit_s
        self._first_s = first_s
        self._limit_s = limit_s
        self._draw = draw
        self._next_s = first_s

    def reset(self) -> None:
        """After a success: begin again with the shortest wait."""
        self._next_s = self._first_s

    def next(self, at_least_s: float = 0.0) -> float:
        """How long to wait now; the following wait will be longer."""
        wait_s = min(max(self._next_s, at_least_s), self._limit_s)
        self._next_s = min(self._next_s * 2, self._limit_s)
        return self._draw(wait_s / 2, wait_s)
