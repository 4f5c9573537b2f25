"""The lease, accessed from a thread of its own, so that a lease store that hangs cannot stop the supervisor
from fencing itself in time.

Used by `supervise`. It reads the record on its own, every `poll_ns`, and carries out one change at a time;
the supervisor looks at `status()` and is woken when something has changed. All rules are in `Lease` and
`decide`; this only moves the waiting elsewhere.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.failover.lease.base import Lease
from sustain.failover.lease.record import (
    Candidate,
    CandidateView,
    LeaseGrant,
    LeaseState,
    LeaseView,
    Rank,
)
from sustain.failover.lease.request import HandoverRequest


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What is known of the lease. `grant` stays until it is released or forgotten, also past its deadline."""

    view: LeaseView | None = None
    error: str = ""
    error_hint: str = ""
    error_ns: int = 0
    grant: LeaseGrant | None = None
    lost: str = ""
    candidates: tuple[CandidateView, ...] = ()
    request: HandoverRequest | None = None


class LeaseWorker:
    """One thread, one `Lease`. Every method returns at once."""

    def __init__(
        self, lease: Lease, clock: Clock, holder: str, instance: str, wake: Callable[[], None]
    ) -> None:
        self._lease = lease
        self._clock = clock
        self._holder = holder
        self._instance = instance
        self._wake = wake
        self._lock = threading.Lock()
        self._status = LeaseStatus()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changing = 0
        self._beat = 0
        self._announced = False
        self._ended = False
        self.poll_s = 0.1
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def status(self) -> tuple[LeaseStatus, bool]:
        """What is known, and whether a change is under way."""
        with self._lock:
            return self._status, self._changing > 0

    def acquire(self, seen: LeaseView, ttl_s: float, at_least_epoch: int) -> None:
        self._change(lambda: self._acquire(seen, ttl_s, at_least_epoch))

    def renew(self, grant: LeaseGrant, store_uuid: str, state: LeaseState | None) -> None:
        self._change(lambda: self._renew(grant, store_uuid, state))

    def resume(self, grant: LeaseGrant, at_least_epoch: int) -> None:
        self._change(lambda: self._resume(grant, at_least_epoch))

    def release(
        self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str, successor: str
    ) -> None:
        self._change(lambda: self._release(grant, state, position, reason, successor))

    def forget(self) -> None:
        with self._lock:
            self._status = replace(self._status, grant=None, lost="")

    def announce(self, rank: Rank, usable: bool, round_: int, role: str) -> None:
        self._tasks.put(lambda: self._announce(rank, usable, round_, role))

    def amend(self, request_id: str, changed: Callable[[HandoverRequest], HandoverRequest]) -> None:
        self._tasks.put(lambda: self._note(request=self._lease.amend(request_id, changed)))

    def stop(self, timeout_s: float) -> bool:
        """End the thread after what is queued; False when the lease store hangs (the thread is left behind)."""
        self._tasks.put(self._withdraw)
        self._tasks.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # in the thread

    def _run(self) -> None:
        while not self._ended:
            try:
                task = self._tasks.get(timeout=self.poll_s)
            except queue.Empty:
                self._guarded(self._read)
                continue
            if task is None:
                return
            self._guarded(task)

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except (SustainError, OSError) as error:
            hint = getattr(error, "hint", "")
            self._note(error=str(error), error_hint=hint, error_ns=self._clock.boottime_ns())

    def _change(self, task: Callable[[], None]) -> None:
        def counted() -> None:
            try:
                self._guarded(task)
            finally:
                with self._lock:
                    self._changing -= 1
                self._wake()

        with self._lock:
            self._changing += 1
        self._tasks.put(counted)

    def _read(self) -> None:
        view, candidates, request = self._lease.look()
        self._note(view=view, candidates=tuple(candidates), request=request, error="", error_hint="")

    def _acquire(self, seen: LeaseView, ttl_s: float, at_least_epoch: int) -> None:
        grant = self._lease.acquire(seen, self._holder, ttl_s, at_least_epoch)
        if grant is None:
            self._read()
            return
        self._note(grant=grant, lost="", error="")
        self._withdraw()

    def _renew(self, grant: LeaseGrant, store_uuid: str, state: LeaseState | None) -> None:
        self._keep(grant, self._lease.renew(grant, store_uuid, state))

    def _resume(self, grant: LeaseGrant, at_least_epoch: int) -> None:
        self._keep(grant, self._lease.resume(grant, at_least_epoch))

    def _keep(self, grant: LeaseGrant, renewed: LeaseGrant | None) -> None:
        held = self.status()[0].grant
        if held is None or held.epoch != grant.epoch:
            return  # given up while the lease store hung: it runs out, as others expect
        if renewed is not None:
            self._note(grant=renewed, error="")
            return
        view = self._lease.read()
        self._note(view=view, lost=_whose(view))

    def _release(
        self, grant: LeaseGrant, state: LeaseState, position: int | None, reason: str, successor: str
    ) -> None:
        self._lease.release(grant, state, position, reason, successor)
        self._note(grant=None, lost="", error="")
        self._read()

    def _announce(self, rank: Rank, usable: bool, round_: int, role: str) -> None:
        self._beat += 1
        self._announced = True
        now_ns = self._clock.realtime_ns()
        note = Candidate(self._holder, self._instance, rank, usable, round_, self._beat, role, now_ns)
        self._lease.announce(note)

    def _withdraw(self) -> None:
        if self._announced:
            self._lease.withdraw(self._holder)
            self._announced = False

    def _note(self, **changes: object) -> None:
        with self._lock:
            old = self._status
            self._status = replace(old, **changes)  # type: ignore[arg-type]
            stirred = _telling(old) != _telling(self._status)
        if stirred:
            self._wake()


def _telling(status: LeaseStatus) -> tuple[object, ...]:
    """What a change of the supervisor needs to hear about; the time of a reading is not."""
    record = None if status.view is None else status.view.record
    return (record, status.grant, status.lost, status.error, status.candidates, status.request)


def _whose(view: LeaseView) -> str:
    record = view.record
    if record.state is LeaseState.ABSENT:
        return "the lease record has gone"
    return f"{record.holder} has the lease now, epoch {record.epoch}"
