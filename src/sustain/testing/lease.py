"""A lease store in memory, with faults: for tests and for the simulation.

The rules are those of the real ones (`SwapLease`); only the storage differs.
"""

import threading
from collections.abc import Callable

from sustain.clock import Clock
from sustain.errors import LeaseError
from sustain.failover.lease.base import Stored, SwapLease
from sustain.failover.lease.record import RATE_MARGIN, Candidate, LeaseRecord


class MemoryLeaseStore:
    """What all hosts share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.record = LeaseRecord()
        self.notes: dict[str, Candidate] = {}
        self.request: Stored | None = None


class MemoryLease(SwapLease):
    """One host's access. `fault`, when set, is called before each access and may raise LeaseError."""

    def __init__(
        self,
        store: MemoryLeaseStore,
        instance: str,
        clock: Clock,
        ttl_s: float,
        margin: float = RATE_MARGIN,
    ) -> None:
        super().__init__("memory:", instance, clock, ttl_s, margin)
        self._store = store
        self.fault: Callable[[str], None] | None = None

    def _load(self) -> LeaseRecord:
        self._access("read")
        return self._store.record

    def _swap(self, old: LeaseRecord, new: LeaseRecord) -> bool:
        self._access("write")
        with self._store.lock:
            if self._store.record.version != old.version:
                return False
            self._store.record = new
            return True

    def announce(self, candidate: Candidate) -> None:
        self._access("write")
        self._store.notes[candidate.name] = candidate

    def withdraw(self, name: str) -> None:
        self._access("write")
        self._store.notes.pop(name, None)

    def _announced(self) -> list[Candidate]:
        self._access("read")
        return list(self._store.notes.values())

    def _load_request(self) -> Stored | None:
        self._access("read")
        return self._store.request

    def _swap_request(self, old: Stored | None, text: bytes) -> bool:
        self._access("write")
        with self._store.lock:
            if self._store.request != old:
                return False
            self._store.request = Stored(text, 0 if old is None else old.version + 1)
            return True

    def _access(self, what: str) -> None:
        if self.fault is not None:
            self.fault(what)


def unreachable(what: str) -> None:
    """A `fault`: nobody answers."""
    raise LeaseError(f"memory: cannot {what} the lease: unreachable", hint="end the fault")
