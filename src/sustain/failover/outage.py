"""When the power of this host fails: bring away what others do not hold, say so, be ready for the end. Pure, part
of `decide`.

The steps of a primary, each safe to be the last: say SAVING in the owner record; shed what the operator wants
shed; end the command within its share of the battery; close the epoch, so that the store's end is final; let the
destinations catch up until one (or every required one) holds that end; give the lease back as SAVED, with the
end; tell the power source that this host needs it no more. With an *early* signal the lease is given back as soon
as the end is final, and whoever takes it waits for what it lacks.

The power that returns goes back to running only by winning a swap of the owner record: SAVING is our own lease
still and becomes one of the next epoch; SAVED is free, and taken as any standby takes it. A command that was not
told to stop yet just goes on.

A lease that cannot be renewed in an outage (its store may be without power, too) does not end the drain: the
command is down, so nobody is harmed by bytes that still arrive, and destinations refuse them as soon as somebody
else has taken over.
"""

from dataclasses import replace

from sustain.failover.draft import Draft
from sustain.failover.keep import keep_shipper
from sustain.failover.lease.record import LeaseGrant, LeaseState
from sustain.failover.types import (
    CloseEpoch,
    DestinationView,
    Evacuate,
    Leaving,
    Outage,
    PowerView,
    ReadyForPowerOff,
    ReleaseLease,
    Renew,
    ResumeLease,
    Role,
    Shed,
)
from sustain.units import to_ns

_LEAST_STOP_S = 0.5  # for a command to end, however little the battery has
_ENDING_STOP_S = 2.0  # when the battery is low
_STOP_SHARE = 0.25  # of the usable battery time


def notice(draft: Draft) -> None:
    """Remember since when the power has been failing, and what became of the last outage."""
    state, power = draft.state, draft.seen.power
    if power is not None and power.fails:
        if state.outage_from_ns == 0:
            draft.remember(outage_from_ns=draft.now_ns)
    elif state.outage_from_ns:
        draft.remember(outage_from_ns=0)


def leaves_now(draft: Draft) -> str:
    """Why a primary has to leave now, "" when it has not."""
    power, policy, state = draft.seen.power, draft.policy, draft.state
    if power is None or not power.fails or (state.leaving is not None and state.leaving.outage):
        return ""
    why = f"the power fails ({power.power}: {power.reason})"
    if power.ending:
        return why
    lasted_ns = draft.now_ns - state.outage_from_ns
    if lasted_ns >= policy.outage_hold_ns:
        return why
    if power.usable_s is None:
        return f"{why}, and it is not known for how long: {power.usable_reason}"
    needed_s = _needed_s(draft)
    if needed_s is None:
        return f"{why}, and it is not known how long a drain takes"
    if power.usable_s <= needed_s:
        return f"{why}: {power.usable_s:.0f} s can be used, {needed_s:.1f} s are needed"
    draft.wake_at(state.outage_from_ns + policy.outage_hold_ns)
    draft.note(f"{why}; it is sat out for at most {policy.outage_hold_ns / 1e9:g} s")
    return ""


def begin(draft: Draft, grant: LeaseGrant, why: str) -> None:
    """Leave because the power fails. A handover that has begun goes on as one of these."""
    seen, policy, before = draft.seen, draft.policy, draft.state.leaving
    assert seen.power is not None
    opened = _opened(draft, grant)
    outcome = LeaseState.SAVED if opened else LeaseState.RELEASED
    kill_ns = draft.now_ns + to_ns(_stop_share_s(seen.power, policy.outage_stop_ns / 1e9))
    leaving = Leaving(why, outcome, False, draft.now_ns, outage=True, kill_ns=kill_ns)
    if before is not None:
        leaving = replace(leaving, exits=before.exits, drain_from_ns=before.drain_from_ns)
        if before.outcome is LeaseState.DONE:
            leaving = replace(leaving, outcome=before.outcome)
    store = seen.store
    outage = Outage(
        why,
        grant.epoch,
        draft.now_ns,
        seen.power.usable_s,
        None if store is None or not opened else store.end,
        max((each.acked for each in seen.destinations if each.acked is not None), default=None),
    )
    draft.remember(leaving=leaving, outage=outage, early=False)


def save(draft: Draft, grant: LeaseGrant) -> None:
    """Carry an outage's leaving on by what is possible now."""
    seen, policy, leaving = draft.seen, draft.policy, draft.state.leaving
    assert leaving is not None
    assert seen.power is not None
    if not seen.power.fails:
        _go_back(draft, grant, leaving)
        return
    draft.become(Role.SAVING)
    if grant.record.state is not LeaseState.SAVING and _lease_free(draft):
        draft.do(Renew("say in the owner record that the state is being saved", state=LeaseState.SAVING))
    if not seen.shed_done:
        draft.do(Shed("the power fails"))
        draft.note("what is to be shed ends")
        return
    if policy.freezes and _opened(draft, grant) and not _evacuated(draft, leaving):
        return
    kill_ns = (
        draft.now_ns if policy.freezes else leaving.kill_ns
    )  # a frozen program has nothing to put in order
    if not draft.stop_command(leaving.why, kill_ns) or seen.preparing:
        return
    leaving = draft.state.leaving or leaving
    if not _closed(draft, grant, leaving):
        return
    if _opened(draft, grant):
        if policy.signal_early and leaving.outcome is LeaseState.SAVED:
            keep_shipper(draft)
            draft.remember(early=True)
            _release(draft, grant)
            return
        if not _away(draft):
            keep_shipper(draft)
            return
    _note_drained(draft)
    if draft.stop_shipper(leaving.why) and draft.stop_receiver(leaving.why):
        _release(draft, grant)


