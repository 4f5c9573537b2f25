"""Single decisions, and what holds for every decision whatever is seen (property-based)."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.failover.decide import decide
from sustain.failover.lease import (
    Candidate,
    CandidateView,
    HandoverRequest,
    LeaseGrant,
    LeaseRecord,
    LeaseState,
    LeaseView,
    Rank,
    RequestState,
)
from sustain.failover.types import (
    Action,
    Announce,
    AnswerRequest,
    ChildState,
    ChildView,
    CreateStore,
    DestinationView,
    Exit,
    ForgetLease,
    Leaving,
    Moving,
    Observation,
    Plan,
    Policy,
    Promote,
    ReleaseLease,
    Renew,
    Role,
    StartCommand,
    StartReceiver,
    StartShipper,
    State,
    StopCommand,
    StopReceiver,
    StoreView,
    TryAcquire,
)

S = 1_000_000_000
NOW = 1000 * S
POLICY = Policy(name="b", instance="b1", ttl_ns=3 * S, peers=1)
STORE = StoreView("u", epoch=2, log_epoch=2, end=500)
RUNNING = ChildView(ChildState.RUNNING, None, NOW - 60 * S)


def held_by_a(takeable_at_ns: int = NOW - 1) -> LeaseView:
    record = LeaseRecord(9, 2, "a", "a1", 7, 3.0, LeaseState.HELD, "u")
    return LeaseView(record, takeable_at_ns, NOW)


def grant(epoch: int = 3, left_ns: int = 3 * S, uuid: str = "u") -> LeaseGrant:
    record = LeaseRecord(10, epoch, "b", "b1", 1, 3.0, LeaseState.HELD, uuid)
    return LeaseGrant(record, NOW + left_ns - 3 * S, NOW + left_ns)


def kinds(plan: Plan) -> list[type[Action]]:
    return [type(each) for each in plan.actions]


def primary(**changes: object) -> Observation:
    seen = Observation(
        lease=held_by_a(NOW + S),
        grant=grant(),
        store=replace(STORE, epoch=3, log_epoch=3),
        command=RUNNING,
        shipper=RUNNING,
        destinations=(DestinationView("tcp://a", "streaming", 500),),
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


PRIMARY = State(role=Role.PRIMARY, started_epoch=3)


def test_a_standby_receives_and_wakes_exactly_when_the_lease_is_free() -> None:
    plan = decide(Observation(lease=held_by_a(NOW + S // 2), store=STORE), State(), POLICY, NOW)
    assert StartReceiver in kinds(plan)
    assert TryAcquire not in kinds(plan)
    assert plan.wake_ns == NOW + S // 2


def test_the_lease_is_taken_and_the_receiver_ended_in_the_same_step() -> None:
    plan = decide(Observation(lease=held_by_a(), store=STORE, receiver=RUNNING), State(), POLICY, NOW)
    assert kinds(plan) == [StopReceiver, TryAcquire]


@pytest.mark.parametrize(
    ("store", "policy", "lease"),
    [
        (None, POLICY, held_by_a()),
        (replace(STORE, problem="a snapshot is being received"), POLICY, held_by_a()),
        (replace(STORE, end=None), POLICY, held_by_a()),
        (STORE, POLICY, LeaseView(LeaseRecord(), 0, NOW)),  # the record has gone
        (None, replace(POLICY, create=True), held_by_a()),  # the workload has a store already
        (
            STORE,
            POLICY,
            LeaseView(
                LeaseRecord(9, 2, "a", "a1", 1, 3.0, LeaseState.RELEASED, "u", 501, 2), 0, NOW
            ),  # left with more
        ),
    ],
)
def test_who_may_not_take_over_says_why_and_goes_on_receiving(
    store: StoreView | None, policy: Policy, lease: LeaseView
) -> None:
    plan = decide(Observation(lease=lease, store=store), State(), policy, NOW)
    assert TryAcquire not in kinds(plan)
    assert StartReceiver in kinds(plan)
    assert plan.note


def test_the_first_host_creates_the_store() -> None:
    policy = replace(POLICY, create=True)
    free = Observation(lease=LeaseView(LeaseRecord(), NOW + 9 * S, NOW))
    assert TryAcquire in kinds(decide(free, State(), policy, NOW))
    seen = Observation(lease=held_by_a(NOW + S), grant=grant(2, uuid=""))
    assert CreateStore in kinds(decide(seen, State(), policy, NOW))
    made = replace(seen, store=StoreView("u", 1, 1, 0))
    assert Promote in kinds(decide(made, State(), policy, NOW))
    opened = replace(seen, store=StoreView("u", 2, 2, 1))
    plan = decide(opened, State(), policy, NOW)
    assert StartCommand not in kinds(plan), "the store is not in the lease yet"
    assert any(isinstance(each, Renew) and each.store_uuid == "u" for each in plan.actions)
    noted = replace(opened, grant=grant(2))
    assert StartCommand in kinds(decide(noted, State(), policy, NOW))


def test_the_command_starts_before_the_shipper() -> None:
    seen = primary(command=ChildView(), shipper=ChildView())
    plan = decide(seen, State(), POLICY, NOW)
    assert kinds(plan) == [StartCommand, StartShipper]


@pytest.mark.parametrize(
    "seen",
    [
        primary(grant_lost="b2 has it"),
        primary(grant=grant(left_ns=S // 2)),
        primary(grant=grant(left_ns=-5 * S)),
        primary(store=replace(STORE, log_epoch=3, fence_epoch=4)),
    ],
)
def test_a_primary_that_loses_its_lease_ends_its_command_first(seen: Observation) -> None:
    plan = decide(seen, PRIMARY, POLICY, NOW)
    assert plan.state.role is Role.FENCED
    (stop,) = [each for each in plan.actions if isinstance(each, StopCommand)]
    assert seen.grant is not None
    assert stop.kill_at_ns <= max(NOW, seen.grant.deadline_ns)
    assert not {ReleaseLease, ForgetLease} & set(kinds(plan))
    # The lease comes back: too late, the command has been told.
    back = decide(primary(), plan.state, POLICY, NOW)
    assert back.state.role is Role.FENCED
    ended = replace(seen, command=ChildView(ChildState.EXITED, -15, NOW, NOW), shipper=ChildView())
    assert {ReleaseLease, ForgetLease} & set(kinds(decide(ended, plan.state, POLICY, NOW)))


def crash(count: int, restarts: int, streaming: bool = True) -> Plan:
    state, plan = PRIMARY, None
    for at in range(count):
        seen = primary(
            command=ChildView(ChildState.EXITED, 1, NOW + at),
            destinations=(DestinationView("tcp://a", "streaming" if streaming else "connecting", 500),),
        )
        plan = decide(seen, state, replace(POLICY, restarts=restarts), NOW + at)
        state = plan.state
    assert plan is not None
    return plan


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_another_host_tries_after_so_many_restarts(restarts: int) -> None:
    if restarts:
        assert crash(restarts, restarts).state.leaving is None
    leaving = crash(restarts + 1, restarts).state.leaving
    assert leaving is not None
    assert (leaving.outcome, leaving.exits) == (LeaseState.RELEASED, False)
    assert crash(restarts + 1, restarts, streaming=False).state.leaving is None


def test_a_command_that_was_told_to_stop_has_not_finished_its_work() -> None:
    """It was being fenced, exits with 0 as it should, and the lease is held after all."""
    told = ChildView(ChildState.EXITED, 0, NOW, NOW - 1)
    plan = decide(primary(command=told), PRIMARY, POLICY, NOW)
    assert plan.state.leaving is None
    assert not plan.state.crashes
    assert StartCommand in kinds(plan)
    by_itself = decide(primary(command=replace(told, asked_ns=0)), PRIMARY, POLICY, NOW)
    assert by_itself.state.leaving is not None
    assert by_itself.state.leaving.outcome is LeaseState.DONE


def test_crashes_long_ago_do_not_count() -> None:
    state = replace(PRIMARY, crashes=(NOW - 100 * S, NOW - 90 * S, NOW - 80 * S))
    plan = decide(primary(command=ChildView(ChildState.EXITED, 1, NOW)), state, POLICY, NOW)
    assert plan.state.crashes == (NOW,)
    assert StartCommand in kinds(plan)


def test_restarts_come_later_each_time() -> None:
    waits = []
    for failures in range(1, 12):
        state = replace(PRIMARY, crashes=tuple(range(NOW - failures, NOW)))
        seen = primary(command=ChildView(ChildState.EXITED, 1, NOW), destinations=())
        waits.append(decide(seen, state, POLICY, NOW).state.restart_at_ns - NOW)
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] <= POLICY.backoff_limit_ns


def test_a_handover_takes_its_steps_in_order_and_can_be_cut_off_after_each() -> None:
    """After each step a new decision on the same facts asks for the same: nothing depends on having been told."""
    state = replace(PRIMARY, leaving=Leaving("asked", LeaseState.RELEASED, True, NOW))
    seen = primary()
    behind = (DestinationView("tcp://a", "streaming", 499),)
    for facts, expected in (
        (seen, StopCommand),
        (replace(seen, command=ChildView(ChildState.EXITED, 0, NOW)), None),
    ):
        once = decide(facts, state, POLICY, NOW)
        again = decide(facts, once.state, POLICY, NOW)
        if expected:
            assert expected in kinds(once)
            assert kinds(once) == kinds(again)
    down = replace(seen, command=ChildView(ChildState.EXITED, 0, NOW), destinations=behind)
    waiting = decide(down, state, POLICY, NOW)
    assert waiting.actions == ()
    late = decide(down, waiting.state, POLICY, NOW + POLICY.drain_timeout_ns - S // 10)
    assert ReleaseLease not in kinds(late)
    drained = replace(down, destinations=(DestinationView("tcp://a", "streaming", 500),), shipper=ChildView())
    (release,) = [
        each for each in decide(drained, waiting.state, POLICY, NOW).actions if isinstance(each, ReleaseLease)
    ]
    assert (release.state, release.position) == (LeaseState.RELEASED, 500)
    gone = Observation(lease=held_by_a(NOW + S), store=STORE)
    assert kinds(decide(gone, waiting.state, POLICY, NOW)) == [Exit]


def test_an_archive_that_holds_everything_is_no_host_that_could_take_over() -> None:
    archive = DestinationView("file:///backup", "streaming", 500)
    host = DestinationView("tcp://a", "connecting", 400)
    down = primary(
        command=ChildView(ChildState.EXITED, 0, NOW),
        destinations=(host, archive),
        grant=grant(left_ns=60 * S),
    )
    gives_way = replace(PRIMARY, leaving=Leaving("it fails here", LeaseState.RELEASED, False, NOW))
    waiting = decide(down, gives_way, POLICY, NOW)
    assert ReleaseLease not in kinds(waiting)
    late = decide(down, waiting.state, POLICY, NOW + POLICY.drain_timeout_ns)
    assert ReleaseLease not in kinds(late)
    assert late.state.leaving is None, "no other host could do better"
    # One that ends anyway has waited for a host, and says that nothing is lost.
    ends = replace(PRIMARY, leaving=Leaving("asked", LeaseState.RELEASED, True, NOW))
    waiting = decide(down, ends, POLICY, NOW)
    assert ReleaseLease not in kinds(waiting)
    late = decide(replace(down, shipper=ChildView()), waiting.state, POLICY, NOW + POLICY.drain_timeout_ns)
    assert ReleaseLease in kinds(late)
    assert late.state.drained
    # Where there are only archives, and for a region, which is restored from wherever it lies.
    only = replace(down, destinations=(archive,), shipper=ChildView())
    assert ReleaseLease in kinds(decide(only, ends, POLICY, NOW))
    region = replace(down, shipper=ChildView(), store=replace(down.store or STORE, frozen=True))
    assert ReleaseLease in kinds(decide(region, ends, replace(POLICY, freezes=True), NOW))


def election(rank: Rank, round_: int, age_ns: int = 0, usable: bool = True) -> Observation:
    other = Candidate("c", "c1", rank, usable, round_)
    return Observation(lease=held_by_a(), store=STORE, candidates=(CandidateView(other, NOW - age_ns),))


def test_a_standby_waits_for_one_that_holds_more() -> None:
    plan = decide(election(Rank(2, 501), 9), State(), POLICY, NOW)
    assert kinds(plan)[0] is Announce
    assert TryAcquire not in kinds(plan)
    # ... but not for ever: the other may have failed just now.
    assert TryAcquire not in kinds(decide(election(Rank(2, 501), 9), plan.state, POLICY, NOW + S // 10))
    long_ago = replace(plan.state, election_from_ns=NOW - 3 * POLICY.election_ns)
    assert TryAcquire in kinds(decide(election(Rank(2, 501), 9), long_ago, POLICY, NOW))
    # With two that hold more, the other of them goes first.
    third = Candidate("d", "d1", Rank(2, 502), True, 9)
    both = replace(
        election(Rank(2, 501), 9),
        candidates=(*election(Rank(2, 501), 9).candidates, CandidateView(third, NOW)),
    )
    assert TryAcquire not in kinds(decide(both, long_ago, POLICY, NOW))


@pytest.mark.parametrize(
    "seen",
    [
        election(Rank(2, 499), 9),  # holds less
        election(Rank(1, 9000), 9),  # more, but of an older epoch
        election(Rank(2, 501), 9, age_ns=4 * S),  # gone
        election(Rank(2, 501), 9, usable=False),
    ],
)
def test_a_standby_does_not_wait_for_others(seen: Observation) -> None:
    assert TryAcquire in kinds(decide(seen, State(), POLICY, NOW))


def test_a_primary_says_where_it_is_now_and_then_and_never_when_that_could_delay_a_renewal() -> None:
    plan = decide(primary(), PRIMARY, POLICY, NOW)
    (said,) = [each for each in plan.actions if isinstance(each, Announce)]
    assert (said.rank, said.usable, said.round) == (Rank(3, 500), False, 0)
    soon = decide(primary(grant=grant(left_ns=3 * S)), plan.state, POLICY, NOW + POLICY.beat_ns // 2)
    assert Announce not in kinds(soon)
    for seen in (
        primary(grant=grant(left_ns=S)),
        primary(lease_busy=True),
        primary(lease_error="it does not answer", lease_error_ns=NOW),
        primary(command=ChildView()),
    ):
        assert Announce not in kinds(decide(seen, PRIMARY, POLICY, NOW))


def test_a_host_without_a_copy_is_heard_of_and_waited_for_by_nobody() -> None:
    waiting = Observation(lease=held_by_a(NOW + S))
    (said,) = [each for each in decide(waiting, State(), POLICY, NOW).actions if isinstance(each, Announce)]
    assert (said.rank, said.usable) == (Rank(0, 0), False)


def test_a_standby_waits_for_what_was_said_after_the_lease_ran_out() -> None:
    plan = decide(election(Rank(2, 1), 8), State(), POLICY, NOW)
    assert TryAcquire not in kinds(plan)
    assert plan.wake_ns <= NOW + POLICY.election_ns


def test_after_a_pause_the_lease_is_read_again_before_others_are_held_for_dead() -> None:
    seen = election(Rank(2, 501), 0, age_ns=5 * S)
    assert seen.lease is not None
    old = replace(seen, lease=replace(seen.lease, read_ns=NOW - 5 * S))  # read just after the other was heard
    plan = decide(old, State(), POLICY, NOW)
    assert TryAcquire not in kinds(plan)
    assert plan.wake_ns < NOW + S // 10
    assert TryAcquire in kinds(decide(seen, plan.state, POLICY, NOW))


# whatever is seen

children = st.builds(
    ChildView,
    st.sampled_from(ChildState),
    st.sampled_from([None, 0, 1, -9]),
    st.integers(NOW - 100 * S, NOW),
    st.sampled_from([0, NOW - S]),
)
records = st.builds(
    LeaseRecord,
    st.integers(0, 12),
    st.integers(0, 5),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["a1", "b1"]),
    st.integers(0, 3),
    st.just(3.0),
    st.sampled_from(LeaseState),
    st.sampled_from(["", "u", "v"]),
    st.sampled_from([None, 400, 600]),
    st.integers(0, 4),
    st.just(""),
    st.sampled_from(["", "", "b", "c"]),
)
requests = st.builds(
    HandoverRequest,
    st.sampled_from(["r", "s"]),
    st.integers(1, 5),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["", "b", "c"]),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from(RequestState),
    st.sampled_from(["", "b", "c"]),
)
moments = st.integers(NOW - 10 * S, NOW + 10 * S)
stores = st.builds(
    StoreView,
    st.sampled_from(["u", "v"]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([None, 0, 500]),
    st.integers(0, 6),
    st.sampled_from(["", "a snapshot is being received"]),
    st.booleans(),
)
observations = st.builds(
    Observation,
    lease=st.none()
    | st.builds(
        LeaseView,
        records,
        st.none() | moments,
        st.just(NOW),
        moments.map(lambda at: min(at, NOW)),
        st.just(0),
    ),
    request=st.none() | requests,
    lease_error=st.sampled_from(["", "unreachable"]),
    lease_error_ns=moments.map(lambda at: min(at, NOW)),
    lease_busy=st.booleans(),
    grant=st.none() | st.builds(LeaseGrant, records, moments.map(lambda at: min(at, NOW)), moments),
    grant_lost=st.sampled_from(["", "another's"]),
    candidates=st.lists(
        st.builds(
            CandidateView,
            st.builds(
                Candidate,
                st.sampled_from(["b", "c", "d"]),
                st.just("x"),
                st.builds(Rank, st.integers(0, 4), st.integers(0, 900)),
                st.booleans(),
                st.integers(0, 12),
            ),
            moments.map(lambda at: min(at, NOW)),
        ),
        max_size=3,
    ).map(tuple),
    store=st.none() | stores,
    preparing=st.booleans(),
    prepare_error=st.sampled_from(["", "cannot"]),
    command=children,
    receiver=children,
    shipper=children,
    destinations=st.lists(
        st.builds(
            DestinationView,
            st.just("tcp://x"),
            st.sampled_from(["connecting", "streaming", "snapshot", "refused"]),
            st.sampled_from([None, 0, 500]),
        ),
        max_size=2,
    ).map(tuple),
    stop_requested=st.booleans(),
)
states = st.builds(
    State,
    role=st.sampled_from(Role),
    started_epoch=st.integers(0, 5),
    crashes=st.lists(moments.map(lambda at: min(at, NOW)), max_size=4).map(
        lambda found: tuple(sorted(found))
    ),
    seen_exit_ns=st.integers(NOW - 100 * S, NOW),
    restart_at_ns=moments,
    leaving=st.none()
    | st.builds(
        Leaving,
        st.just("why"),
        st.sampled_from([LeaseState.RELEASED, LeaseState.DONE]),
        st.booleans(),
        moments.map(lambda at: min(at, NOW)),
        st.sampled_from([0, NOW - S]),
        to=st.sampled_from(["", "c"]),
    ),
    moving=st.none()
    | st.builds(
        Moving,
        st.sampled_from(["r", "s"]),
        moments.map(lambda at: min(at, NOW)),
        st.sampled_from(["", "c"]),
        st.sampled_from([0, NOW - S]),
        st.sampled_from(["", "why"]),
        st.sampled_from(["", "hint"]),
        st.sampled_from([0, NOW - S]),
    ),
    yield_until_ns=moments,
    fence_why=st.sampled_from(["", "why"]),
    released=st.booleans(),
)
policies = st.builds(
    Policy,
    name=st.just("b"),
    instance=st.just("b1"),
    ttl_ns=st.just(3 * S),
    create=st.booleans(),
    new_lease=st.booleans(),
    accept_loss=st.booleans(),
    rerun=st.booleans(),
    peers=st.integers(0, 2),
    listens=st.booleans(),
    restarts=st.integers(0, 3),
    on_success=st.sampled_from(["stop", "restart"]),
)


@settings(max_examples=1500)
@given(observations, states, policies)
def test_what_holds_for_every_decision(seen: Observation, state: State, policy: Policy) -> None:
    plan = decide(seen, state, policy, NOW)
    asked = kinds(plan)
    assert plan == decide(seen, state, policy, NOW), "not a function of what it was given"
    assert NOW <= plan.wake_ns <= NOW + S
    assert plan.poll_ns > 0
    assert all(action.reason for action in plan.actions)
    if StartCommand in asked or Promote in asked or CreateStore in asked:
        assert seen.grant is not None
        assert seen.grant.deadline_ns > NOW
        assert not seen.grant_lost
        assert not seen.receiver.running
        assert not seen.preparing
    if StartCommand in asked:
        assert seen.grant is not None
        assert seen.store is not None
        assert seen.store.log_epoch == seen.grant.epoch
        assert seen.store.fence_epoch <= seen.grant.epoch
        assert not seen.command.running
    if TryAcquire in asked:
        assert seen.grant is None
        assert not seen.lease_busy
        assert seen.lease is not None
        assert seen.store is None or not seen.store.problem
        if seen.lease.record.state is LeaseState.HELD:
            assert seen.lease.takeable_at_ns is not None
            assert seen.lease.takeable_at_ns <= NOW
    if ReleaseLease in asked or ForgetLease in asked or Exit in asked:
        assert not seen.command.running, "the lease goes while the command runs"
    _handovers(seen, state, policy, plan)
    if Exit in asked:
        assert seen.grant is None
        assert not seen.receiver.running
        assert not seen.shipper.running
    if StartReceiver in asked:
        assert seen.grant is None
        assert not seen.command.running
    assert not (Renew in asked and plan.state.role is Role.FENCED)


def _handovers(seen: Observation, state: State, policy: Policy, plan: Plan) -> None:
    """Whatever was asked for, and whatever became of it."""
    lease = seen.lease
    for action in plan.actions:
        if isinstance(action, TryAcquire) and lease is not None and lease.record.state.left:
            mine = lease.record.successor in ("", policy.name)
            assert mine or lease.since_ns + policy.reserve_ns <= NOW, "it is reserved for another"
        if isinstance(action, AnswerRequest):
            assert seen.grant is not None
            assert seen.request is not None
            assert (seen.request.epoch, seen.request.holder) == (seen.grant.epoch, policy.name)
            assert not seen.request.state.over
        if isinstance(action, ReleaseLease) and action.successor:
            assert seen.grant is not None
            assert action.position is not None, "given to a host of which nobody knows what it must hold"
            acked = [each.acked or 0 for each in seen.destinations]
            ranks = [
                each.candidate.rank for each in seen.candidates if each.candidate.name == action.successor
            ]
            told = any((rank.log_epoch, rank.end) >= (seen.grant.epoch, action.position) for rank in ranks)
            assert told or (acked and min(acked) >= action.position), "to one that lacks something"
    begins = plan.state.leaving is not None and bool(plan.state.leaving.to)
    if begins and (state.leaving is None or not state.leaving.to):
        assert seen.request is not None
        assert seen.request.state is RequestState.ACCEPTED, "before anybody could know"
        assert seen.grant is not None
        assert seen.request.epoch == seen.grant.epoch
