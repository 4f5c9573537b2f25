"""A handover that an operator asked for: what the primary makes of the request. Pure, part of `decide`.

While the command runs: choose a successor and say so beside the lease; wait until what that lacks is little, and until
it has acknowledged where the store was when it was chosen, so that one that stands still is found out in time. Then
tell the command to stop (what it commits until it ends is accepted, and drained with the rest), wait until the
successor holds all, and give the lease back *to it*, with the position where the store ends. For as long as
`Policy.reserve_ns` nobody else takes it (`contend`); then anybody may, this host among them.

Each step is safe to be the last. Until the command is told to stop nothing has changed, and a request that cannot be
met within its limit is refused, with the reason. After that, a successor that does not get all in time has the handover
called off: the lease is ours still, and the command is started again. Whoever dies, the request is void with the epoch
that it names.

A successor is known by its name, a destination by its URL, and nothing says which belongs together. So the successor
holds all when every host that is shipped to has acknowledged all, or when it says so itself (its note, which it renews
several times a second while it is waited for).
"""

from dataclasses import replace

from sustain.failover.draft import Draft
from sustain.failover.lease.record import Candidate, LeaseGrant, LeaseRecord, LeaseState
from sustain.failover.lease.request import HandoverRequest, RequestState
from sustain.failover.types import (
    AnswerRequest,
    ChildState,
    DestinationView,
    Evacuate,
    Leaving,
    Moving,
    ReleaseLease,
    Role,
)
from sustain.units import format_size, to_ns

_ANSWER_AGAIN_NS = to_ns(0.3)
# Its program changes the same pages again and again: nobody ever has all of them.
_LITTLE_OF_A_REGION_BYTES = 64 << 20
_LITTLE_OF_A_REGION_S = 1.0  # or what the link carries in that time
_ARCHIVES = ("file:", "s3:")


def consider(draft: Draft, grant: LeaseGrant) -> None:
    """Answer a request that is for this epoch of this host; begin to leave when all is ready for it."""
    policy, request = draft.policy, draft.seen.request
    if request is None or request.state.over or (request.epoch, request.holder) != (grant.epoch, policy.name):
        draft.remember(moving=None)
        return
    moving, leaving = draft.state.moving, draft.state.leaving
    if moving is None or moving.id != request.id:
        moving = Moving(request.id, draft.now_ns)
        draft.remember(moving=moving)
    draft.poll_fast()
    if leaving is not None and leaving.to:
        return
    if leaving is not None and not moving.over:
        _give_up(draft, f"{policy.name} gives the workload up already: {leaving.why}")
    elif not moving.over:
        _weigh(draft, grant, request, moving)
    moving = draft.state.moving
    if moving is not None and moving.over:
        state = RequestState.REFUSED if request.state is RequestState.ASKED else RequestState.CALLED_OFF
        _answer(draft, moving.over, state, hint=moving.hint)


def hand_over_to(draft: Draft, grant: LeaseGrant) -> None:
    """Carry a `state.leaving` that names a successor on by what is possible now."""
    seen, policy, leaving = draft.seen, draft.policy, draft.state.leaving
    assert leaving is not None
    draft.become(Role.STOPPING)
    command = seen.command
    unasked = command.failed and command.changed_ns != draft.state.seen_exit_ns
    if unasked and not leaving.drain_from_ns and not leaving.exits:
        _call_off(draft, "the command ended by itself")  # perhaps it has finished its work
        return
    if not draft.stop_command(leaving.why, leaving.began_ns + policy.stop_timeout_ns) or seen.preparing:
        return
    if leaving.drain_from_ns == 0:
        leaving = replace(leaving, drain_from_ns=draft.now_ns)
        draft.remember(leaving=leaving)
    if policy.freezes:
        draft.do(Evacuate(leaving.why))
    if not _holds(draft, grant, leaving.to, position(draft, grant)):
        _wait_for_the_rest(draft, leaving)
        return
    draft.remember(drained=True)
    draft.stop_shipper(leaving.why)  # it has nothing more to do, and nobody waits for its end
    release(draft, grant, leaving)


