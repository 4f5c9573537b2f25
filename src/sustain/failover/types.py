"""The plain values of failover: what is seen, what is remembered, what shall be done. Pure.

Used by `decide` (which turns the first two into the third), by `observe` and `supervise` (the real host)
and by `sim` (a simulated one). All are immutable and hold only plain values, so that a decision can be
logged, replayed and compared. Times ending in `_ns` are of this host's CLOCK_BOOTTIME. None means unknown.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from sustain.failover.lease.record import CandidateView, LeaseGrant, LeaseState, LeaseView, Rank
from sustain.failover.lease.request import HandoverRequest, RequestState
from sustain.powerfail.decide import Power
from sustain.units import to_ns


class Role(StrEnum):
    STARTING = "starting"  # nothing is known yet
    STANDBY = "standby"  # receives, and watches the lease
    PROMOTING = "promoting"  # holds the lease; the store is opened in the new epoch
    PRIMARY = "primary"  # runs the command
    STOPPING = "stopping"  # ends the command and hands over in good order
    SAVING = "saving"  # the power fails: ends the command and brings away what others do not hold
    SAVED = "saved"  # the power fails, and all that was to do is done: it may be cut
    FENCED = "fenced"  # the lease is ending or gone: the command must be down before


class ChildState(StrEnum):
    NONE = "none"  # not started yet
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ChildView:
    """One child process. `status` as subprocess has it: negative is a signal."""

    state: ChildState = ChildState.NONE
    status: int | None = None
    changed_ns: int = 0
    asked_ns: int = 0  # when it was told to end; 0: it was not

    @property
    def asked(self) -> bool:
        return self.asked_ns != 0

    @property
    def running(self) -> bool:
        return self.state is ChildState.RUNNING

    @property
    def failed(self) -> bool:
        """It ended without having been told to."""
        return self.state is ChildState.EXITED and not self.asked


@dataclass(frozen=True, slots=True)
class StoreView:
    """The store of this host. `problem` says why it cannot be run from, "" when it can."""

    uuid: str
    epoch: int  # the newest that it has heard of
    log_epoch: int  # of the last record it holds
    end: int | None  # end of the last commit it holds
    fence_epoch: int = 0
    problem: str = ""
    empty: bool = False  # nobody has committed anything to it yet
    prefix: bool = True  # what is here is a prefix of the history; a region without its last save is nothing
    arriving: bool = False  # some of its pages are still with another host
    frozen: bool = False  # a region whose program is held still: its end is final

    @property
    def rank(self) -> Rank | None:
        return None if self.end is None else Rank(self.log_epoch, self.end)


@dataclass(frozen=True, slots=True)
class DestinationView:
    url: str
    state: str
    acked: int | None
    required: bool = False
    bandwidth: float | None = None  # bytes per second that a drain may count on
    behind_bytes: int | None = None  # of a region: what is not there yet
    missing_pages: tuple[tuple[int, int], ...] = ()  # of a region that is being sealed: (first, how many)
    missing_more: bool = False  # there are more than are named
    seals: bool = False  # of a region: positions count seals, and say nothing about bytes

    def lacks_bytes(self, end: int | None) -> int | None:
        """What it does not hold of a state that ends at `end`; None: unknown."""
        if self.seals:
            held = end is not None and self.acked is not None and self.acked >= end
            return 0 if held else self.behind_bytes
        return None if end is None or self.acked is None else max(0, end - self.acked)


@dataclass(frozen=True, slots=True)
class PowerView:
    """What is the matter with the power of this host, by its source."""

    power: Power
    reason: str = ""
    usable_s: float | None = None  # battery time that a drain may count on
    usable_reason: str = ""

    @property
    def fails(self) -> bool:
        return self.power.outage

    @property
    def ending(self) -> bool:
        """The battery, or whoever commands it, says that it will be over soon."""
        return self.power in (Power.LOW, Power.FORCED_SHUTDOWN)


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a host knows at one moment."""

    lease: LeaseView | None  # None: not read yet
    lease_error: str = ""  # of the last access, "" when it succeeded
    lease_error_ns: int = 0
    lease_busy: bool = False  # an access that changes the lease is under way
    grant: LeaseGrant | None = None
    grant_lost: str = ""  # why `grant` is known to be another's now
    candidates: tuple[CandidateView, ...] = ()
    request: HandoverRequest | None = None  # that was made last, whatever became of it
    store: StoreView | None = None  # None: there is no store file
    preparing: bool = False  # a creation or a promotion is under way
    prepare_error: str = ""
    command: ChildView = ChildView()
    receiver: ChildView = ChildView()
    shipper: ChildView = ChildView()
    fetcher: ChildView = ChildView()
    destinations: tuple[DestinationView, ...] = ()
    stop_requested: bool = False
    power: PowerView | None = None  # None: no power source is watched
    shed_done: bool = True  # what was to be shed has been, or had its time


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator chose, and margins. Times in nanoseconds."""

    name: str
    instance: str
    ttl_ns: int
    create: bool = False  # this host may make the workload's first store
    new_lease: bool = False  # the lease record has been lost on purpose: begin a new one with this store
    accept_loss: bool = False  # take over although a primary that left in good order held more
    rerun: bool = False  # start again what was finished
    peers: int = 0
    listens: bool = True
    restarts: int = 3
    restart_window_ns: int = to_ns(60)
    on_success: str = "stop"  # or "restart"
    stop_timeout_ns: int = to_ns(10)  # for the command, from SIGTERM to SIGKILL
    drain_timeout_ns: int = to_ns(10)
    backoff_ns: int = to_ns(0.1)
    backoff_limit_ns: int = to_ns(10)
    outage_hold_ns: int = 0  # an outage that lasts no longer than this is sat out, if the battery allows
    outage_stop_ns: int = to_ns(10)  # for the command to end in an outage, at most
    signal_early: bool = False  # others are told when the save begins, and wait for what they need
    freezes: bool = False  # the state is a region: the program is frozen and saved, not stopped and drained
    fetches: bool = False  # a host without a copy takes over all the same, and fetches it while it is used
    sheds: bool = False  # something is to be shed at an outage
    arrival_limit_ns: int = to_ns(60)  # how long what an early signal promised is waited for
    little_bytes: int = 1 << 20  # that a successor may lack when the command is told to stop for a handover

    @property
    def renew_ns(self) -> int:
        """A holder renews this long after the last renewal began."""
        return self.ttl_ns // 4

    @property
    def retry_ns(self) -> int:
        """Between attempts while the lease store fails."""
        return max(self.ttl_ns // 20, to_ns(0.02))

    @property
    def fence_ns(self) -> int:
        """The command is told to stop this long before the deadline,
        so that most programs can end in good order."""
        return self.ttl_ns // 5

    @property
    def kill_ns(self) -> int:
        """What is left of the command is killed this long before the deadline."""
        return self.ttl_ns // 20

    @property
    def beat_ns(self) -> int:
        """Between announcements of a standby."""
        return self.ttl_ns // 3

    @property
    def candidate_life_ns(self) -> int:
        """An announcement that has not changed for this long is of a host that is gone."""
        return self.ttl_ns

    @property
    def election_ns(self) -> int:
        """How long a standby waits for others to say what they hold, and then for a better one to act."""
        return min(self.ttl_ns // 4, to_ns(0.5))

    @property
    def reserve_ns(self) -> int:
        """How long a lease that was handed over is left to the successor."""
        return self.ttl_ns

    @property
    def poll_ns(self) -> int:
        """Between readings of the lease while nothing is near."""
        return min(max(self.ttl_ns // 30, to_ns(0.01)), to_ns(0.1))

    @property
    def fresh_ns(self) -> int:
        """A reading of the lease that is older is not a basis for a takeover."""
        return 2 * self.poll_ns + to_ns(0.02)

    @property
    def busy_poll_ns(self) -> int:
        """The same while a takeover is going on."""
        return min(self.poll_ns, to_ns(0.015))


@dataclass(frozen=True, slots=True)
class Leaving:
    """A handover that has begun: the command ends, destinations catch up, the lease is given back."""

    why: str
    outcome: LeaseState  # RELEASED or DONE
    exits: bool  # whether this supervisor ends afterwards
    began_ns: int
    drain_from_ns: int = 0  # when the command was gone
    outage: bool = False  # because the power fails
    kill_ns: int = 0  # in an outage: when what is left of the command is killed
    to: str = ""  # the host that shall have the lease next, as an operator asked; "": whoever takes it


@dataclass(frozen=True, slots=True)
class Moving:
    """What a primary makes of a request for a handover, until the request is over."""

    id: str
    from_ns: int  # when it was first seen
    successor: str = ""  # as chosen; "": none yet
    seen_ns: int = 0  # when the answer was seen beside the lease, where the successor sees it, too
    mark: int = 0  # the store's end then: a successor that takes what comes has it soon
    over: str = ""  # why nothing comes of it
    hint: str = ""
    told_ns: int = 0  # when an answer was last given


@dataclass(frozen=True, slots=True)
class Outage:
    """What was done about an outage, for its report. Times are CLOCK_BOOTTIME; 0: not yet."""

    why: str
    epoch: int
    began_ns: int  # when it was decided to leave
    usable_s: float | None  # then
    committed: int | None  # then
    held: int | None  # then, by the destination that held most
    down_ns: int = 0  # the command was gone
    end: int | None = None  # where the store ended
    drained_ns: int = 0
    done_ns: int = 0
    outcome: str = "saving"  # "saved", "incomplete", "resumed", "fenced"
    usable_end_s: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a host's decisions remember from one to the next."""

    role: Role = Role.STARTING
    started_epoch: int = 0  # the epoch in which the command was first started
    crashes: tuple[int, ...] = ()  # when, within the window
    seen_exit_ns: int = 0  # the newest exit of the command that was dealt with
    restart_at_ns: int = 0
    leaving: Leaving | None = None
    moving: Moving | None = None
    outage: Outage | None = None  # the one that is going on, or the last
    outage_from_ns: int = 0  # when the one that is going on was first seen; 0: none is
    evacuating: bool = False  # the program of a region was told to freeze
    early: bool = False  # the lease was given back before everything had arrived elsewhere
    arrival_version: int = 0  # of the lease record that promises what is waited for
    arrival_from_ns: int = 0
    drained: bool = True  # whether the last handover left nothing behind
    yield_until_ns: int = 0  # others may go first until then
    fence_why: str = ""
    fenced_ns: int = 0  # since when the command has been told to stop
    released: bool = False  # the lease was given back, or the attempt made
    announced_round: int = 0
    announced_ns: int = 0
    election_from_ns: int = 0
    election_round: int = 0
    receiver_fails: int = 0
    receiver_seen_ns: int = 0
    shipper_fails: int = 0
    shipper_seen_ns: int = 0
    fetcher_fails: int = 0
    fetcher_seen_ns: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do. `reason` is for people and logs, in words and numbers."""

    reason: str


@dataclass(frozen=True, slots=True)
class TryAcquire(Action):
    at_least_epoch: int


@dataclass(frozen=True, slots=True)
class Renew(Action):
    store_uuid: str = ""  # to be noted in the lease
    state: LeaseState | None = None  # likewise


@dataclass(frozen=True, slots=True)
class ResumeLease(Action):
    """Take one's own lease again in a new epoch: the power is back."""

    at_least_epoch: int


