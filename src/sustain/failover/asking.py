"""Asking for a handover, and watching what comes of it. From any host that sees the lease.

Used by `sustain handover`. Everything is done by the supervisors of the two hosts; this only leaves a request beside
the lease and looks. So it may be interrupted, or lose sight of the lease, at any moment: what was accepted goes on.
"""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from sustain.errors import HandoverFailed, LeaseError
from sustain.failover.lease.base import Lease
from sustain.failover.lease.record import LeaseRecord, LeaseState, LeaseView
from sustain.failover.lease.request import HandoverRequest, RequestState

_LOOK_S = 0.05
_ANSWER_S = 2.0  # for the primary's answer to be seen, beyond the request's own limit
_FIGURES_S = 5.0  # for the successor's first commit, once its command runs
_BLIND_S = 10.0  # the lease store may fail for so long meanwhile
_MOVE_S = 120.0  # from the acceptance, beyond the limit: a command may take its time to stop


@dataclass(frozen=True, slots=True)
class Moved:
    """A handover that was done. `request` has its times; `position` is where the new epoch began, None: unknown."""

    request: HandoverRequest
    epoch: int
    position: int | None


def ask(lease: Lease, to: str, limit_s: float) -> HandoverRequest:
    """Ask the workload's owner to hand over to `to` ("": whoever holds most), within `limit_s`.

    Raises HandoverFailed when there is nobody to ask, LeaseError.
    """
    for _ in range(5):
        view, _, before = lease.look()
        record = view.record
        _check(lease.url, record, to)
        if before is not None and before.epoch == record.epoch and not before.state.over:
            raise HandoverFailed(
                f"another handover is under way: {before.holder} was asked to hand over to "
                f"{before.successor or before.to or 'a standby'}",
                hint=f"wait for it; `sustain status {lease.url}` shows it",
            )
        request = HandoverRequest(uuid.uuid4().hex[:12], record.epoch, record.holder, to, limit_s)
        if lease.ask(request, before) or lease.request() == request:
            return request
    raise HandoverFailed("the workload changes hands all the time", hint=f"see `sustain status {lease.url}`")


def _check(url: str, record: LeaseRecord, to: str) -> None:
    look = f"`sustain status {url}`"
    if record.state is LeaseState.ABSENT:
        raise HandoverFailed(
            f"{url}: no such workload: nobody has had this lease yet", hint="is the URL right, and its name?"
        )
    if not record.state.owned:
        raise HandoverFailed(
            f"nobody has the workload: {record.holder} left it ({record.state}) in epoch {record.epoch}",
            hint=f"see {look}; start `sustain run` on one of its hosts",
        )
    if record.state is LeaseState.SAVING:
        raise HandoverFailed(
            f"the power of {record.holder} fails: it hands over anyway", hint=f"wait; see {look}"
        )
    if record.holder == to:
        raise HandoverFailed(
            f"{to} has the workload already, epoch {record.epoch}", hint="name another host, or none"
        )


