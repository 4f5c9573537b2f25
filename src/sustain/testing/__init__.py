"""Fakes of what Sustain stands on, for the tests of those who use it and for our own.

They implement the same interfaces as the real parts, and the same test suite checks both.
"""

from sustain.testing.clock import FakeClock
from sustain.testing.lease import MemoryLease, MemoryLeaseStore

__all__ = ["FakeClock", "MemoryLease", "MemoryLeaseStore"]
