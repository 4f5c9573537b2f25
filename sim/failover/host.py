"""One simulated host: carries out what `decide` asks for, and shows it what it would see.

The counterpart of `sustain.failover.supervise`, `observe` and `process`. What takes time on a real host takes
simulated time here; a host that is paused does nothing until it goes on, and then finds all its clocks later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sim.failover.power import BANDWIDTH_SHARE, POLL_S, Feed
from sustain.errors import LeaseError
from sustain.failover.lease.record import (
    Candidate,
    CandidateView,
    LeaseGrant,
    LeaseState,
    LeaseView,
)
from sustain.failover.lease.request import HandoverRequest
from sustain.failover.types import (
    Action,
    Announce,
    AnswerRequest,
    ChildState,
    ChildView,
    CloseEpoch,
    CreateStore,
    DestinationView,
    Exit,
    ForgetLease,
    Observation,
    Policy,
    Promote,
    ReadyForPowerOff,
    ReleaseLease,
    Renew,
    ResumeLease,
    Role,
    SetAside,
    Shed,
    StartCommand,
    StartReceiver,
    StartShipper,
    State,
    StopCommand,
    StopReceiver,
    StopShipper,
    StoreView,
    TryAcquire,
)
from sustain.testing import MemoryLease

if TYPE_CHECKING:
    from sim.failover.world import World


@dataclass(slots=True)
class SimStore:
    """A store: the numbers of the commits it holds, in order. Positions are counted in commits."""

    uuid: str
    log: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=lambda: [1])  # of the last record: the end of the list
    begins: dict[int, int] = field(default_factory=dict)  # where those epochs begin; the first ones at 0
    epoch: int = 1  # the newest heard of
    complete: bool = True
    fence_epoch: int = 0
    lease_epoch: int = 0
    deadline_ns: int = 0


class SimClock:
    """A host's clock: its own beginning, its own rate. `pinned` is what an access to the lease began at."""

    def __init__(self, world: World, offset_ns: int, rate: float) -> None:
        self._world = world
        self._offset_ns = offset_ns
        self.rate = rate
        self.pinned: int | None = None

    def boottime_ns(self) -> int:
        if self.pinned is not None:
            return self.pinned
        return self.now_ns()

    def now_ns(self) -> int:
        return self._offset_ns + int(self._world.now_ns * self.rate)

    def realtime_ns(self) -> int:
        return self.boottime_ns()

    def when(self, boottime_ns: int) -> int:
        """The world's time of a moment of this clock."""
        return int((boottime_ns - self._offset_ns) / self.rate) + 1


