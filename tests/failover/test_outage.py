"""An outage as one host decides about it: step by step, interrupted after every step, with every turn of the power.

`Machine` is a host whose actions take effect at once, one a step; what is under test is `decide` alone.
"""

from dataclasses import replace

import pytest

from sustain.failover.decide import decide
from sustain.failover.lease import LeaseGrant, LeaseRecord, LeaseState, LeaseView
from sustain.failover.types import (
    Action,
    Announce,
    ChildState,
    ChildView,
    CloseEpoch,
    DestinationView,
    Evacuate,
    ForgetLease,
    Observation,
    Plan,
    Policy,
    PowerView,
    Promote,
    ReadyForPowerOff,
    ReleaseLease,
    Renew,
    ResumeLease,
    Role,
    Shed,
    StartCommand,
    StartReceiver,
    StartShipper,
    State,
    StopCommand,
    StopReceiver,
    StopShipper,
    StoreView,
    Thaw,
    TryAcquire,
)
from sustain.powerfail.decide import Power

S = 1_000_000_000
NOW = 1000 * S
POLICY = Policy(name="a", instance="a1", ttl_ns=3 * S, peers=1)
URL = "tcp://b"
AC = PowerView(Power.ON_AC, "", 500.0)
BATTERY = PowerView(Power.ON_BATTERY, "", 300.0)
LOW = PowerView(Power.LOW, "", 0.0)
FORCED = PowerView(Power.FORCED_SHUTDOWN, "", 0.0)
UNKNOWN = PowerView(Power.UNKNOWN, "the source is lost", 500.0)
FLAPPING = PowerView(Power.FLAPPING, "", 500.0)


class Machine:
    """A primary with one destination that holds less than was committed, until `drain` is called."""

    def __init__(self, policy: Policy = POLICY, **changes: object) -> None:
        self.policy = policy
        self.now_ns = NOW
        self.state = State(role=Role.PRIMARY, started_epoch=3)
        self.actions: list[Action] = []
        self.closed = False
        record = LeaseRecord(10, 3, "a", "a1", 1, 3.0, LeaseState.HELD, "u")
        self.seen = replace(
            Observation(
                lease=LeaseView(record, NOW + 9 * S, NOW),
                grant=LeaseGrant(record, NOW, NOW + 3 * S),
                store=StoreView("u", epoch=3, log_epoch=3, end=500),
                command=ChildView(ChildState.RUNNING, None, NOW - 60 * S),
                shipper=ChildView(ChildState.RUNNING, None, NOW - 60 * S),
                destinations=(DestinationView(URL, "streaming", 400, False, 1e6),),
                power=AC,
                shed_done=not policy.sheds,
            ),
            **changes,  # type: ignore[arg-type]
        )

    def step(self) -> Plan:
        """Decide once; carry out what was decided; time goes on a little."""
        plan = decide(self.seen, self.state, self.policy, self.now_ns)
        self.state = plan.state
        for action in plan.actions:
            self.actions.append(action)
            self._act(action)
        self.now_ns += S // 100
        if self.seen.grant is not None and self.seen.grant.deadline_ns - self.now_ns < 2 * S:
            self._record(self.seen.grant.record)
        if self.seen.lease is not None:
            self.seen = replace(self.seen, lease=replace(self.seen.lease, read_ns=self.now_ns))
        return plan

    def run(self, steps: int = 30) -> "Machine":
        for _ in range(steps):
            self.step()
        return self

    def did(self, kind: type[Action]) -> bool:
        return any(isinstance(each, kind) for each in self.actions)

    def power(self, power: PowerView) -> "Machine":
        self.seen = replace(self.seen, power=power)
        return self

    def drain(self) -> "Machine":
        assert self.seen.store is not None
        held = replace(self.seen.destinations[0], acked=self.seen.store.end)
        self.seen = replace(self.seen, destinations=(held,))
        return self

    def _record(self, record: LeaseRecord, *, held: bool = True) -> None:
        view = LeaseView(record, self.now_ns + 9 * S if held else 0, self.now_ns)
        grant = LeaseGrant(record, self.now_ns, self.now_ns + 3 * S) if held else None
        self.seen = replace(self.seen, lease=view, grant=grant)

    def _act(self, action: Action) -> None:  # noqa: PLR0912 - one table
        seen, now_ns = self.seen, self.now_ns
        ended = ChildView(ChildState.EXITED, -15, now_ns, now_ns)
        running = ChildView(ChildState.RUNNING, None, now_ns)
        record = seen.lease.record if seen.lease is not None else LeaseRecord()
        match action:
            case Renew():
                self._record(replace(record, state=action.state or record.state))
            case ResumeLease():
                assert seen.grant is not None
                epoch = max(record.epoch, action.at_least_epoch) + 1
                self._record(replace(record, epoch=epoch, state=LeaseState.HELD))
            case ReleaseLease():
                assert seen.grant is not None
                where = record.position if action.position is None else action.position
                gone = replace(record, state=action.state, position=where, position_epoch=record.epoch)
                self._record(gone, held=False)
            case TryAcquire():
                epoch = max(record.epoch, action.at_least_epoch) + 1
                self._record(replace(record, epoch=epoch, state=LeaseState.CLAIMED))
            case ForgetLease():
                self.seen = replace(seen, grant=None)
            case Promote():
                assert seen.store is not None
                assert not seen.shipper.running, "the shipper ships an epoch that it does not know"
                opened = replace(seen.store, epoch=action.epoch, log_epoch=action.epoch, end=600)
                self.seen = replace(seen, store=opened)
                self.closed = False
            case CloseEpoch():
                assert not seen.command.running
                self.closed = True
            case StartCommand():
                assert seen.power is None or not seen.power.fails
                self.seen = replace(seen, command=running)
            case StopCommand():
                self.seen = replace(seen, command=ended)
            case StartShipper():
                self.seen = replace(seen, shipper=running)
            case StopShipper():
                self.seen = replace(seen, shipper=ended)
            case StartReceiver():
                self.seen = replace(seen, receiver=running)
            case StopReceiver():
                self.seen = replace(seen, receiver=ended)
            case Shed():
                self.seen = replace(seen, shed_done=True)


