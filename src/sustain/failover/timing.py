"""How long the parts of a handover take, noted beside the lease by each of the two hosts, by its own clock.

Used by `supervise`, which shows it every step; `sustain handover` adds up what both have noted (`lease.request`).
Nothing is decided by it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sustain.clock import Clock
from sustain.failover.lease.request import Gave, HandoverRequest, RequestState, Took
from sustain.failover.types import Observation, Plan, ReleaseLease, StartCommand, TryAcquire
from sustain.units import to_ns

_LOOK_NS = to_ns(0.005)  # for the first commit, which wakes nobody
_LOOK_FOR_NS = to_ns(10)

Amend = Callable[[str, Callable[[HandoverRequest], HandoverRequest]], None]


@dataclass(slots=True)
class _Giving:
    id: str
    stop_ns: int
    down_ns: int = 0
    commit_ns: int | None = None
    drained_ns: int = 0


@dataclass(slots=True)
class _Taking:
    id: str
    before_ns: int
    claimed_ns: int = 0
    promoted_ns: int = 0
    start: int | None = None  # where the new epoch begins
    started_ns: int = 0
    committed_ns: int = 0
    said: Took | None = None


class Stopwatch:
    """Of one supervisor. `last_commit_ns` is asked of the state's custodian, `amend` of the lease's worker."""

    def __init__(
        self, name: str, clock: Clock, last_commit_ns: Callable[[], int | None], amend: Amend
    ) -> None:
        self._name = name
        self._clock = clock
        self._last_commit_ns = last_commit_ns
        self._amend = amend
        self._giving: _Giving | None = None
        self._taking: _Taking | None = None

    def see(self, plan: Plan, seen: Observation) -> int:
        """What a step has seen and done; when it should look again at the latest (CLOCK_BOOTTIME, ns)."""
        now_ns = self._clock.boottime_ns()
        self._give(plan, seen, now_ns)
        self._begin_to_take(plan, seen)
        self._take(plan, seen, now_ns)
        waits = self._taking is not None and self._taking.started_ns
        return now_ns + _LOOK_NS if waits else plan.wake_ns

    def _give(self, plan: Plan, seen: Observation, now_ns: int) -> None:
        leaving, moving, giving = plan.state.leaving, plan.state.moving, self._giving
        if giving is None:
            if leaving is not None and leaving.to and moving is not None:
                self._giving = _Giving(moving.id, now_ns)
            return
        if not giving.down_ns and leaving is not None and leaving.drain_from_ns:
            giving.stop_ns = seen.command.asked_ns or giving.stop_ns
            giving.down_ns = max(giving.stop_ns, seen.command.changed_ns)
        if any(isinstance(each, ReleaseLease) and each.successor for each in plan.actions):
            giving.drained_ns = giving.drained_ns or now_ns
            giving.commit_ns = self._last_commit_ns()
        elif seen.grant is None or leaving is None:
            self._giving = None
            if giving.drained_ns and seen.grant is None:
                self._say_gave(giving, now_ns)

    def _say_gave(self, giving: _Giving, released_ns: int) -> None:
        last_ns = giving.commit_ns
        from_ns = giving.stop_ns if last_ns is None else min(max(last_ns, giving.stop_ns), giving.down_ns)
        gave = Gave(
            None if last_ns is None else max(0, giving.stop_ns - last_ns) / 1e9,
            (giving.down_ns - from_ns) / 1e9,
            (giving.drained_ns - giving.down_ns) / 1e9,
            (released_ns - giving.drained_ns) / 1e9,
        )
        self._amend(giving.id, lambda request: replace(request, gave=gave))

    def _begin_to_take(self, plan: Plan, seen: Observation) -> None:
        if not any(isinstance(each, TryAcquire) for each in plan.actions):
            return
        view, request = seen.lease, seen.request
        assert view is not None
        mine = request is not None and request.epoch == view.record.epoch
        if mine and request is not None and view.record.successor == self._name:
            self._taking = _Taking(request.id, view.before_ns)
        else:
            self._taking = None

    def _take(self, plan: Plan, seen: Observation, now_ns: int) -> None:
        taking, grant, store = self._taking, seen.grant, seen.store
        if taking is None:
            return
        if grant is None:
            if taking.claimed_ns:
                self._taking = None  # it was lost again
            return
        taking.claimed_ns = taking.claimed_ns or now_ns
        if store is None or store.log_epoch != grant.epoch:
            return
        if not taking.promoted_ns:
            taking.promoted_ns, taking.start = now_ns, store.end
        if any(isinstance(each, StartCommand) for each in plan.actions):
            taking.started_ns = taking.started_ns or now_ns
        if not taking.started_ns:
            return
        if store.prefix and store.end is not None and store.end > (taking.start or 0):
            taking.committed_ns = now_ns
        self._say_took(taking)
        if taking.committed_ns or not store.prefix or now_ns - taking.started_ns > _LOOK_FOR_NS:
            self._taking = None

    def _say_took(self, taking: _Taking) -> None:
        took = Took(
            (taking.claimed_ns - taking.before_ns) / 1e9,
            (taking.promoted_ns - taking.claimed_ns) / 1e9,
            (taking.started_ns - taking.promoted_ns) / 1e9,
            (taking.committed_ns - taking.started_ns) / 1e9 if taking.committed_ns else None,
        )
        if took != taking.said:
            taking.said = took
            self._amend(taking.id, lambda request: replace(request, took=took, state=RequestState.DONE))
