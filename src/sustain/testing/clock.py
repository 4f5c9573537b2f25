"""A clock that moves only when told to."""

from sustain.units import to_ns


class FakeClock:
    """Implements `sustain.clock.Clock`. Starts at `boottime_s` since boot."""

    def __init__(self, boottime_s: float = 1000.0, realtime_s: float = 1_700_000_000.0) -> None:
        self._boottime_ns = to_ns(boottime_s)
        self._offset_ns = to_ns(realtime_s) - self._boottime_ns

    def boottime_ns(self) -> int:
        return self._boottime_ns

    def realtime_ns(self) -> int:
        return self._boottime_ns + self._offset_ns

    def advance(self, duration_s: float) -> None:
        """Let `duration_s` pass."""
        if duration_s < 0:
            raise ValueError("this clock never goes back")
        self._boottime_ns += to_ns(duration_s)