def test_an_outage_is_saved_step_by_step_and_nothing_before_its_time() -> None:
    host = Machine(replace(POLICY, sheds=True)).power(BATTERY)
    host.run()
    kinds = [type(each) for each in host.actions]
    assert kinds[:3] == [Renew, Shed, StopCommand]
    assert CloseEpoch in kinds
    assert host.state.role is Role.SAVING
    assert not host.did(ReleaseLease), "given back before the destination holds everything"
    assert not host.did(ReadyForPowerOff)
    assert host.seen.grant is not None
    assert host.seen.grant.record.state is LeaseState.SAVING
    host.drain().run()
    released = next(each for each in host.actions if isinstance(each, ReleaseLease))
    assert (released.state, released.position) == (LeaseState.SAVED, 500)
    assert host.state.role is Role.SAVED
    assert host.did(ReadyForPowerOff)
    assert not host.did(TryAcquire), "it takes back what it gave away, on a battery"
    outage = host.state.outage
    assert outage is not None
    assert (outage.outcome, outage.end, outage.committed, outage.held) == ("saved", 500, 500, 400)


@pytest.mark.parametrize("power", [AC, FLAPPING, UNKNOWN, None])
def test_what_is_no_outage_stops_nothing(power: PowerView | None) -> None:
    host = Machine()
    host.seen = replace(host.seen, power=power)
    host.run()
    assert host.state.role is Role.PRIMARY
    assert {type(each) for each in host.actions} <= {Renew, Announce}