def release(draft: Draft, grant: LeaseGrant, leaving: Leaving) -> None:
    """Give the lease back, as soon as it can be written."""
    seen, policy = draft.seen, draft.policy
    if seen.lease_busy:
        return
    if seen.lease_error and not draft.due(seen.lease_error_ns + policy.retry_ns):
        return
    if not leaving.exits:
        draft.remember(yield_until_ns=max(draft.state.yield_until_ns, draft.now_ns + policy.ttl_ns))
    draft.do(ReleaseLease(leaving.why, leaving.outcome, position(draft, grant), leaving.to))


def position(draft: Draft, grant: LeaseGrant) -> int | None:
    """Where this epoch ends; None when it never began here."""
    store = draft.seen.store
    return store.end if store is not None and store.log_epoch == grant.epoch else None


def expected(draft: Draft, record: LeaseRecord) -> bool:
    """Whether the lease is about to be handed over to this standby."""
    request = draft.seen.request
    return (
        request is not None
        and request.state is RequestState.ACCEPTED
        and request.epoch == record.epoch
        and request.successor == draft.policy.name
        and record.state.owned
    )


def named(draft: Draft, record: LeaseRecord) -> bool:
    """Whether the lease was given back to this standby."""
    return record.state.left and record.successor == draft.policy.name


def reserved_until_ns(draft: Draft, record: LeaseRecord) -> int:
    """Until when the lease is left to the one that it was handed over to."""
    view = draft.seen.lease
    if view is None or not record.state.left or record.successor in ("", draft.policy.name):
        return 0
    return view.since_ns + draft.policy.reserve_ns


def _weigh(draft: Draft, grant: LeaseGrant, request: HandoverRequest, moving: Moving) -> None:
    """Whether it can be done, and now."""
    in_time = not draft.due(moving.from_ns + to_ns(request.limit_s))
    chosen = request.successor or request.to
    successor, why = _choose(draft, grant, chosen)
    if not why and moving.seen_ns and not _holds(draft, grant, successor, moving.mark):
        why = f"{successor} acknowledges nothing any more"
    if why and not (successor and in_time):
        since = f", for {request.limit_s:g} s" if successor else ""
        _give_up(draft, f"{why}{since}", _HINT if successor else "see `sustain status`")
    elif why:
        draft.note(f"a handover was asked for: {successor} is waited for")
        draft.wake_at(draft.now_ns + draft.policy.busy_poll_ns)  # acknowledgements wake nobody
    elif request.state is RequestState.ASKED:
        _answer(draft, f"the workload goes to {successor}", RequestState.ACCEPTED, successor)
    elif moving.seen_ns == 0:
        mark = 0 if draft.policy.freezes else position(draft, grant) or 0
        draft.remember(moving=replace(moving, successor=successor, seen_ns=draft.now_ns, mark=mark))
        draft.wake_at(draft.now_ns)
    elif draft.due(moving.seen_ns + 2 * draft.policy.poll_ns):  # by now the successor knows, and looks often
        why = f"handed over to {successor} as asked"
        draft.remember(leaving=Leaving(why, LeaseState.RELEASED, False, draft.now_ns, to=successor))


def _choose(draft: Draft, grant: LeaseGrant, wanted: str) -> tuple[str, str]:
    """(successor, why not yet). Without a successor it is not worth waiting."""
    seen, policy = draft.seen, draft.policy
    if wanted == policy.name:
        return "", f"{wanted} is the primary already"
    if not policy.peers:
        return "", f"{policy.name} ships to nobody"
    alive = [each.candidate for each in seen.candidates if _alive(draft, each.candidate, each.changed_ns)]
    if not alive:
        return "", "no standby has been heard of lately"
    names = ", ".join(sorted(each.name for each in alive))
    fitting = [each for each in alive if wanted in ("", each.name)]
    if not fitting:
        return "", f"{wanted} is no standby that has been heard of lately; there is {names}"
    able = [
        each for each in fitting if policy.freezes or (each.usable and each.rank.log_epoch == grant.epoch)
    ]
    if not able:
        return fitting[0].name, f"{wanted or names} cannot take over now"
    best = max(able, key=lambda each: (each.rank, each.name))
    if position(draft, grant) is None or draft.state.started_epoch != grant.epoch:
        return best.name, f"the command does not run on {policy.name} yet"
    behind, little = _behind(draft, grant, best), _little(draft)
    if behind is None:
        return best.name, f"it is not known how much {best.name} lacks"
    if behind > little:
        return best.name, f"{best.name} lacks {format_size(behind)}, and {format_size(little)} would do"
    return best.name, ""


