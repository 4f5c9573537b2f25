"""The one place that reads clocks; everything above takes a `Clock` and can be given a fake.

Used by failover and replication. Leases count on CLOCK_BOOTTIME: it never jumps, and it goes on while the
host sleeps, so that a laptop's lid or a suspended VM cannot stretch a lease (CLOCK_MONOTONIC stands still
then, and the wall clock may be set back). The wall clock is only ever shown to people.
`sustain.testing.FakeClock` is moved by hand.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """What a clock can be asked."""

    def boottime_ns(self) -> int:
        """Nanoseconds since this host started, sleep included."""

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970 by this host's wall clock; for people, never for decisions."""


class SystemClock:
    """The clocks of this host."""

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def realtime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_REALTIME)
