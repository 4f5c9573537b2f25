"""What one host does about its workload, from what it sees. Pure: no clock, no I/O.

Used by `supervise` on a real host and by `sim` on simulated ones. `decide` is level-triggered: it is called
after every change and at the latest at `Plan.wake_ns`, looks at the whole observation, and asks again for
what has not happened yet; carrying out an action twice does no harm. So a lost event, a pause of the
supervisor or an action that failed needs no case of its own.

Model. Without a grant a host is a standby (`contend`); with one it opens its store in the grant's epoch and
runs the command, as long as the grant's deadline is far enough; it ends by handing over in good order or by
fencing itself (`handover`), or by moving the workload where an operator wants it (`moving`). The engine refuses
commits past the deadline anyway, so nothing here is the last line of defence for the data; it is for the command's
sake, and so that hosts agree.

Rejected: a table of states and events. Half of what may happen (children, leases, stores) happens in every
state, and such tables are where the forgotten cell hides.
"""

from dataclasses import replace

from sustain.failover import outage
from sustain.failover.contend import contend, say_where
from sustain.failover.draft import Draft
from sustain.failover.handover import fence, hand_over
from sustain.failover.keep import keep_fetcher, keep_receiver, keep_shipper
from sustain.failover.lease.record import LeaseGrant, LeaseState
from sustain.failover.moving import consider, hand_over_to
from sustain.failover.types import (
    ChildState,
    CreateStore,
    Exit,
    FetchStore,
    Leaving,
    Observation,
    Plan,
    Policy,
    Promote,
    Renew,
    Role,
    StartCommand,
    State,
    Thaw,
)