_HINT = "is it started, of this lease, and can this host ship to it? `sustain status` here tells the lag"


def _alive(draft: Draft, candidate: Candidate, changed_ns: int) -> bool:
    view = draft.seen.lease
    if view is None or candidate.name == draft.policy.name:
        return False
    return view.read_ns - changed_ns <= draft.policy.candidate_life_ns


def hosts(draft: Draft) -> list[DestinationView]:
    """Destinations that are hosts: they can take over, an archive cannot."""
    return [each for each in draft.seen.destinations if not each.url.startswith(_ARCHIVES)]


def _behind(draft: Draft, grant: LeaseGrant, successor: Candidate) -> int | None:
    """Bytes that it does not hold, by what is known; None: unknown."""
    end = position(draft, grant)
    known = []
    lacks = [each.lacks_bytes(end) if each.state == "streaming" else None for each in hosts(draft)]
    sure = [each for each in lacks if each is not None]
    if lacks and len(sure) == len(lacks):
        known.append(max(sure))
    if end is not None and not draft.policy.freezes and successor.rank.log_epoch == grant.epoch:
        streams = any(each.state == "streaming" for each in hosts(draft))
        known += [max(0, end - successor.rank.end)] if streams else []
    return min(known, default=None)


def _little(draft: Draft) -> int:
    if not draft.policy.freezes:
        return draft.policy.little_bytes
    bandwidth = max((each.bandwidth or 0.0 for each in hosts(draft)), default=0.0)
    return max(_LITTLE_OF_A_REGION_BYTES, int(bandwidth * _LITTLE_OF_A_REGION_S))


def _holds(draft: Draft, grant: LeaseGrant, successor: str, end: int | None) -> bool:
    if end is None:
        return False
    if end == 0:
        return True
    takers = hosts(draft)
    if takers and all(each.acked is not None and each.acked >= end for each in takers):
        return True
    ranks = [each.candidate.rank for each in draft.seen.candidates if each.candidate.name == successor]
    return not draft.policy.freezes and any(
        (rank.log_epoch, rank.end) >= (grant.epoch, end) for rank in ranks
    )


def _wait_for_the_rest(draft: Draft, leaving: Leaving) -> None:
    draft.poll_fast()
    if not draft.due(leaving.drain_from_ns + draft.policy.drain_timeout_ns):
        draft.note(f"{leaving.to} catches up")
        draft.wake_at(draft.now_ns + draft.policy.busy_poll_ns)  # acknowledgements wake nobody
    elif leaving.exits:
        draft.remember(leaving=replace(leaving, to=""))  # this host ends anyway: as ever
        draft.wake_at(draft.now_ns)
    else:
        limit = f"within {draft.policy.drain_timeout_ns / 1e9:g} s"
        _call_off(draft, f"{leaving.to} did not get all of it {limit}; the command is started again here")


def _call_off(draft: Draft, why: str) -> None:
    """Stay the primary. A command that was told to stop starts again, and that it ended then tells nothing."""
    command = draft.seen.command
    if command.state is ChildState.EXITED and command.asked:
        draft.remember(seen_exit_ns=command.changed_ns, restart_at_ns=draft.now_ns)
    draft.remember(leaving=None)
    _give_up(draft, why, _HINT)
    draft.wake_at(draft.now_ns)


def _give_up(draft: Draft, why: str, hint: str = "see `sustain status`") -> None:
    if draft.state.moving is not None:
        draft.remember(moving=replace(draft.state.moving, over=why, hint=hint))


def _answer(draft: Draft, text: str, state: RequestState, successor: str = "", hint: str = "") -> None:
    """Once, and again when it is not seen beside the lease."""
    moving, seen = draft.state.moving, draft.seen
    assert moving is not None
    if seen.lease_error and not draft.due(seen.lease_error_ns + draft.policy.retry_ns):
        return
    if moving.told_ns == 0 or draft.due(moving.told_ns + _ANSWER_AGAIN_NS):
        draft.remember(moving=replace(moving, told_ns=draft.now_ns))
        draft.do(AnswerRequest(text, moving.id, state, successor, hint))
