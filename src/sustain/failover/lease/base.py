"""What a lease is: one record that names who may run the workload, changed only by compare-and-swap.

Used by `failover.supervise` through `open_lease(url)`; stores of leases (a directory, etcd)
implement `Lease`, `sustain.testing.MemoryLease` is the fake.

Model. Hosts have unrelated clocks, so no time of day is in the record: a holder shows that it lives by
changing the record (`counter`). A contender may take the record only when its *own* clock has seen it
unchanged for ttl × (1 + margin), or at once when it is marked released. The holder stops at ttl × (1 −
margin), counted from *before* its last successful write began. Every renewal that a contender could have
missed lies before what it saw, so the holder's end always comes first, as long as clock rates differ by
less than about twice the margin. The swap itself, by version, decides races; `Watch` keeps the observation
time.

Every change begins from what the holder knows to be there and, when that has moved, from what is there now:
a write of its own whose answer was lost, and that may have come late, is not another host's.

Rejected: expiry times in the record (needs synchronised clocks, and a clock that jumps hands the lease out
twice); a lock held open for as long as the lease (a stopped process would hold it for ever, and network
file systems lose such locks silently).

Beside the record, standbys announce how much they hold, so that the one that holds most takes over. These
notes are hints with a heartbeat; nothing depends on them for safety of the lease itself. And an operator may ask for a
handover there (`request`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from sustain.clock import Clock
from sustain.errors import LeaseError
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
from sustain.failover.lease.request import HandoverRequest, parse_request, render_request
from sustain.units import to_ns

_ATTEMPTS = 5  # of a holder, each after another write of its own came between


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
    def release(
        self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str, successor: str = ""
    ) -> bool:
        """Mark it released, saved or done; False when it was another's already.

        `position`: the store's end in this epoch; None when the store was not opened in it. `successor`: who may take
        it first.
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

    @abstractmethod
    def request(self) -> HandoverRequest | None:
        """The handover that was asked for last; None when none was, or when it cannot be understood."""

    @abstractmethod
    def ask(self, request: HandoverRequest, instead_of: HandoverRequest | None) -> bool:
        """Ask for a handover; False when what is there is not `instead_of`."""

    @abstractmethod
    def amend(
        self, request_id: str, changed: Callable[[HandoverRequest], HandoverRequest]
    ) -> HandoverRequest | None:
        """Make that request what `changed` gives for it; what is there afterwards, be it another."""

    def look(self) -> tuple[LeaseView, list[CandidateView], HandoverRequest | None]:
        """All of it, in one access where the store can do that."""
        return self.read(), self.candidates(), self.request()

    def close(self) -> None:  # noqa: B027 most stores have nothing to close
        """Give back what the access holds; it is not used any more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A request as it lies there: its bytes, and whatever else the store compares."""

    text: bytes
    version: int = 0


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

    @abstractmethod
    def _load_request(self) -> Stored | None:
        """The newest request; None when there is none."""

    @abstractmethod
    def _swap_request(self, old: Stored | None, text: bytes) -> bool:
        """Replace `old` by `text`; False when something else is there."""

    def read(self) -> LeaseView:
        began_ns = self._clock.boottime_ns()
        record = self._load()
        return self._watch.see(record, self._clock.boottime_ns(), began_ns)

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
        return self._change(
            grant,
            lambda current: replace(
                current,
                epoch=max(current.epoch, at_least_epoch) + 1,
                counter=1,
                state=LeaseState.HELD,  # at once: a region that was sealed before is not saved any more
            ),
        )

    def renew(
        self, grant: LeaseGrant, store_uuid: str = "", state: LeaseState | None = None
    ) -> LeaseGrant | None:
        assert state is None or state.owned
        return self._change(
            grant,
            lambda current: replace(
                current,
                counter=current.counter + 1,
                store_uuid=store_uuid or current.store_uuid,
                state=state or current.state,
            ),
        )

    def release(
        self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str, successor: str = ""
    ) -> bool:
        def released(current: LeaseRecord) -> LeaseRecord:
            record = replace(
                current, counter=current.counter + 1, state=state, reason=reason, successor=successor
            )
            if position is None:
                return record
            return replace(record, position=position, position_epoch=grant.epoch)

        return self._change(grant, released) is not None

    def candidates(self) -> list[CandidateView]:
        return self._heard(self._announced(), self._clock.boottime_ns())

    def request(self) -> HandoverRequest | None:
        stored = self._load_request()
        return None if stored is None else parse_request(stored.text)

    def ask(self, request: HandoverRequest, instead_of: HandoverRequest | None) -> bool:
        stored = self._load_request()
        if (None if stored is None else parse_request(stored.text)) != instead_of:
            return False
        return self._swap_request(stored, render_request(request))

    def amend(
        self, request_id: str, changed: Callable[[HandoverRequest], HandoverRequest]
    ) -> HandoverRequest | None:
        for _ in range(_ATTEMPTS):
            stored = self._load_request()
            current = None if stored is None else parse_request(stored.text)
            if current is None or current.id != request_id:
                return current
            new = changed(current)
            if new == current or self._swap_request(stored, render_request(new)):
                return new
        raise LeaseError(
            f"{self.url}: the request for a handover changes faster than it can be written", hint="try again"
        )

    def _heard(self, announced: list[Candidate], now_ns: int) -> list[CandidateView]:
        views = {}
        for each in announced:
            known = self._beats.get(each.name)
            same = known is not None and known.candidate == each
            views[each.name] = known if known is not None and same else CandidateView(each, now_ns)
        self._beats = views
        return list(views.values())

    def _change(self, grant: LeaseGrant, changed: Callable[[LeaseRecord], LeaseRecord]) -> LeaseGrant | None:
        """Swap the record of `grant`, or what it has become, for `changed` of it; None when it is another's now."""
        began_ns = self._clock.boottime_ns()
        current = grant.record
        for _ in range(_ATTEMPTS):
            if not self._mine(current, grant):
                return None
            record = replace(changed(current), version=current.version + 1)
            if self._swap(current, record):
                return self._granted(record, began_ns)
            current = self._load()
        raise LeaseError(
            f"{self.url}: the lease record changes faster than it can be written",
            hint="does another process use the same lease with this host's identity?",
        )

    def _granted(self, record: LeaseRecord, began_ns: int) -> LeaseGrant:
        return LeaseGrant(record, began_ns, began_ns + to_ns(record.ttl_s * (1 - self._margin)))

    def _mine(self, record: LeaseRecord, grant: LeaseGrant) -> bool:
        return record.state.owned and (record.epoch, record.instance) == (grant.epoch, self._instance)
