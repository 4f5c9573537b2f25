"""How far the log may be trimmed, which destination to let go, and how long to wait before the next try.
Pure.

Used by the shipper. The model: each destination *pins* the log from some position on, or nothing. Required
ones pin from the moment they are named; others only while a snapshot of theirs runs. A destination that is
away, or connected but not moving, may pin only until the log is `limit` full of pinned bytes; then it is let
go ("needs a snapshot"), since otherwise one dead peer would stop the application. A required one that is slow but
moving is never let go: it is back-pressure. One that is not required is back-pressure, too, but only for the stall
time: that is how long its snapshot may hold others up. If it is let go again and again, it is left alone for longer
each time (`Overruns`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

UNKNOWN = 2**64 - 1  # as in the control words: nothing is pinned


@dataclass(frozen=True)
class Pin:
    """One destination's claim on the log."""

    slot: int
    lsn: int  # needs everything from here on
    moving: bool  # connected and has acknowledged something new, or had nothing to do, within the stall time; if it is
    # not required, it has also not held more than its share of the log for that long


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


class Overruns:
    """How long to leave a destination alone that cannot keep up with the commits.

    Each connection that ends because the log went on without it counts, until one has held everything that was
    committed. The first is tried again at once: it may have been away. Then the pause is as long as the connection had
    lasted, but `first_s` at least, and doubles each time, to `limit_s`. So what snapshots that come to nothing cost
    becomes a small share of the time, and a link that has become faster is found within the limit.
    """

    def __init__(self, first_s: float, limit_s: float) -> None:
        self.in_a_row = 0
        self._first_s = first_s
        self._limit_s = limit_s
        self._began_s = 0.0

    @property
    def why(self) -> str:
        """Why it is left alone, for people."""
        return f"cannot keep up: {self.in_a_row} times in a row the log has gone on without it"

    def begins(self, now_s: float) -> None:
        """A connection is tried."""
        self._began_s = now_s

    def ended(self, now_s: float, overrun: bool, caught_up: bool) -> float:
        """How long to wait before the next, in seconds; 0: no longer than otherwise."""
        if caught_up:
            self.in_a_row = 0
        if not overrun:
            return 0.0
        self.in_a_row += 1
        if self.in_a_row == 1:
            return 0.0
        lasted_s = max(self._first_s, now_s - self._began_s)
        return min(lasted_s * 2.0 ** min(self.in_a_row - 2, 32), self._limit_s)
