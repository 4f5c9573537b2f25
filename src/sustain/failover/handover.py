"""The two ends of being primary: handing over in good order, and self-fencing. Pure, part of `decide`.

Handing over: end the command; let the destinations catch up, for a bounded time; end the shipper; give the
lease back with the position where the store ended, so that a successor knows whether it has everything.
Each step is safe to be the last, and the lease goes on being renewed between them. A handover to a host that an
operator named goes the same way with more conditions: `moving`.

Self-fence: the lease could not be renewed, or a newer epoch exists. The command is told to stop before the
deadline and killed shortly before it; only then is the lease given up. Once begun it is not taken back: a
program that was told to stop has stopped.
"""

from dataclasses import replace

from sustain.failover import outage
from sustain.failover.draft import Draft
from sustain.failover.lease.record import LeaseGrant, LeaseState
from sustain.failover.moving import hosts, position, release
from sustain.failover.types import Evacuate, ForgetLease, Leaving, ReleaseLease, Role


def hand_over(draft: Draft, grant: LeaseGrant) -> None:
    """Carry `state.leaving` on by what is possible now."""
    seen, policy = draft.seen, draft.policy
    leaving = draft.state.leaving
    assert leaving is not None
    draft.become(Role.STOPPING)
    if not draft.stop_command(leaving.why, leaving.began_ns + policy.stop_timeout_ns):
        return
    if seen.preparing:
        return
    if leaving.drain_from_ns == 0:
        leaving = replace(leaving, drain_from_ns=draft.now_ns)
        draft.remember(leaving=leaving)
    opened = seen.store is not None and seen.store.log_epoch == grant.epoch
    if opened and policy.freezes:
        draft.do(
            Evacuate(leaving.why)
        )  # nothing is left to be frozen; what the program changed last is saved
    if opened and not _drained(draft, leaving):
        draft.note("destinations catch up")
        return
    if draft.state.leaving is None:
        return  # called off
    if draft.stop_shipper(leaving.why) and draft.stop_receiver(leaving.why):
        release(draft, grant, leaving)


def _drained(draft: Draft, leaving: Leaving) -> bool:
    """Whether to go on to giving the lease back."""
    seen, policy = draft.seen, draft.policy
    end = seen.store.end if seen.store is not None else None
    # An archive of a store takes nothing over: where there are hosts, one of them is to have everything. A region is
    # restored from wherever it lies by whoever wins the lease.
    takers = seen.destinations if policy.freezes else hosts(draft) or seen.destinations
    holds = [each for each in takers if _has(each.acked, end)]
    behind = [
        each
        for each in seen.destinations
        if each.state in ("streaming", "snapshot") and not _has(each.acked, end)
    ]
    if not policy.peers or (holds and not behind):
        draft.remember(drained=True)
        return True
    if seen.shipper.running and not draft.due(leaving.drain_from_ns + policy.drain_timeout_ns):
        draft.wake_at(draft.now_ns + policy.busy_poll_ns)  # acknowledgements wake nobody
        return False
    if (
        not seen.shipper.running
        and not seen.shipper.asked
        and not draft.due(leaving.drain_from_ns + policy.ttl_ns)
    ):
        return False
    if not leaving.exits and not holds and draft.state.yield_until_ns <= draft.now_ns:
        # Only to let another host try; but nobody has everything. Trying again here loses nothing.
        draft.remember(leaving=None)
        return False
    draft.remember(drained=any(_has(each.acked, end) for each in seen.destinations))
    return True


def _has(acked: int | None, end: int | None) -> bool:
    return acked is not None and end is not None and acked >= end


def fence(draft: Draft, grant: LeaseGrant, why: str) -> None:
    """End the command before anybody else may run it."""
    seen, state, policy = draft.seen, draft.state, draft.policy
    fenced_ns = state.fenced_ns or draft.now_ns
    draft.become(Role.FENCED, fence_why=why, fenced_ns=fenced_ns)
    lost = bool(seen.grant_lost) or "exists, this host has" in why
    latest_ns = fenced_ns + policy.stop_timeout_ns
    kill_at_ns = draft.now_ns if lost else min(grant.deadline_ns - policy.kill_ns, latest_ns)
    down = draft.stop_command(why, kill_at_ns)
    if down and not lost and outage.drain_goes_on(draft, grant):
        return
    # The shipper goes on until the command is down: what is committed and not yet shipped may still arrive.
    if not down or not draft.stop_shipper(why) or seen.preparing:
        return
    over = lost or draft.now_ns >= grant.deadline_ns
    if over or state.released:
        if seen.lease_busy and not draft.due(grant.deadline_ns):
            return
        draft.remember(released=False, fence_why="", fenced_ns=0)
        draft.do(ForgetLease(why))
    elif not seen.lease_busy:
        draft.remember(released=True)
        draft.do(ReleaseLease(why, LeaseState.RELEASED, position(draft, grant)))