def _evacuated(draft: Draft, leaving: Leaving) -> bool:
    """Whether the region is saved and sealed where it must be (or, with an early signal, frozen), so that its
    program may be ended."""
    outage = draft.state.outage
    if draft.state.early or (outage is not None and outage.drained_ns):
        return True
    keep_shipper(draft)
    draft.do(Evacuate(leaving.why))
    draft.remember(evacuating=True)
    store = draft.seen.store
    if store is None or not store.frozen:
        draft.wake_at(draft.now_ns + draft.policy.busy_poll_ns)
        draft.note("the program is frozen")
        return False
    _note(draft, end=store.end)
    if leaving.drain_from_ns == 0:
        draft.remember(leaving=replace(leaving, drain_from_ns=draft.now_ns))
    if draft.policy.signal_early and leaving.outcome is LeaseState.SAVED:
        return True
    if not _away(draft):
        return False
    _note_drained(draft)
    return True


def drain_goes_on(draft: Draft, grant: LeaseGrant) -> bool:
    """Of a host that could not keep its lease in an outage, and whose command is down."""
    leaving = draft.state.leaving
    if leaving is None or not leaving.outage or not _opened(draft, grant):
        return False
    if draft.seen.power is None or not draft.seen.power.fails:
        return False
    if not _closed(draft, grant, leaving):
        return True
    if draft.policy.freezes:
        draft.do(Evacuate(leaving.why))
    if _away(draft):
        _note_drained(draft)
        return False
    keep_shipper(draft)
    return True


def without_lease(draft: Draft) -> bool:
    """What an outage asks of a host that has no lease; True when nothing else is to be done."""
    seen, state = draft.seen, draft.state
    if seen.power is None or not seen.power.fails:
        _finish(draft)
        draft.remember(early=False, evacuating=False)
        return False
    if state.early:
        draft.become(Role.SAVING)
        if not _away(draft):
            keep_shipper(draft)
            if draft.policy.freezes:
                draft.do(Evacuate("the power fails"))
            return True
        _note_drained(draft)
        draft.remember(early=False)
    left = state.leaving is not None and state.leaving.outage
    if not left and not seen.power.ending and state.role is not Role.SAVED:
        return False  # a standby on battery goes on receiving, but takes nothing over
    down = draft.stop_command("the power fails", draft.now_ns)
    down = draft.stop_shipper("the power fails") and down
    down = draft.stop_receiver("the power fails") and down
    if down and not seen.preparing:
        _finish(draft)
        draft.become(Role.SAVED)
        draft.do(ReadyForPowerOff("nothing is left to be done on the battery"))
        draft.note(f"the power may be cut ({seen.power.power})")
    return True


def _go_back(draft: Draft, grant: LeaseGrant, leaving: Leaving) -> None:
    """The power is back, and the lease is ours still."""
    seen, outage = draft.seen, draft.state.outage
    assert outage is not None
    if leaving.exits or leaving.outcome is LeaseState.DONE:
        # It was to be left anyway, only not on a battery.
        outcome = LeaseState.DONE if leaving.outcome is LeaseState.DONE else LeaseState.RELEASED
        draft.remember(leaving=replace(leaving, outage=False, outcome=outcome, began_ns=draft.now_ns))
        _note(draft, outcome="resumed", done_ns=draft.now_ns)
        return
    frozen = draft.policy.freezes and seen.command.running and not seen.command.asked
    untouched = not seen.command.asked and outage.down_ns == 0 and not (frozen and draft.state.evacuating)
    if grant.epoch != outage.epoch or (untouched and grant.record.state is not LeaseState.SAVING):
        draft.remember(leaving=None, evacuating=False)
        _note(draft, outcome="resumed", done_ns=draft.now_ns)
        return
    draft.note("the power is back")
    if untouched:
        if _lease_free(draft):
            draft.do(Renew("the power is back, the command was not stopped", state=LeaseState.HELD))
        return
    if not frozen:  # a frozen program goes on in the next epoch, but not before the swap is won
        if not draft.stop_command("it was told to stop", leaving.kill_ns) or seen.preparing:
            return
        if not draft.stop_shipper("the power is back: a new epoch begins"):
            return
    if not _lease_free(draft):
        return
    epoch = grant.epoch if seen.store is None else max(grant.epoch, seen.store.epoch)
    draft.do(ResumeLease("the power is back", epoch))


