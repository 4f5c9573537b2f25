"""The share of time that tasks waited, of a counter of stalls (PSI). Pure.

Used by the sensors of schedulers. Since about 10 s ago, or the last look that is older: the kernel's own averages are
of fixed windows, and an average of a window that has not passed yet is none.
"""

from collections import deque

_WINDOW_S = 10.0


class Stalls:
    """One counter."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()  # (when, microseconds until then)

    def share(self, now_s: float, total_us: int | None) -> float | None:
        """None: unknown, or looked at for the first time."""
        if total_us is None:
            return None
        while len(self._looks) > 1 and now_s - self._looks[1][0] >= _WINDOW_S:
            self._looks.popleft()
        share = None
        if self._looks and now_s > self._looks[0][0]:
            then_s, then_us = self._looks[0]
            share = min(1.0, max(0.0, (total_us - then_us) / 1e6 / (now_s - then_s)))
        self._looks.append((now_s, total_us))
        return share