@dataclass(frozen=True, slots=True)
class Shed(Action):
    """Carry out what the operator wants shed in an outage. Once an outage."""


@dataclass(frozen=True, slots=True)
class Evacuate(Action):
    """Freeze the program, save what of its region is not saved yet, seal it. Asked again until that is done."""


@dataclass(frozen=True, slots=True)
class Thaw(Action):
    """The program goes on. Does no harm to one that was not frozen."""


@dataclass(frozen=True, slots=True)
class CloseEpoch(Action):
    """Nobody commits in this epoch here any more."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ReadyForPowerOff(Action):
    """Tell the power source that this host needs it no more. Asked again as long as it is so."""


@dataclass(frozen=True, slots=True)
class ReleaseLease(Action):
    state: LeaseState
    position: int | None
    successor: str = ""


@dataclass(frozen=True, slots=True)
class AnswerRequest(Action):
    """Say beside the lease what becomes of a request for a handover."""

    id: str
    state: RequestState
    successor: str = ""
    hint: str = ""

    def amended(self, request: HandoverRequest) -> HandoverRequest:
        """The request with the answer; one that is over stays as it is."""
        if request.state.over:
            return request
        successor = self.successor or request.successor
        return replace(request, state=self.state, successor=successor, reason=self.reason, hint=self.hint)


@dataclass(frozen=True, slots=True)
class ForgetLease(Action):
    """The grant is over; no write to the lease store."""


@dataclass(frozen=True, slots=True)
class Announce(Action):
    rank: Rank
    usable: bool
    round: int


@dataclass(frozen=True, slots=True)
class CreateStore(Action):
    pass


@dataclass(frozen=True, slots=True)
class FetchStore(Action):
    """Make a store whose pages are still elsewhere, and open `epoch` on it."""

    epoch: int
    store_uuid: str
    at_least: int  # the position that the copy there must have reached


@dataclass(frozen=True, slots=True)
class StartFetcher(Action):
    pass


@dataclass(frozen=True, slots=True)
class StopFetcher(Action):
    kill_at_ns: int


@dataclass(frozen=True, slots=True)
class SetAside(Action):
    """Rename the store file; nothing is deleted."""


@dataclass(frozen=True, slots=True)
class Promote(Action):
    epoch: int


@dataclass(frozen=True, slots=True)
class StartCommand(Action):
    epoch: int
    first: bool  # of this epoch: a takeover, or the very first start


@dataclass(frozen=True, slots=True)
class StopCommand(Action):
    """SIGTERM once, SIGKILL to the whole group from `kill_at_ns` on. Asked again until it is gone."""

    kill_at_ns: int


@dataclass(frozen=True, slots=True)
class StartShipper(Action):
    pass


@dataclass(frozen=True, slots=True)
class StopShipper(Action):
    kill_at_ns: int


@dataclass(frozen=True, slots=True)
class StartReceiver(Action):
    pass


@dataclass(frozen=True, slots=True)
class StopReceiver(Action):
    kill_at_ns: int


@dataclass(frozen=True, slots=True)
class Exit(Action):
    status: int
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what to remember, and when to decide again at the latest."""

    actions: tuple[Action, ...]
    state: State
    wake_ns: int
    poll_ns: int
    note: str = ""  # what is being waited for, in words