class Host:
    """A host with (perhaps) a supervisor, a command, a shipper, a receiver and a store."""

    def __init__(self, world: World, name: str, clock: SimClock, policy: Policy) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.policy = policy
        self.store: SimStore | None = None
        self.supervised = False
        self.standing_by = False
        self.paused_until_ns = 0
        self.disturbed_s = 0.0
        self.cut_off = False
        self.command = ChildView()
        self.command_epoch = 0
        self.shipper = ChildView()
        self.receiver = ChildView()
        self.acked: dict[str, int] = {}
        self.last_commit_s = 0.0
        self.granted_epoch = 0
        self.feed: Feed | None = None  # None: no power source is watched
        self.powered = True
        self._life = 0  # of the supervisor; what an earlier one began is void
        self._reset()

    def _reset(self) -> None:
        self.state = State()
        self._lease: MemoryLease | None = None
        self._view: LeaseView | None = None
        self._error, self._error_ns = "", 0
        self._grant: LeaseGrant | None = None
        self._lost = ""
        self._busy = 0
        self._candidates: tuple[CandidateView, ...] = ()
        self._request: HandoverRequest | None = None
        self._looked = 0  # how often it was asked for
        self._preparing = False
        self._stop_requested = False
        self._shed: bool | None = None  # None: nothing was shed in this outage; False: it takes its time
        self._beat = 0
        self._next_wake_ns = 0
        self._poll_ns = self.policy.poll_ns

    # what happens to it

    def start(self) -> None:
        """The supervisor starts; what an earlier one left behind is ended first."""
        if self.supervised or not self.powered:
            return
        self._life += 1
        self._reset()
        instance = f"{self.name}{self._life}"
        self.policy = replace(self.policy, instance=instance)
        world = self.world
        margin = world.variant.margin
        self._lease = MemoryLease(world.lease_store, instance, self.clock, self.policy.ttl_ns / 1e9, margin)
        self.command, self.shipper, self.receiver = ChildView(), ChildView(), ChildView()
        self.supervised, self.standing_by = True, False
        self.world.tell(self, "supervisor starts")
        if self.feed is not None:
            self.feed.reset_watch()
            self.later(self.world.power_rng.uniform(0, POLL_S), self._watch_power)
        self._poll()
        self.step()

    def power_cut(self) -> None:
        """Everything is gone; what was only in memory, too."""
        self.powered = False
        self.disturbed_s = self.world.now_s
        self.crash()
        if self.world.volatile and self.store is not None:
            self.store.complete = False
            del self.store.log[: len(self.store.log) // 3]
            self.acked = {}

    def crash(self) -> None:
        """Everything but the store is gone."""
        self.kill_supervisor()
        self.command, self.shipper, self.receiver = ChildView(), ChildView(), ChildView()
        self.paused_until_ns = 0

    def kill_supervisor(self) -> None:
        self.supervised = self.standing_by = False
        self._life += 1

    def ask_to_stop(self) -> None:
        self._stop_requested = True
        self.step()

    def pause(self, until_ns: int) -> None:
        self.paused_until_ns = max(self.paused_until_ns, until_ns)

    @property
    def paused(self) -> bool:
        return self.world.now_ns < self.paused_until_ns

    def command_ends(self, status: int) -> None:
        if self.command.running:
            self.command = ChildView(
                ChildState.EXITED, status, self.clock.boottime_ns(), self.command.asked_ns
            )
            self.step()

    def part_fails(self, which: str) -> None:
        child: ChildView = getattr(self, which)
        if child.running:
            setattr(self, which, ChildView(ChildState.EXITED, 1, self.clock.boottime_ns()))
            self.step()

    # what it may do

    def accepts(self) -> bool:
        """Whether the engine would take a commit of this host's command now."""
        store = self.store
        if not self.command.running or store is None or store.epochs[-1] != self.command_epoch:
            return False
        if not self.world.variant.engine_fences:
            return True
        in_time = self.clock.boottime_ns() < store.deadline_ns and store.lease_epoch == self.command_epoch
        return in_time and store.fence_epoch <= self.command_epoch

    def has_room(self) -> bool:
        """Whether the engine would let a commit go on that is not too late: the battery's budget."""
        if self.feed is None or self.store is None or not self.world.variant.engine_budgets:
            return True
        limit = self.feed.limit()
        return limit is None or len(self.store.log) < limit

    def command_outlives_s(self) -> float:
        """Seconds that the command runs past its deadline, with a supervisor that could have ended it."""
        store = self.store
        quiet = self.world.now_s - self.disturbed_s > 1.0
        if not (self.command.running and self.supervised and store is not None and quiet):
            return 0.0
        if self.paused or store.lease_epoch != self.command_epoch:
            return 0.0
        return (self.clock.boottime_ns() - store.deadline_ns) / 1e9

    # observe, decide, act

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """`what`, after `delay_s`, or when a pause has ended; not at all if the supervisor was another by then."""
        life = self._life

        def guarded() -> None:
            if self._life != life:
                return
            if self.paused:
                self.world.at(self.paused_until_ns, guarded)
                return
            what()

        self.world.after(delay_s, guarded)

    def step(self) -> None:
        if not self.supervised or self.paused:
            if self.supervised:
                self._wake(self.paused_until_ns)
            return
        for _ in range(20):  # as long as an action changes at once what is seen
            now_ns = self.clock.boottime_ns()
            seen = self.world.variant.see(self._observe())
            plan = self.world.variant.decide(seen, self.state, self.policy, now_ns)
            if plan.state.role is not self.state.role:
                self.world.tell(self, f"{plan.state.role}")
            self.state = plan.state
            self.standing_by = plan.state.role is Role.STANDBY
            self._poll_ns = plan.poll_ns
            acted = [action for action in plan.actions if self._act(action)]
            if not acted or not self.supervised:
                break
        if self.supervised:
            self._wake(self.clock.when(plan.wake_ns))

    def _wake(self, at_ns: int) -> None:
        at_ns = max(at_ns, self.world.now_ns + 1)
        if self.world.now_ns < self._next_wake_ns <= at_ns:
            return
        self._next_wake_ns = at_ns
        life = self._life

        def wake() -> None:
            if self._life == life and self._next_wake_ns == at_ns:
                self.step()

        self.world.at(at_ns, wake)

    def _observe(self) -> Observation:
        store = self.store
        self._set_deadline()
        return Observation(
            lease=self._view,
            lease_error=self._error,
            lease_error_ns=self._error_ns,
            lease_busy=self._busy > 0,
            grant=self._grant,
            grant_lost=self._lost,
            candidates=self._candidates,
            request=self._request,
            store=None
            if store is None
            else StoreView(
                store.uuid,
                store.epoch,
                store.epochs[-1],
                len(store.log),
                store.fence_epoch,
                "" if store.complete else "a snapshot is being received",
                store.complete and not store.log,
            ),
            preparing=self._preparing,
            command=self.command,
            receiver=self.receiver,
            shipper=self.shipper,
            destinations=tuple(
                DestinationView(
                    name, "streaming", acked, bandwidth=self.world.rate(self.name, name) * BANDWIDTH_SHARE
                )
                for name, acked in self.acked.items()
            ),
            stop_requested=self._stop_requested,
            power=None if self.feed is None else self.feed.view(),
            shed_done=self._shed_done(),
        )

    def _shed_done(self) -> bool:
        if self.feed is None or not self.feed.view().fails:
            self._shed = None
        return not self.policy.sheds or self._shed is True

    def _watch_power(self) -> None:
        assert self.feed is not None
        self.later(POLL_S, self._watch_power)
        self.feed.poll()

    def _set_deadline(self) -> None:
        grant, store = self._grant, self.store
        if grant is None or store is None or self._lost or store.epochs[-1] != grant.epoch:
            return
        if store.lease_epoch != grant.epoch or 0 < store.deadline_ns < grant.deadline_ns:
            store.lease_epoch, store.deadline_ns = grant.epoch, grant.deadline_ns

    def _act(self, action: Action) -> bool:  # noqa: PLR0912, PLR0915 - one table
        """Carry it out; True when something has changed at once."""
        world, rng = self.world, self.world.rng
        now_ns = self.clock.boottime_ns()
        match action:
            case TryAcquire():
                view = self._view
                assert view is not None
                world.tell(self, f"tries to acquire: {action.reason}")
                self._access(lambda lease: self._acquire(lease, view, action.at_least_epoch))
            case Renew():
                grant = self._grant
                assert grant is not None
                self._access(lambda lease: self._renew(lease, grant, action.store_uuid, action.state))
            case ResumeLease():
                grant = self._grant
                assert grant is not None
                world.tell(self, f"takes its own lease again: {action.reason}")
                self._access(lambda lease: self._resume(lease, grant, action.at_least_epoch))
            case CloseEpoch():
                self._close(action.epoch)
                return True
            case Shed():
                if self._shed is None:
                    self._shed = False
                    world.checker.outage_acted_on(self, "sheds")
                    self.later(world.power_rng.uniform(0.02, 0.3), self._has_shed)
            case ReadyForPowerOff():
                assert self.feed is not None
                if not self.feed.ready:
                    self.feed.ready = True
                    world.tell(self, "is ready: the power may be cut")
                    world.checker.ready(self)
            case ReleaseLease():
                self._release(action)
            case AnswerRequest():
                world.tell(self, f"answers the request for a handover ({action.state}): {action.reason}")
                self._access(lambda lease: self._answer(lease, action), change=False)
            case ForgetLease():
                world.tell(self, f"forgets the lease: {action.reason}")
                self._grant, self._lost = None, ""
                return True
            case Announce():
                self._beat += 1
                note = Candidate(
                    self.name, self.policy.instance, action.rank, action.usable, action.round, self._beat
                )
                self._access(lambda lease: lease.announce(note), change=False)
            case CreateStore():
                self.store = SimStore(uuid=f"store-of-{self.name}-{world.now_ns}")
                world.tell(self, "creates the store")
                return True
            case SetAside():
                self.store = None
                return True
            case Promote():
                self._preparing = True
                self.later(rng.uniform(0.005, 0.1), lambda: self._promoted(action.epoch))
            case StartCommand():
                world.checker.started(self)
                world.tell(self, f"starts the command: {action.reason}")
                self.command = ChildView(ChildState.RUNNING, None, now_ns)
                self.command_epoch = action.epoch
                self._set_deadline()
                if self._lease is not None and action.first:
                    self._access(lambda lease: lease.withdraw(self.name), change=False)
                world.command_started(self)
                return True
            case StopCommand():
                if not self.command.asked:
                    if self.state.leaving is not None and self.state.leaving.outage:
                        world.checker.outage_acted_on(self, "stops its command")
                    if self.state.leaving is not None and self.state.leaving.to:
                        world.handovers.stops(self, self.state.leaving.to)
                    world.tell(self, f"stops the command: {action.reason}")
                    self.command = replace(self.command, asked_ns=now_ns)
                    obeys_s = rng.choice((0.01, 0.05, 0.3, 60.0))
                    self.later(obeys_s, lambda: self._obeys(now_ns))
                if now_ns >= action.kill_at_ns:
                    self.command = ChildView(ChildState.EXITED, -9, now_ns, now_ns)
                    return True
            case StartShipper():
                self.shipper = ChildView(ChildState.RUNNING, None, now_ns)
                self.acked = {}
                return True
            case StopShipper():
                if not self.shipper.asked:
                    self.shipper = replace(self.shipper, asked_ns=now_ns)
                    self.later(rng.uniform(0.005, 0.05), lambda: self._ended("shipper"))
            case StartReceiver():
                self.receiver = ChildView(ChildState.RUNNING, None, now_ns)
                return True
            case StopReceiver():
                if not self.receiver.asked:
                    self.receiver = replace(self.receiver, asked_ns=now_ns)
                    self.later(rng.uniform(0.005, 0.05), lambda: self._ended("receiver"))
            case Exit():
                world.tell(self, f"ends: {action.reason}")
                self.kill_supervisor()
                world.supervisor_ended(self)
                return True
        return False

    def _has_shed(self) -> None:
        if self._shed is False:
            self._shed = True
            self.step()

    def _close(self, epoch: int) -> None:
        """Nobody commits in `epoch` here any more."""
        if self.store is not None and self.store.epochs[-1] == epoch:
            self.store.lease_epoch, self.store.deadline_ns = epoch, 0

    def _obeys(self, asked_ns: int) -> None:
        if self.command.asked_ns == asked_ns:
            self.command_ends(-15)

    def _ended(self, which: str) -> None:
        child: ChildView = getattr(self, which)
        if child.running:
            setattr(self, which, ChildView(ChildState.EXITED, 0, self.clock.boottime_ns(), child.asked_ns))
            self.step()

    def _promoted(self, epoch: int) -> None:
        self._preparing = False
        store = self.store
        assert store is not None
        grant = self._grant
        if grant is None or grant.epoch != epoch or self.clock.boottime_ns() >= grant.deadline_ns:
            self.step()
            return
        self.world.tell(self, f"opens epoch {epoch} at position {len(store.log)}")
        self.world.checker.promoted(self, epoch)
        store.epochs.append(epoch)
        store.begins[epoch] = len(store.log)
        store.epoch = max(store.epoch, epoch)
        self.step()

    # the lease

    def _access(self, work: Callable[[MemoryLease], Callable[[], None] | None], change: bool = True) -> None:
        """An access of the lease store: begins now, happens a little later, is answered later still.

        `work` happens there; what it gives back is done here when the answer has come.
        """
        rng, began_ns, faults = self.world.rng, self.clock.now_ns(), self.world.faults
        self._busy += change
        lost_answer = rng.random() < faults.lost_answers

        def delay_s() -> float:
            if rng.random() >= faults.slow:
                return rng.uniform(0.0003, 0.005)
            slow_s = rng.uniform(0.2, 2.0)
            self.disturbed_s = max(self.disturbed_s, self.world.now_s + slow_s)
            return slow_s

        def happen() -> None:
            lease = self._lease
            assert lease is not None
            lease.fault = self._unreachable if self.cut_off else None
            self.clock.pinned = began_ns
            answer: Callable[[], None] | None = None
            error = "the answer was lost" if lost_answer else ""
            try:
                answer = work(lease)
            except LeaseError as failure:
                error = str(failure)
            finally:
                self.clock.pinned = None
            self.later(delay_s(), lambda: self._answered(answer, error, change))

        self.later(delay_s(), happen)

    def _answered(self, answer: Callable[[], None] | None, error: str, change: bool) -> None:
        self._busy -= change
        if error:
            self._error, self._error_ns = error, self.clock.now_ns()
        else:
            if change:
                self._error = ""
            if answer is not None:
                answer()
        self.step()

    def _poll(self) -> None:
        lease = self._lease
        assert lease is not None
        lease.fault = self._unreachable if self.cut_off else None
        before = (None if self._view is None else self._view.record, self._request)
        notes = tuple(view.candidate for view in self._candidates)
        try:
            self._view, candidates, self._request = lease.look()
            self._looked += 1
            self._candidates = tuple(candidates)
            stirred = bool(self._error)
            self._error = ""
        except LeaseError as error:
            stirred = not self._error
            self._error, self._error_ns = str(error), self.clock.boottime_ns()
        self.later(self._poll_ns / 1e9, self._poll)
        after = (None if self._view is None else self._view.record, self._request)
        if stirred or before != after or notes != tuple(view.candidate for view in self._candidates):
            self.step()

    def _unreachable(self, what: str) -> None:
        raise LeaseError(f"cannot {what} the lease: unreachable")

    def _acquire(self, lease: MemoryLease, view: LeaseView, at_least_epoch: int) -> Callable[[], None]:
        grant = lease.acquire(view, self.name, self.policy.ttl_ns / 1e9, at_least_epoch)
        if grant is None:
            return self._look
        self.world.tell(self, f"has the lease, epoch {grant.epoch}")
        self.world.checker.acquired(self, view.record)
        self.world.handovers.acquired(self, view.record)

        def answer() -> None:
            self._take(grant)
            self._lost, self.granted_epoch = "", grant.epoch

        return answer

    def _renew(
        self, lease: MemoryLease, grant: LeaseGrant, store_uuid: str, state: LeaseState | None
    ) -> Callable[[], None]:
        return self._kept(grant, self.world.variant.renew(lease, grant, store_uuid, state))

    def _resume(self, lease: MemoryLease, grant: LeaseGrant, at_least_epoch: int) -> Callable[[], None]:
        resumed = lease.resume(grant, at_least_epoch)
        if resumed is not None:
            self.granted_epoch = resumed.epoch
        return self._kept(grant, resumed)

    def _kept(self, grant: LeaseGrant, renewed: LeaseGrant | None) -> Callable[[], None]:
        def answer() -> None:
            if self._grant is None or self._grant.epoch != grant.epoch:
                return
            if renewed is not None:
                self._take(renewed)
                return
            self._look()
            self._lost = "the lease is another's now"
            self.world.tell(self, self._lost)

        return answer

    def _take(self, grant: LeaseGrant) -> None:
        if self.world.variant.counts_from_end:
            grant = replace(grant, deadline_ns=grant.deadline_ns - grant.renewed_ns + self.clock.now_ns())
        self._grant = grant
        self.world.checker.granted(self, grant.epoch, grant.deadline_ns)

    def _look(self) -> None:
        if self._lease is not None and not self.cut_off:
            self._view = self._lease.read()
            self._candidates = tuple(self._lease.candidates())

    def _release(self, action: ReleaseLease) -> None:
        grant = self._grant
        assert grant is not None
        self.world.tell(self, f"gives the lease back ({action.state}): {action.reason}")
        self._close(grant.epoch)

        def answer() -> None:
            self._grant, self._lost = None, ""

        def work(lease: MemoryLease) -> Callable[[], None]:
            if lease.release(grant, action.state, action.position, action.reason, action.successor):
                self.world.checker.released(self, action.state)
                self.world.handovers.released(self, action.successor)
            return answer

        self._access(work)

    def _answer(self, lease: MemoryLease, action: AnswerRequest) -> Callable[[], None]:
        found = lease.amend(action.id, action.amended)
        self._looked += 1
        looked = self._looked

        def answer() -> None:
            if (
                looked == self._looked
            ):  # `LeaseWorker` asks one after the other: what is older is not told later
                self._request = found

        return answer