@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("drained", [False, True])
def test_power_that_comes_back_after_any_step_gets_the_command_running(
    steps: int, early: bool, drained: bool
) -> None:
    host = Machine(replace(POLICY, sheds=True, signal_early=early)).power(BATTERY)
    if drained:
        host.drain()
    host.run(steps)
    stopped = host.did(StopCommand)
    host.power(AC).run(40)
    assert host.state.role is Role.PRIMARY
    assert host.seen.command.running
    assert host.seen.grant is not None
    assert host.seen.grant.record.state is LeaseState.HELD
    assert host.seen.grant.epoch == (4 if stopped else 3), "a stopped command runs in the next generation"
    assert host.did(ResumeLease) or host.did(TryAcquire) or not stopped
    assert not host.closed
    assert host.state.outage is None or host.state.outage.done_ns


def test_a_forced_shutdown_is_carried_through_though_the_mains_seem_to_be_back() -> None:
    host = Machine().power(FORCED).drain().run()
    assert host.state.role is Role.SAVED
    assert host.did(ReadyForPowerOff)


def test_a_low_battery_leaves_the_command_little_time() -> None:
    host = Machine().power(LOW)
    host.step()
    stop = next(each for each in host.actions if isinstance(each, StopCommand))
    assert stop.kill_at_ns - NOW == 2 * S
    short = Machine().power(replace(BATTERY, usable_s=8.0))
    short.step()
    stop = next(each for each in short.actions if isinstance(each, StopCommand))
    assert stop.kill_at_ns - NOW == 2 * S


def test_a_short_outage_is_sat_out_as_long_as_the_battery_allows() -> None:
    policy = replace(POLICY, outage_hold_ns=60 * S)
    host = Machine(policy).power(BATTERY).run()
    assert not host.did(StopCommand)
    host.now_ns += 61 * S
    host._record(host.seen.lease.record if host.seen.lease else LeaseRecord())
    host.step()
    assert host.did(StopCommand)
    # 100 bytes at 1 MB/s and ten seconds to stop: not with nine.
    hurried = Machine(policy).power(replace(BATTERY, usable_s=9.0))
    hurried.step()
    assert hurried.did(StopCommand)
    unknown = Machine(policy, destinations=(DestinationView(URL, "streaming", 400),)).power(BATTERY)
    unknown.step()
    assert unknown.did(StopCommand), "nobody knows how long the drain takes"


def test_how_long_a_region_takes_is_a_matter_of_its_pages_not_of_its_seals() -> None:
    policy = replace(POLICY, outage_hold_ns=60 * S, freezes=True)
    for behind_bytes, saves in ((1_000_000, False), (3_000_000, True)):
        lagging = DestinationView(URL, "streaming", 499, False, 1e6, behind_bytes, seals=True)
        # Ten seconds to stop, and one or three for the pages.
        host = Machine(policy, destinations=(lagging,)).power(replace(BATTERY, usable_s=12.0))
        host.step()
        assert host.did(Evacuate) is saves


def test_an_early_signal_gives_the_lease_back_and_the_drain_goes_on() -> None:
    host = Machine(replace(POLICY, signal_early=True)).power(BATTERY).run()
    released = next(each for each in host.actions if isinstance(each, ReleaseLease))
    assert (released.state, released.position) == (LeaseState.SAVED, 500)
    assert host.seen.shipper.running
    assert not host.did(ReadyForPowerOff)
    host.drain().run()
    assert not host.seen.shipper.running
    assert host.state.role is Role.SAVED
    assert host.did(ReadyForPowerOff)


def test_every_required_destination_must_hold_the_end() -> None:
    both = (DestinationView(URL, "streaming", 500), DestinationView("tcp://c", "connecting", 100, True))
    host = Machine(destinations=both).power(BATTERY).run()
    assert not host.did(ReleaseLease)
    host.seen = replace(host.seen, destinations=(both[0], replace(both[1], acked=500)))
    host.run()
    assert host.did(ReleaseLease)