class Watcher:
    """Looks until a handover is done. `tell` hears of each step."""

    def __init__(self, lease: Lease, request: HandoverRequest, tell: Callable[[str], None]) -> None:
        self._lease = lease
        self._request = request
        self._tell = tell
        self._began_s = self._seen_s = time.monotonic()
        self._moved: Moved | None = None
        self._moved_s = 0.0
        self._pause = threading.Event()

    def run(self) -> Moved:
        """Raises HandoverFailed when it came to nothing, LeaseError when the lease cannot be seen any more."""
        try:
            while True:
                found = self._look()
                if found is not None:
                    return found
                self._pause.wait(_LOOK_S)
        except KeyboardInterrupt:
            self._withdraw()
            raise

    def _look(self) -> Moved | None:
        now_s = time.monotonic()
        try:
            view, _, request = self._lease.look()
        except LeaseError as error:
            if now_s - self._seen_s > _BLIND_S:
                hint = f"{error.hint}; what was asked may still be done"
                raise LeaseError(str(error), hint=hint) from error
            return None
        self._seen_s = now_s
        if request is not None and request.id == self._request.id:
            self._request = request
        if self._moved is None:
            self._judge(view, now_s)
        if self._moved is None:
            return None
        self._moved = replace(self._moved, request=self._request)
        gave, took = self._request.gave, self._request.took
        never = gave is not None and gave.before_stop_s is None and took is not None
        complete = never or self._request.pause_s is not None
        return self._moved if complete or now_s - self._moved_s > _FIGURES_S else None

    def _judge(self, view: LeaseView, now_s: float) -> None:
        record, request = view.record, self._request
        if record.epoch > request.epoch and record.state in (LeaseState.HELD, LeaseState.SAVING):
            self._settled(record, now_s)
        elif record.state is LeaseState.DONE:
            raise HandoverFailed(
                f"{record.holder} has finished the work meanwhile", hint="nothing is left to be moved"
            )
        elif request.state.over and request.state is not RequestState.DONE and record.epoch == request.epoch:
            raise HandoverFailed(self._refusal(request), hint=request.hint)
        elif request.state is RequestState.ASKED and record.epoch == request.epoch:
            self._unanswered(view, now_s)
        elif now_s - self._began_s > request.limit_s + _MOVE_S:
            raise HandoverFailed(
                f"the handover to {request.successor} is still under way",
                hint=f"see `sustain status {self._lease.url}`",
            )
        else:
            self._tell(_step(record, request))

    def _settled(self, record: LeaseRecord, now_s: float) -> None:
        """Somebody runs it in a later epoch."""
        request = self._request
        if record.holder == request.successor:
            position = record.position if record.position_epoch == request.epoch else None
            self._moved, self._moved_s = Moved(request, record.epoch, position), now_s
            self._tell(f"{record.holder} runs it; its first commit")
            return
        wanted = request.successor or request.to or "a standby"
        now = f"{record.holder} has it {'again' if record.holder == request.holder else 'instead'}"
        raise HandoverFailed(
            f"{wanted} did not take the workload: {now}, epoch {record.epoch}",
            hint=f"nothing is lost; what {wanted} wrote to its log says why",
        )

    def _refusal(self, request: HandoverRequest) -> str:
        if request.state is RequestState.CALLED_OFF:
            return f"called off, {request.holder} keeps the workload: {request.reason}"
        return f"not moved, and nothing was changed: {request.reason}"

    def _unanswered(self, view: LeaseView, now_s: float) -> None:
        request, waited_s = self._request, now_s - self._began_s
        self._tell(f"{request.holder} is asked, {waited_s:.0f} s")
        silent_s = (view.read_ns - view.since_ns) / 1e9
        if silent_s <= view.record.ttl_s and waited_s <= request.limit_s + _ANSWER_S:
            return
        self._withdraw()
        if self._request.state is RequestState.WITHDRAWN:
            if silent_s > view.record.ttl_s:
                why = "it does not renew its lease, so that a standby takes over anyway"
            else:
                why = "does its `sustain run` know handovers? All hosts must run this version"
            raise HandoverFailed(
                f"not moved, and nothing was changed: {request.holder} does not answer", hint=why
            )

    def _withdraw(self) -> None:
        """What nobody has answered yet is not asked any more."""
        found = self._lease.amend(
            self._request.id,
            lambda request: (
                replace(request, state=RequestState.WITHDRAWN)
                if request.state is RequestState.ASKED
                else request
            ),
        )
        if found is not None and found.id == self._request.id:
            self._request = found


def _step(record: LeaseRecord, request: HandoverRequest) -> str:
    if record.epoch > request.epoch:
        return f"{record.holder} has the lease, epoch {record.epoch}"
    if record.state.left:
        return f"{request.holder} has given it up at position {record.position}: {request.successor} takes it"
    return f"{request.holder} hands over to {request.successor}"