def _closed(draft: Draft, grant: LeaseGrant, leaving: Leaving) -> bool:
    """Whether the store's end is final: the command is down, and was seen so after the epoch was closed."""
    if leaving.drain_from_ns and draft.state.outage is not None and draft.state.outage.down_ns:
        if draft.seen.store is not None and _opened(draft, grant):
            _note(draft, end=draft.seen.store.end)
        return True
    draft.remember(leaving=replace(leaving, drain_from_ns=leaving.drain_from_ns or draft.now_ns))
    _note(draft, down_ns=draft.now_ns)
    if _opened(draft, grant):
        draft.do(CloseEpoch("its end must be final", grant.epoch))
    draft.wake_at(draft.now_ns)
    return False


def _away(draft: Draft) -> bool:
    """Whether the store's end is held where it must be, and the others have had their time."""
    seen, policy, state = draft.seen, draft.policy, draft.state
    end = seen.store.end if seen.store is not None else None
    if not policy.peers:
        return True
    if not proven(seen.destinations, end):
        draft.wake_at(draft.now_ns + policy.busy_poll_ns)  # acknowledgements wake nobody
        draft.note(
            "bringing away what others lack"
        )  # how much, says the report: a note is said at each change
        return False
    behind = [each for each in seen.destinations if each.state in ("streaming", "snapshot")]
    behind = [each for each in behind if not _holds(each, end)]
    ending = seen.power is not None and seen.power.ending
    from_ns = 0 if state.leaving is None else state.leaving.drain_from_ns
    if behind and not ending and not draft.due(from_ns + policy.drain_timeout_ns):
        draft.wake_at(draft.now_ns + policy.busy_poll_ns)
        draft.note("the state is away; further destinations catch up")
        return False
    return True


def proven(destinations: tuple[DestinationView, ...], end: int | None) -> bool:
    """Whether `end` is held by every required destination; by any, when none is required."""
    required = [each for each in destinations if each.required]
    if required:
        return all(_holds(each, end) for each in required)
    return any(_holds(each, end) for each in destinations)


def _holds(destination: DestinationView, end: int | None) -> bool:
    return destination.acked is not None and end is not None and destination.acked >= end


def _needed_s(draft: Draft) -> float | None:
    """Seconds to stop the command and to drain to the first destination that is enough; None: unknown."""
    seen, policy = draft.seen, draft.policy
    stop_s = policy.outage_stop_ns / 1e9
    if not policy.peers:
        return stop_s
    end = seen.store.end if seen.store is not None else None
    times = {each.url: _drain_s(each, end) for each in seen.destinations}
    required = [times[each.url] for each in seen.destinations if each.required]
    known = [each for each in (required or list(times.values())) if each is not None]
    if not known or (required and len(known) < len(required)):
        return None
    return stop_s + (max(known) if required else min(known))


def _drain_s(destination: DestinationView, end: int | None) -> float | None:
    behind = destination.lacks_bytes(end)
    if behind is None:
        return None
    if behind == 0:
        return 0.0
    return behind / destination.bandwidth if destination.bandwidth else None


def _stop_share_s(power: PowerView, limit_s: float) -> float:
    if power.ending:
        return min(limit_s, _ENDING_STOP_S)
    if power.usable_s is None:
        return limit_s
    return min(limit_s, max(_LEAST_STOP_S, power.usable_s * _STOP_SHARE))


def _opened(draft: Draft, grant: LeaseGrant) -> bool:
    return draft.seen.store is not None and draft.seen.store.log_epoch == grant.epoch


def _lease_free(draft: Draft) -> bool:
    """Whether the lease can be changed now; after an error not before the next try is due."""
    seen = draft.seen
    if seen.lease_busy:
        return False
    return not seen.lease_error or draft.due(seen.lease_error_ns + draft.policy.retry_ns)


def _release(draft: Draft, grant: LeaseGrant) -> None:
    leaving = draft.state.leaving
    assert leaving is not None
    if not _lease_free(draft):
        return
    store = draft.seen.store
    position = store.end if store is not None and _opened(draft, grant) else None
    draft.do(ReleaseLease(leaving.why, leaving.outcome, position))


def _note_drained(draft: Draft) -> None:
    outage = draft.state.outage
    if outage is not None and outage.drained_ns == 0:
        _note(draft, drained_ns=draft.now_ns)
        draft.remember(drained=True)


def _finish(draft: Draft) -> None:
    """The outage's work is done, or was cut short by the lease."""
    outage, power = draft.state.outage, draft.seen.power
    if outage is None or outage.done_ns:
        return
    outcome = "saved" if outage.drained_ns else "incomplete"
    _note(
        draft,
        outcome=outcome,
        done_ns=draft.now_ns,
        usable_end_s=None if power is None else power.usable_s,
    )


def _note(draft: Draft, **changes: object) -> None:
    if draft.state.outage is not None:
        draft.remember(outage=replace(draft.state.outage, **changes))  # type: ignore[arg-type]