def test_a_shipper_that_dies_in_the_drain_is_started_again() -> None:
    host = Machine().power(BATTERY).run()
    host.seen = replace(host.seen, shipper=ChildView(ChildState.EXITED, 1, host.now_ns))
    host.run()
    assert host.seen.shipper.running


def test_the_drain_goes_on_when_the_lease_cannot_be_renewed() -> None:
    host = Machine().power(BATTERY).run()
    grant = host.seen.grant
    assert grant is not None
    late = replace(grant, deadline_ns=host.now_ns + S // 10)
    host.seen = replace(host.seen, grant=late, lease_error="unreachable", lease_error_ns=host.now_ns)
    plan = decide(host.seen, host.state, host.policy, host.now_ns + S)
    assert plan.state.role is Role.FENCED
    assert not any(isinstance(each, StopShipper | ForgetLease) for each in plan.actions)
    host.drain()
    plan = decide(host.seen, plan.state, host.policy, host.now_ns + S)
    assert any(isinstance(each, StopShipper) for each in plan.actions)


STANDBY_STORE = StoreView("u", epoch=3, log_epoch=3, end=500)


def standby(record: LeaseRecord, power: PowerView | None = AC, **policy: object) -> Machine:
    changed = replace(POLICY, name="b", instance="b1", **policy)  # type: ignore[arg-type]
    host = Machine(changed, power=power, grant=None, store=STANDBY_STORE, destinations=())
    host.seen = replace(host.seen, command=ChildView(), shipper=ChildView(), lease=LeaseView(record, 0, NOW))
    host.state = State(role=Role.STANDBY)
    return host


SAVED = LeaseRecord(11, 3, "a", "a1", 9, 3.0, LeaseState.SAVED, "u", 500, 3, "the power fails")


def test_a_standby_takes_what_was_saved_and_says_so_in_the_owner_record() -> None:
    host = standby(SAVED)
    host.step()
    assert host.did(TryAcquire)
    assert host.seen.lease is not None
    assert host.seen.lease.record.state is LeaseState.CLAIMED
    host.run()
    assert host.seen.lease.record.state is LeaseState.HELD
    assert host.seen.command.running


def test_a_standby_whose_own_power_fails_takes_nothing_and_leaves_at_the_end() -> None:
    host = standby(SAVED, BATTERY).run()
    assert not host.did(TryAcquire)
    assert host.seen.receiver.running
    host.power(LOW).run()
    assert not host.seen.receiver.running
    assert host.did(ReadyForPowerOff)
    host.power(AC).run()
    assert host.did(TryAcquire)


def test_what_an_early_signal_promised_is_waited_for_with_a_limit() -> None:
    promised = replace(SAVED, position=700)
    host = standby(promised, arrival_limit_ns=5 * S).run()
    assert not host.did(TryAcquire)
    assert host.seen.receiver.running, "the rest is to arrive"
    host.now_ns += 6 * S
    plan = host.step()
    assert not host.did(TryAcquire)
    assert "did not arrive within 5 s" in plan.note
    assert "700" in plan.note
    assert "500" in plan.note
    accepting = standby(promised, arrival_limit_ns=5 * S, accept_loss=True).run()
    assert not accepting.did(TryAcquire), "not before the limit"
    accepting.now_ns += 6 * S
    accepting.run()
    assert accepting.did(TryAcquire)
    arrived = standby(promised).run(3)
    arrived.seen = replace(arrived.seen, store=replace(STANDBY_STORE, end=700))
    arrived.run()
    assert arrived.did(TryAcquire)


def test_a_stop_that_is_asked_for_in_an_outage_ends_the_supervisor_after_the_save() -> None:
    host = Machine().power(BATTERY).run(3)
    host.seen = replace(host.seen, stop_requested=True)
    host.run()
    assert not host.did(ReleaseLease)
    host.drain().run()
    released = next(each for each in host.actions if isinstance(each, ReleaseLease))
    assert released.state is LeaseState.SAVED
    assert type(host.actions[-1]).__name__ == "Exit"


# regions


class RegionMachine(Machine):
    """A primary of a region: `Evacuate` freezes, `drain` seals."""

    def __init__(self, **policy: object) -> None:
        super().__init__(replace(POLICY, freezes=True, **policy))  # type: ignore[arg-type]
        self.seen = replace(
            self.seen,
            store=StoreView("u", epoch=3, log_epoch=3, end=8, prefix=False),
            destinations=(DestinationView(URL, "streaming", 7, False, 1e6),),
        )
        self.held_still = False

    def _act(self, action: Action) -> None:
        seen = self.seen
        if isinstance(action, Evacuate):
            assert seen.store is not None
            self.held_still = seen.command.running
            self.seen = replace(seen, store=replace(seen.store, frozen=True))
            return
        if isinstance(action, Thaw | StopShipper | StopCommand):
            self.held_still = False  # a pre-copier that ends lets the program go
            if seen.store is not None:
                self.seen = replace(seen, store=replace(seen.store, frozen=False))
        if isinstance(action, Promote):
            assert seen.store is not None
            opened = replace(seen.store, epoch=action.epoch, log_epoch=action.epoch, end=9, frozen=False)
            self.seen = replace(seen, store=opened)
            return
        super()._act(action)


@pytest.mark.parametrize("early", [False, True])
def test_a_region_is_frozen_and_sealed_before_its_program_is_ended(early: bool) -> None:
    host = RegionMachine(signal_early=early).power(BATTERY).run()
    kinds = [type(each) for each in host.actions]
    assert Evacuate in kinds
    if not early:
        assert StopCommand not in kinds, "the program is ended before its region is sealed"
        assert ReleaseLease not in kinds
    host.drain().run()
    released = next(each for each in host.actions if isinstance(each, ReleaseLease))
    assert (released.state, released.position) == (LeaseState.SAVED, 8)
    kinds = [type(each) for each in host.actions]
    assert kinds.index(StopCommand) < kinds.index(ReleaseLease), "two hosts run the program"
    assert host.did(ReadyForPowerOff)


@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize("drained", [False, True])
def test_a_frozen_program_goes_on_in_the_next_generation_only(steps: int, drained: bool) -> None:
    host = RegionMachine().power(BATTERY)
    if drained:
        host.drain()
    host.run(steps)
    froze, stopped = host.did(Evacuate), host.did(StopCommand)
    host.power(AC).run(40)
    assert host.state.role is Role.PRIMARY
    assert host.seen.command.running
    assert not host.held_still, "the program is still frozen"
    assert host.seen.grant is not None
    assert host.seen.grant.record.state is LeaseState.HELD
    assert host.seen.grant.epoch == (4 if froze else 3), "what was sealed would pass for the newest state"
    assert host.did(StartCommand) is stopped
    assert host.seen.shipper.running


def test_a_region_is_not_taken_from_an_owner_that_crashed() -> None:
    for state in (LeaseState.HELD, LeaseState.SAVING):
        crashed = replace(SAVED, state=state, epoch=4)
        host = standby(crashed)
        host.seen = replace(host.seen, store=replace(STANDBY_STORE, prefix=False))
        assert not host.run().did(TryAcquire)
        note = decide(host.seen, host.state, host.policy, host.now_ns).note
        assert "without having saved" in note
        accepting = standby(crashed, accept_loss=True)
        accepting.seen = host.seen
        assert accepting.run().did(TryAcquire)
    own = standby(replace(SAVED, state=LeaseState.HELD))
    own.seen = replace(own.seen, store=replace(STANDBY_STORE, prefix=False))
    assert own.run().did(TryAcquire), "its own region, as the crash left it"
    claimed = standby(replace(SAVED, state=LeaseState.CLAIMED, epoch=4))
    claimed.seen = own.seen = replace(
        claimed.seen, store=replace(STANDBY_STORE, prefix=False), command=ChildView()
    )
    assert claimed.run().did(TryAcquire), "whoever claimed it before has not run it"
