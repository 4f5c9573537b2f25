"""A handover that was asked for: single decisions of the primary, of the successor, and of the others."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.failover.decide import decide
from sustain.failover.lease import (
    Candidate,
    CandidateView,
    HandoverRequest,
    LeaseRecord,
    LeaseState,
    LeaseView,
    Rank,
    RequestState,
)
from sustain.failover.types import (
    Announce,
    AnswerRequest,
    ChildState,
    ChildView,
    DestinationView,
    Observation,
    Plan,
    ReleaseLease,
    Role,
    StartCommand,
    State,
    StopCommand,
    TryAcquire,
)
from tests.failover.test_decide import NOW, POLICY, PRIMARY, RUNNING, STORE, S, grant, kinds, primary

MIB = 1 << 20
ASKED = HandoverRequest("r", 3, "b", "c", 10.0)  # b is the primary, in epoch 3
ACCEPTED = replace(ASKED, state=RequestState.ACCEPTED, successor="c")
GONE = ChildView(ChildState.EXITED, 0, NOW, NOW - S)


def standby(name: str = "c", end: int = 500, usable: bool = True, age_ns: int = 0) -> CandidateView:
    return CandidateView(Candidate(name, f"{name}1", Rank(3, end), usable), NOW - age_ns)


def asked(request: HandoverRequest = ASKED, **changes: object) -> Observation:
    """A primary whose standby c holds everything, and was asked to hand over to it."""
    about: dict[str, object] = {"request": request, "candidates": (standby(),)}
    return primary(**about | changes)


def run(seen: Observation, state: State = PRIMARY, now_ns: int = NOW) -> Plan:
    return decide(seen, state, POLICY, now_ns)


def answers(plan: Plan) -> list[AnswerRequest]:
    return [each for each in plan.actions if isinstance(each, AnswerRequest)]


def leaving() -> State:
    """The command was just told to stop."""
    plan = run(asked(ACCEPTED))
    plan = run(asked(ACCEPTED), plan.state, NOW + S // 2)
    assert plan.state.leaving is not None
    assert plan.state.leaving.to == "c"
    return plan.state


def test_a_handover_takes_its_steps_in_order_and_asks_again_until_each_is_done() -> None:
    plan = run(asked())
    (answer,) = answers(plan)
    assert (answer.state, answer.successor) == (RequestState.ACCEPTED, "c")
    assert StopCommand not in kinds(plan), "before anybody could read who comes next"
    # The answer is beside the lease: the successor has a moment to see it, then the command is told to stop.
    plan = run(asked(ACCEPTED), plan.state)
    assert StopCommand not in kinds(plan)
    assert plan.wake_ns <= NOW + 2 * POLICY.poll_ns
    plan = run(asked(ACCEPTED), plan.state, NOW + POLICY.poll_ns)
    assert StopCommand not in kinds(plan)
    for at_ns in (NOW + S // 2, NOW + S // 2 + 1):
        plan = run(asked(ACCEPTED), plan.state, at_ns)
        assert StopCommand in kinds(plan)
        assert ReleaseLease not in kinds(plan)
    # It has ended, and what it committed last is on its way.
    behind = (DestinationView("tcp://c", "streaming", 499),)
    rest = asked(ACCEPTED, command=GONE, destinations=behind, candidates=(standby(end=499),))
    plan = run(rest, plan.state, NOW + S)
    assert ReleaseLease not in kinds(plan)
    assert plan.wake_ns <= NOW + S + POLICY.busy_poll_ns
    for at_ns in (NOW + S, NOW + S + 1):
        plan = run(asked(ACCEPTED, command=GONE), plan.state, at_ns)
        (release,) = [each for each in plan.actions if isinstance(each, ReleaseLease)]
        assert (release.state, release.position, release.successor) == (LeaseState.RELEASED, 500, "c")
    busy = run(asked(ACCEPTED, command=GONE, lease_busy=True), plan.state, NOW + S)
    assert ReleaseLease not in kinds(busy)


def test_the_successor_is_the_one_that_holds_most() -> None:
    seen = asked(replace(ASKED, to=""), candidates=(standby("c", 400), standby("d", 450), standby("e", 440)))
    assert answers(run(seen))[0].successor == "d"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (asked(candidates=()), "no standby has been heard of"),
        (asked(candidates=(standby(age_ns=4 * S),)), "no standby has been heard of"),
        (asked(candidates=(standby("d"), standby("e"))), "c is no standby that has been heard of lately"),
        (asked(replace(ASKED, to="b")), "b is the primary already"),
    ],
)
def test_what_can_never_be_is_refused_at_once_and_nothing_changes(seen: Observation, said: str) -> None:
    plan = run(seen)
    (answer,) = answers(plan)
    assert answer.state is RequestState.REFUSED
    assert said in answer.reason
    assert answer.hint
    assert (plan.state.role, plan.state.leaving) == (Role.PRIMARY, None)
    assert StopCommand not in kinds(plan)
    # Said once, and again only when that is not seen beside the lease for a while.
    assert not answers(run(seen, plan.state, NOW + S // 10))
    assert answers(run(seen, plan.state, NOW + S))
    over = replace(seen, request=replace(ASKED, state=RequestState.REFUSED))
    after = run(over, plan.state, NOW + S)
    assert not answers(after)
    assert after.state.moving is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": (standby(usable=False),)}, "c cannot take over now"),
        ({"destinations": (DestinationView("tcp://c", "connecting", 500),)}, "not known how much c lacks"),
        ({"destinations": ()}, "not known how much c lacks"),
        (
            {
                "destinations": (DestinationView("tcp://c", "streaming", 500),),
                "store": replace(STORE, epoch=3, log_epoch=3, end=500 + 2 * MIB),
            },
            "c lacks 2 MiB",
        ),
    ],
)
def test_a_standby_that_is_not_ready_is_waited_for_and_then_refused(
    changes: dict[str, object], said: str
) -> None:
    plan = run(asked(**changes))
    assert not answers(plan)
    assert StopCommand not in kinds(plan)
    assert "c is waited for" in plan.note
    late = run(asked(**changes, grant=grant(left_ns=20 * S)), plan.state, NOW + 10 * S)
    # (What it said last is ten seconds old by then, but was read just now.)
    (answer,) = answers(late)
    assert answer.state is RequestState.REFUSED
    assert said in answer.reason
    assert StopCommand not in kinds(late)


def test_a_standby_that_stands_still_is_found_out_before_the_command_is_stopped() -> None:
    """Its connection is there, and what it lacks is little, but it has acknowledged nothing since it was chosen."""
    store = replace(STORE, epoch=3, log_epoch=3, end=600)
    plan = run(asked(ACCEPTED, store=store))
    still = asked(ACCEPTED, store=replace(store, end=700), grant=grant(left_ns=20 * S))
    plan = run(still, plan.state, NOW + S)
    assert StopCommand not in kinds(plan)
    goes_on = replace(still, destinations=(DestinationView("tcp://c", "streaming", 600),))
    assert StopCommand in kinds(run(goes_on, plan.state, NOW + S))
    (answer,) = answers(run(still, plan.state, NOW + 10 * S))
    assert (answer.state, answer.reason) == (
        RequestState.CALLED_OFF,
        "c acknowledges nothing any more, for 10 s",
    )


def test_a_request_of_another_epoch_or_for_another_host_is_nothing() -> None:
    for request in (replace(ASKED, epoch=2), replace(ASKED, holder="c"), replace(ACCEPTED, epoch=2)):
        plan = run(asked(request), now_ns=NOW)
        assert not answers(plan)
        assert plan.state.moving is None
    withdrawn = replace(ASKED, state=RequestState.WITHDRAWN)
    assert not answers(run(asked(withdrawn), run(asked()).state))


def test_of_several_destinations_all_must_hold_it_or_the_successor_says_so_itself() -> None:
    state = leaving()
    two = (DestinationView("tcp://c", "streaming", 500), DestinationView("tcp://d", "streaming", 300))
    archive = (DestinationView("tcp://c", "streaming", 500), DestinationView("s3://bucket", "streaming", 0))
    down = asked(ACCEPTED, command=GONE, candidates=(standby(end=300),))
    assert ReleaseLease not in kinds(run(replace(down, destinations=two), state, NOW + S))
    assert ReleaseLease in kinds(run(replace(down, destinations=archive), state, NOW + S))
    says_so = replace(down, destinations=two, candidates=(standby(end=500),))
    assert ReleaseLease in kinds(run(says_so, state, NOW + S))
    older = replace(
        down,
        destinations=two,
        candidates=(CandidateView(Candidate("c", "c1", Rank(2, 900), True), NOW),),
    )
    assert ReleaseLease not in kinds(run(older, state, NOW + S))


def test_a_successor_that_does_not_get_the_rest_has_it_called_off_and_the_command_starts_again() -> None:
    behind = (DestinationView("tcp://c", "connecting", 400),)
    down = asked(
        ACCEPTED,
        command=GONE,
        destinations=behind,
        candidates=(standby(end=400),),
        grant=grant(left_ns=60 * S),
    )
    plan = run(down, leaving(), NOW + S)
    assert not {StartCommand, ReleaseLease} & set(kinds(plan))
    plan = run(down, plan.state, NOW + S + POLICY.drain_timeout_ns)
    assert plan.state.leaving is None
    plan = run(down, plan.state, NOW + S + POLICY.drain_timeout_ns)
    (answer,) = answers(plan)
    assert answer.state is RequestState.CALLED_OFF
    assert "c did not get all of it" in answer.reason
    # Status 0 of a command that was told to stop does not mean that the work is finished.
    (start,) = [each for each in plan.actions if isinstance(each, StartCommand)]
    assert (start.epoch, start.first) == (3, False)
    assert plan.state.crashes == ()
    assert plan.state.role is Role.PRIMARY


@pytest.mark.parametrize("status", [0, 1])
def test_a_command_that_ends_by_itself_meanwhile_is_not_handed_over(status: int) -> None:
    ended = ChildView(ChildState.EXITED, status, NOW + S // 2)
    plan = run(asked(ACCEPTED, command=ended), leaving(), NOW + S // 2)
    plan = run(asked(ACCEPTED, command=ended), plan.state, NOW + S // 2)
    if status == 0:
        assert plan.state.leaving is not None
        assert plan.state.leaving.outcome is LeaseState.DONE
    else:
        assert StartCommand in kinds(plan)
        assert len(plan.state.crashes) == 1


def test_a_supervisor_that_is_told_to_end_still_hands_over_to_the_successor_and_ends() -> None:
    plan = run(asked(ACCEPTED, command=GONE, stop_requested=True), leaving(), NOW + S)
    (release,) = [each for each in plan.actions if isinstance(each, ReleaseLease)]
    assert release.successor == "c"
    assert plan.state.leaving is not None
    assert plan.state.leaving.exits
    # One whose successor gets nothing ends all the same.
    behind = (DestinationView("tcp://c", "connecting", 400),)
    stuck = asked(ACCEPTED, command=GONE, destinations=behind, candidates=(), stop_requested=True)
    stuck = replace(stuck, grant=grant(left_ns=60 * S), shipper=GONE)
    plan = run(stuck, leaving(), NOW + S)
    plan = run(stuck, plan.state, NOW + 2 * S + POLICY.drain_timeout_ns)
    plan = run(stuck, plan.state, NOW + 2 * S + POLICY.drain_timeout_ns)
    (release,) = [each for each in plan.actions if isinstance(each, ReleaseLease)]
    assert release.successor == ""


# whatever is seen on the way

destinations = st.lists(
    st.builds(
        DestinationView,
        st.sampled_from(["tcp://c", "tcp://d", "s3://bucket"]),
        st.sampled_from(["streaming", "connecting", "snapshot"]),
        st.sampled_from([None, 0, 499, 500]),
    ),
    max_size=3,
).map(tuple)
standbys = st.lists(
    st.builds(
        standby,
        st.sampled_from("cd"),
        st.sampled_from([400, 500]),
        st.booleans(),
        st.sampled_from([0, 4 * S]),
    ),
    max_size=2,
).map(tuple)
sights = st.builds(
    asked,
    st.sampled_from(
        [ASKED, ACCEPTED, replace(ACCEPTED, epoch=2), replace(ACCEPTED, state=RequestState.CALLED_OFF)]
    ),
    destinations=destinations,
    candidates=standbys,
    command=st.sampled_from([RUNNING, GONE, ChildView(ChildState.EXITED, 0, NOW)]),
    lease_busy=st.booleans(),
    stop_requested=st.booleans(),
    grant=st.sampled_from([grant(left_ns=60 * S), grant(left_ns=S // 2)]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.just(PRIMARY) | st.builds(leaving),
    st.lists(st.tuples(sights, st.sampled_from([0, S // 10, S, 20 * S])), max_size=6),
)
def test_whatever_is_seen_on_the_way(state: State, steps: list[tuple[Observation, int]]) -> None:
    """The lease is given to no host that lacks anything, nor while the command runs."""
    now_ns = NOW + S
    for sight, pause_ns in steps:
        now_ns += pause_ns
        assert sight.grant is not None
        deadline_ns = now_ns + sight.grant.deadline_ns - NOW
        seen = replace(sight, grant=replace(sight.grant, renewed_ns=now_ns, deadline_ns=deadline_ns))
        plan = run(seen, state, now_ns)
        before, state = state, plan.state
        if state.leaving is not None and state.leaving.to and before.leaving is None:
            assert seen.request == ACCEPTED
            assert any(each.candidate.name == "c" and each.candidate.usable for each in seen.candidates)
        for release in (each for each in plan.actions if isinstance(each, ReleaseLease)):
            assert not seen.command.running
            told = any(
                each.candidate.rank.end == 500 for each in seen.candidates if each.candidate.name == "c"
            )
            hosts = [each.acked for each in seen.destinations if each.url.startswith("tcp:")]
            assert not release.successor or told or (hosts and set(hosts) == {500})
            assert (release.successor != "") <= (release.position == 500)
        assert not (StartCommand in kinds(plan) and state.leaving is not None)


# on the other hosts

GIVEN = LeaseRecord(12, 2, "a", "a1", 9, 3.0, LeaseState.RELEASED, "u", 500, 2, "as asked", "b")


def given(to: str, since_ns: int = NOW, end: int = 500) -> Observation:
    view = LeaseView(replace(GIVEN, successor=to), 0, NOW, since_ns, since_ns - S // 50)
    return Observation(lease=view, store=replace(STORE, end=end), receiver=RUNNING)


def test_the_successor_takes_it_at_once_whoever_else_there_is() -> None:
    others = (CandidateView(Candidate("c", "c1", Rank(2, 500), True, 0), NOW),)
    plan = run(replace(given("b"), candidates=others), State())
    assert TryAcquire in kinds(plan)
    assert TryAcquire not in kinds(run(replace(given("b"), candidates=others, lease_busy=True), State()))
    # Also when it had stood back for others a moment ago, but not with less than was left.
    assert TryAcquire in kinds(run(given("b"), State(yield_until_ns=NOW + S)))
    assert TryAcquire not in kinds(run(given("b", end=499), State()))


def test_the_others_leave_it_alone_for_a_while_and_then_take_it() -> None:
    plan = run(given("c"), State())
    assert TryAcquire not in kinds(plan)
    assert plan.wake_ns <= NOW + S
    assert TryAcquire not in kinds(run(given("c", NOW - POLICY.reserve_ns + 1), State()))
    assert TryAcquire in kinds(run(given("c", NOW - POLICY.reserve_ns), State()))


def test_who_is_expected_to_take_it_looks_often_and_says_often_where_it_is() -> None:
    held = LeaseView(LeaseRecord(9, 2, "a", "a1", 7, 3.0, LeaseState.HELD, "u"), NOW + 3 * S, NOW, NOW - S, 0)
    accepted = HandoverRequest("r", 2, "a", "b", 10.0, RequestState.ACCEPTED, "b")
    seen = Observation(lease=held, store=STORE, receiver=RUNNING, request=accepted)
    said = State(announced_ns=NOW - 2 * POLICY.poll_ns)
    plan = run(seen, said)
    assert plan.poll_ns == POLICY.busy_poll_ns
    assert Announce in kinds(plan)
    for other in (
        replace(accepted, successor="c"),
        replace(accepted, epoch=1),
        replace(accepted, state=RequestState.CALLED_OFF),
    ):
        plan = run(replace(seen, request=other), said)
        assert plan.poll_ns == POLICY.poll_ns
        assert Announce not in kinds(plan)