def decide(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
    """What to do now, what to remember, when to ask again."""
    draft = Draft(observation, state, policy, now_ns)
    outage.notice(draft)
    if observation.grant is not None:
        _hold(draft, observation.grant)
    else:
        _wait(draft)
    return draft.plan()


def _wait(draft: Draft) -> None:
    """No grant: receive, and contend for the lease when it is free."""
    seen, state = draft.seen, draft.state
    leaving = state.leaving
    ends = seen.stop_requested or (leaving is not None and leaving.exits)
    if outage.without_lease(draft) and not (ends and draft.state.role is Role.SAVED):
        return
    # What only a primary runs must be gone before anything else: it would hold the store.
    down = draft.stop_command("this host has no lease", draft.now_ns)
    down = draft.stop_shipper("this host has no lease") and down
    down = draft.stop_fetcher("this host has no lease") and down
    if ends:
        if draft.stop_receiver("the supervisor ends") and down and not seen.preparing:
            draft.do(Exit(_ending(draft), 0))
        draft.become(Role.STOPPING)
        return
    draft.become(
        Role.STANDBY if seen.lease is not None else Role.STARTING,
        leaving=None,
        moving=None,
        fence_why="",
        fenced_ns=0,
        released=False,
    )
    if not down or seen.preparing:
        return
    if not contend(draft):
        keep_receiver(draft)


def _ending(draft: Draft) -> str:
    leaving = draft.state.leaving
    if leaving is None:
        return "stopped as asked"
    left = "" if draft.state.drained else "; no destination holds everything that was committed here"
    return f"{leaving.why}{left}"


def _hold(draft: Draft, grant: LeaseGrant) -> None:
    """A grant: from taking it over to running the command."""
    seen, policy = draft.seen, draft.policy
    if why := _must_fence(draft, grant):
        fence(draft, grant, why)
        return
    _renew(draft, grant)
    consider(draft, grant)
    if _leaves(draft, grant):
        return
    if not draft.stop_receiver("this host is the primary now") or seen.preparing:
        draft.become(Role.PROMOTING)
        return
    if why := _cannot_promote(draft, grant):
        draft.remember(
            leaving=Leaving(why, LeaseState.RELEASED, False, draft.now_ns),
            yield_until_ns=draft.now_ns + 3 * policy.ttl_ns,
        )
        hand_over(draft, grant)
        return
    store = seen.store
    keep_fetcher(draft)
    if store is None:
        draft.become(Role.PROMOTING)
        draft.do(_first_store(grant))
    elif store.log_epoch != grant.epoch:
        draft.become(Role.PROMOTING)
        if not draft.stop_shipper("a new epoch begins"):
            return
        draft.do(Promote(f"epoch {grant.epoch} begins at position {store.end}", grant.epoch))
    elif grant.record.store_uuid != store.uuid:
        # Before the command runs, so that nobody else thinks the workload has no store yet.
        if not seen.lease_busy:
            draft.do(Renew("note the store in the lease", store.uuid, LeaseState.HELD))
    elif policy.freezes and grant.record.state is LeaseState.CLAIMED:
        # What was sealed before is not the region's state once the program runs: nobody may take that then.
        if not seen.lease_busy:
            draft.do(Renew("say in the owner record that the program runs", state=LeaseState.HELD))
    else:
        draft.become(Role.PRIMARY)
        _run(draft, grant)


def _leaves(draft: Draft, grant: LeaseGrant) -> bool:
    """Whether this host is leaving: as asked, because it must, or because its power fails."""
    state = draft.state
    if draft.seen.stop_requested and (state.leaving is None or not state.leaving.exits):
        if state.leaving is not None and (state.leaving.outage or state.leaving.to):
            draft.remember(leaving=replace(state.leaving, exits=True))
        else:
            began_ns = draft.now_ns if state.leaving is None else state.leaving.began_ns
            draft.remember(leaving=Leaving("stopped as asked", LeaseState.RELEASED, True, began_ns))
    if why := outage.leaves_now(draft):
        outage.begin(draft, grant, why)
    leaving = draft.state.leaving
    if leaving is None:
        return False
    if leaving.outage:
        outage.save(draft, grant)
    elif leaving.to:
        hand_over_to(draft, grant)
    else:
        hand_over(draft, grant)
    return True


def _must_fence(draft: Draft, grant: LeaseGrant) -> str:
    seen, state = draft.seen, draft.state
    if state.role is Role.FENCED and state.fence_why:
        return state.fence_why  # once the command has been told to stop, there is no way back
    if seen.grant_lost:
        return seen.grant_lost
    if seen.store is not None and seen.store.fence_epoch > grant.epoch:
        return f"epoch {seen.store.fence_epoch} exists, this host has {grant.epoch}"
    left_ns = grant.deadline_ns - draft.now_ns
    if left_ns <= draft.policy.fence_ns:
        left = f"{left_ns / 1e9:.2f} s are left" if left_ns > 0 else f"it ran out {-left_ns / 1e9:.2f} s ago"
        error = f": {seen.lease_error}" if seen.lease_error else ""
        return f"the lease could not be renewed, {left}{error}"
    draft.wake_at(grant.deadline_ns - draft.policy.fence_ns)
    return ""


def _renew(draft: Draft, grant: LeaseGrant) -> None:
    seen, policy = draft.seen, draft.policy
    if seen.lease_busy:
        return
    at_ns = grant.renewed_ns + policy.renew_ns
    if seen.lease_error:
        at_ns = max(at_ns, seen.lease_error_ns + policy.retry_ns)
    if draft.due(at_ns):
        draft.do(Renew(f"{(grant.deadline_ns - draft.now_ns) / 1e9:.2f} s are left"))


def _first_store(grant: LeaseGrant) -> CreateStore | FetchStore:
    """How this host gets a store: the workload's first one, or what another host has."""
    record = grant.record
    if not record.store_uuid:
        return CreateStore("the workload's first store")
    at_least = record.position or 0
    return FetchStore("this host has no copy", grant.epoch, record.store_uuid, at_least)


def _cannot_promote(draft: Draft, grant: LeaseGrant) -> str:
    seen = draft.seen
    if seen.prepare_error:
        return seen.prepare_error
    if seen.store is None:
        may = draft.policy.fetches if grant.record.store_uuid else draft.policy.create
        return "" if may else "there is no store on this host"
    if seen.store.log_epoch == grant.epoch:
        return ""
    return seen.store.problem


def _run(draft: Draft, grant: LeaseGrant) -> None:
    """Primary, promoted: the command runs, and the shipper."""
    seen, state = draft.seen, draft.state
    if state.started_epoch != grant.epoch and seen.command.running:
        # A frozen program whose power came back: it goes on in the new epoch.
        draft.remember(started_epoch=grant.epoch)
        draft.do(Thaw(f"epoch {grant.epoch} is open"))
    elif state.started_epoch != grant.epoch:
        draft.remember(started_epoch=grant.epoch, crashes=(), restart_at_ns=0)
        draft.do(StartCommand(f"epoch {grant.epoch} is open", grant.epoch, first=True))
    elif seen.command.state is ChildState.EXITED:
        _after_exit(draft, grant)
        if draft.state.leaving is not None:
            hand_over(draft, grant)
            return
    elif seen.command.state is ChildState.NONE:
        draft.do(StartCommand("it could not be started before", grant.epoch, first=False))
    elif grant.record.state is LeaseState.CLAIMED and not seen.lease_busy and not seen.lease_error:
        # Only said: nobody waits for it, the command least of all.
        draft.do(Renew("say in the owner record that the command runs", state=LeaseState.HELD))
    keep_shipper(draft)
    say_where(draft, grant)


def _after_exit(draft: Draft, grant: LeaseGrant) -> None:
    command, state, policy = draft.seen.command, draft.state, draft.policy
    if state.seen_exit_ns != command.changed_ns:
        if command.asked:
            # The lease is held again after all: what it answered to being told is neither success nor failure.
            draft.remember(seen_exit_ns=command.changed_ns, restart_at_ns=command.changed_ns)
        elif command.status == 0 and policy.on_success == "stop":
            why = "the command has finished its work"
            draft.remember(
                seen_exit_ns=command.changed_ns,
                leaving=Leaving(why, LeaseState.DONE, True, draft.now_ns),
            )
            return
        else:
            _crashed(draft)
            if draft.state.leaving is not None:
                return
    if draft.due(draft.state.restart_at_ns):
        count = len(draft.state.crashes)
        reason = f"the command {_how(command.status)}; restart {count}"
        draft.do(StartCommand(reason, grant.epoch, first=False))


def _crashed(draft: Draft) -> None:
    """Start it again, later each time; or let another host try."""
    command, state, policy = draft.seen.command, draft.state, draft.policy
    recent = tuple(at for at in state.crashes if at > command.changed_ns - policy.restart_window_ns)
    crashes = (*recent, command.changed_ns)
    delay_ns = 0 if len(crashes) == 1 else draft.backoff(len(crashes) - 1)
    draft.remember(
        seen_exit_ns=command.changed_ns,
        crashes=crashes[-64:],
        restart_at_ns=command.changed_ns + delay_ns,
    )
    if len(crashes) > policy.restarts and _usable_standby(draft):
        why = f"the command {_how(command.status)}, {len(crashes)} times lately; another host shall try"
        draft.remember(leaving=Leaving(why, LeaseState.RELEASED, False, draft.now_ns))
        return


def _usable_standby(draft: Draft) -> bool:
    return any(each.state == "streaming" and each.acked is not None for each in draft.seen.destinations)


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    return f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
