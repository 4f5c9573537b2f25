"""What a lease is: one record that names who may run the workload, changed only by compare-and-swap.

Used by `failover.supervise` through `open_lease(url)`; stores of leases (a directory now, etcd later)
implement `Lease`, `sustain.testing.MemoryLease` is the fake.

Model. Hosts have unrelated clocks, so no time of day is in the record: a holder shows that it lives by
changing the record (`counter`). A contender may take the record only when its *own* clock has seen it
unchanged for ttl × (1 + margin), or at once when it is marked released. The holder stops at ttl × (1 −
margin), counted from *before* its last successful write began. Every renewal that a contender could have
missed lies before what it saw, so the holder's end always comes first, as long as clock rates differ by
less than about twice the margin. The swap itself, by version, decides races; `Watch` keeps the observation
time.

Rejected: expiry times in the record (needs synchronised clocks, and a clock that jumps hands the lease out
twice); a lock held open for as long as the lease (a stopped process would hold it for ever, and network
file systems lose such locks silently).

Beside the record, standbys announce how much they hold, so that the one that holds most takes over. These
notes are hints with a heartbeat; nothing depends on them for safety of the lease itself.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

from sustain.clock import Clock
from sustain.failover.lease.record import (
    RATE_MARGIN,
    Candidate,
    CandidateView,
    LeaseGrant,
    LeaseRecord,
    LeaseState,
    LeaseView,
    Watch,
)
from sustain.units import to_ns


class Lease(ABC):
    """A lease store as one supervisor uses it. Every call may block for a bounded time; LeaseError otherwise."""

    url: str

    @abstractmethod
    def read(self) -> LeaseView:
        """The record as it is now."""

    @abstractmethod
    def acquire(self, seen: LeaseView, holder: str, ttl_s: float, at_least_epoch: int) -> LeaseGrant | None:
        """Take the lease that looked like `seen`, in an epoch above its own and above `at_least_epoch`.

        None when it may not be taken yet, or when somebody was faster.
        """

    @abstractmethod
    def renew(
        self, grant: LeaseGrant, store_uuid: str = "", state: LeaseState | None = None
    ) -> LeaseGrant | None:
        """A later deadline; `store_uuid` and an owner's `state` are noted if given. None when the lease is
        another's now."""

    @abstractmethod
    def resume(self, grant: LeaseGrant, at_least_epoch: int) -> LeaseGrant | None:
        """Take one's own lease again, in a new epoch: the power came back while the state was being saved.

        None when the lease is another's now.
        """

    @abstractmethod
    def release(self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str) -> bool:
        """Mark it released, saved or done; False when it was another's already.

        `position`: the store's end in this epoch; None when the store was not opened in it.
        """

    @abstractmethod
    def announce(self, candidate: Candidate) -> None:
        """Say how much this standby holds."""

    @abstractmethod
    def withdraw(self, name: str) -> None:
        """Take the announcement back."""

    @abstractmethod
    def candidates(self) -> list[CandidateView]:
        """What standbys have announced, each with the time when this host last saw it change."""


class SwapLease(Lease):
    """Everything of `Lease` but the storage: `_load`, and `_swap`, which must be atomic among all hosts."""

    def __init__(
        self, url: str, instance: str, clock: Clock, ttl_s: float, margin: float = RATE_MARGIN
    ) -> None:
        self.url = url
        self._instance = instance
        self._clock = clock
        self._margin = margin
        self._watch = Watch(ttl_s, margin)
        self._beats: dict[str, CandidateView] = {}

    @abstractmethod
    def _load(self) -> LeaseRecord:
        """The newest record; an empty one when there is none. LeaseError when it cannot be understood."""

    @abstractmethod
    def _swap(self, old: LeaseRecord, new: LeaseRecord) -> bool:
        """Replace `old` (by its version) with `new`, durably; False when another record is there."""

    @abstractmethod
    def _announced(self) -> list[Candidate]:
        """What is announced now."""

    def read(self) -> LeaseView:
        record = self._load()
        return self._watch.see(record, self._clock.boottime_ns())

    def acquire(self, seen: LeaseView, holder: str, ttl_s: float, at_least_epoch: int) -> LeaseGrant | None:
        began_ns = self._clock.boottime_ns()
        first = seen.record.state is LeaseState.ABSENT  # whether it may be taken at once, the caller knows
        if not first and (seen.takeable_at_ns is None or began_ns < seen.takeable_at_ns):
            return None
        record = LeaseRecord(
            version=seen.record.version + 1,
            epoch=max(seen.record.epoch, at_least_epoch) + 1,
            holder=holder,
            instance=self._instance,
            counter=1,
            ttl_s=ttl_s,
            state=LeaseState.CLAIMED,
            store_uuid=seen.record.store_uuid,
            position=seen.record.position,  # still true if this holder never gets to open the store
            position_epoch=seen.record.position_epoch,
        )
        return self._granted(record, began_ns) if self._swap(seen.record, record) else None

    def resume(self, grant: LeaseGrant, at_least_epoch: int) -> LeaseGrant | None:
        began_ns = self._clock.boottime_ns()
        current = self._load()
        if not self._mine(current, grant):
            return None
        record = replace(
            current,
            version=current.version + 1,
            epoch=max(current.epoch, at_least_epoch) + 1,
            counter=1,
            state=LeaseState.HELD,  # at once: a region that was sealed before is not saved any more
        )
        return self._granted(record, began_ns) if self._swap(current, record) else None

    def renew(
        self, grant: LeaseGrant, store_uuid: str = "", state: LeaseState | None = None
    ) -> LeaseGrant | None:
        assert state is None or state.owned
        began_ns = self._clock.boottime_ns()
        current = self._load()
        if not self._mine(current, grant):
            return None
        # `current` may be ahead of `grant`: a write of ours whose answer was lost.
        record = replace(
            current,
            version=current.version + 1,
            counter=current.counter + 1,
            store_uuid=store_uuid or current.store_uuid,
            state=state or current.state,
        )
        return self._granted(record, began_ns) if self._swap(current, record) else None

    def release(self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str) -> bool:
        current = self._load()
        if not self._mine(current, grant):
            return False
        record = replace(
            current,
            version=current.version + 1,
            counter=current.counter + 1,
            state=state,
            reason=reason,
        )
        if position is not None:
            record = replace(record, position=position, position_epoch=grant.epoch)
        return self._swap(current, record)

    def candidates(self) -> list[CandidateView]:
        announced, now_ns = self._announced(), self._clock.boottime_ns()
        views = {}
        for each in announced:
            known = self._beats.get(each.name)
            same = known is not None and known.candidate == each
            views[each.name] = known if known is not None and same else CandidateView(each, now_ns)
        self._beats = views
        return list(views.values())

    def _granted(self, record: LeaseRecord, began_ns: int) -> LeaseGrant:
        return LeaseGrant(record, began_ns, began_ns + to_ns(record.ttl_s * (1 - self._margin)))

    def _mine(self, record: LeaseRecord, grant: LeaseGrant) -> bool:
        return record.state.owned and (record.epoch, record.instance) == (grant.epoch, self._instance)
