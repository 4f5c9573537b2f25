"""Whether a counter that does not move is one. Pure.

Used by `package_idle` and `package_power`. A hypervisor answers zero, or always the same, for counters of the hardware
that it does not keep, and some hosts show energy counters that nobody feeds. That is "absent", never zero. So in a
virtual machine a counter is believed from when it was seen to move, and as long as it was seen to lately; and one that
must move, as energy does, is disbelieved anywhere once it has stood still.
"""

from collections.abc import Hashable
from dataclasses import dataclass

PATIENCE_NS = 1_000_000_000  # standing still for less says nothing


@dataclass(slots=True)
class _Seen:
    counts: tuple[int, ...]
    moved_ns: int  # when they last moved, or were first seen
    ever: bool = False  # whether they did


class Standstill:
    """`virtual`: in a virtual machine. `must_move`: they move whenever time passes."""

    def __init__(self, *, virtual: bool, must_move: bool) -> None:
        self._virtual = virtual
        self._must_move = must_move
        self._seen: dict[Hashable, _Seen] = {}

    def forget(self, key: Hashable) -> None:
        """Its counters are others from now on."""
        self._seen.pop(key, None)

    def doubt(self, key: Hashable, counts: tuple[int, ...], now_ns: int) -> str:
        """Why these counts cannot be believed, in words; "": they can."""
        seen = self._seen.setdefault(key, _Seen(counts, now_ns))
        if counts != seen.counts:
            seen.counts, seen.moved_ns, seen.ever = counts, now_ns, True
        still_ns = now_ns - seen.moved_ns
        if self._virtual and not seen.ever and still_ns < PATIENCE_NS:
            return "in a virtual machine counters are believed when they have been seen to move"
        if still_ns < PATIENCE_NS or not (self._virtual or self._must_move):
            return ""
        still = f"its counters have stood still for {still_ns / 1e9:.0f} s"
        if self._virtual:
            return f"{still}, which in a virtual machine cannot be told from having none"
        return f"{still}, though energy is always used"
