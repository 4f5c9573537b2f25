"""A standby and the lease: may it take over, is it the best to do so, and when. Pure, part of `decide`.

A standby takes over only with a store that is whole and of this workload, and only when no other standby
that is alive holds more. Holding more is what `Rank` compares: epoch of the last record, then position.
When the lease has run out each standby announces its rank *read after that moment*, for this very record
version; one that is alive but has not answered is waited for, for a short bounded time. What any standby
acknowledged before the old primary's deadline is thus seen by all, and the takeover is by one that holds
it. With a single standby nobody is waited for.

When a primary gave the lease back in good order it noted its last position; a standby that holds less
leaves the lease alone, for the old primary's store is whole, and says so. When it gave the lease back to one host, that
takes it without asking the others, who leave it alone for a while.
"""

from sustain.failover.draft import Draft
from sustain.failover.lease.record import Candidate, LeaseGrant, LeaseRecord, LeaseState, Rank
from sustain.failover.moving import expected, named, reserved_until_ns
from sustain.failover.types import Announce, Exit, SetAside, StoreView, TryAcquire

GOVERNED_EPOCH = 2  # a store that never was under a lease is in epoch 1; every lease opens a new one


def contend(draft: Draft) -> bool:
    """Announce, and take the lease if it is free and ours to take. True when an attempt is under way."""
    seen, policy = draft.seen, draft.policy
    if seen.lease is None:
        draft.note("the lease has not been read yet")
        return False
    record = seen.lease.record
    if expected(draft, record):
        draft.poll_fast()
    if _finished(draft, record) or _stranger(draft, record):
        return True
    why_not = _unfit(draft, record)
    if why_not:
        draft.note(why_not)
        _beat(draft)
        return False
    if seen.lease_busy:
        return seen.receiver.asked or not seen.receiver.running
    at_ns = max(_takeable_at_ns(draft), reserved_until_ns(draft, record))
    if not named(draft, record):
        at_ns = max(at_ns, draft.state.yield_until_ns)
    if not draft.due(at_ns):
        if at_ns - draft.now_ns < policy.candidate_life_ns // 8:
            draft.poll_fast()
        _beat(draft)
        return False
    draft.poll_fast()
    if seen.lease_error and not draft.due(seen.lease_error_ns + policy.retry_ns):
        return False
    if not named(draft, record) and not _elected(draft, record):
        return False
    at_least = seen.store.epoch if seen.store is not None else 1
    if not seen.lease_error:
        draft.stop_receiver("to take over")  # while the swap goes on; started again if another was faster
    draft.do(TryAcquire(_why(record), at_least))
    return True


def _why(record: LeaseRecord) -> str:
    if record.state is LeaseState.ABSENT:
        return "there is no lease yet"
    if record.state.owned:
        return f"the lease of {record.holder}, epoch {record.epoch}, has run out"
    if record.state is LeaseState.SAVED:
        return f"{record.holder} has saved the state, epoch {record.epoch}: {record.reason}"
    return f"{record.holder} gave the lease back, epoch {record.epoch}: {record.reason}"


def _finished(draft: Draft, record: LeaseRecord) -> bool:
    if record.state is not LeaseState.DONE or draft.policy.rerun:
        return False
    if draft.stop_receiver("the work is finished"):
        draft.do(Exit(f"the work was finished by {record.holder} in epoch {record.epoch}", 0))
    return True


def _stranger(draft: Draft, record: LeaseRecord) -> bool:
    store = draft.seen.store
    if store is None or not record.store_uuid or store.uuid in ("", record.store_uuid):
        return False
    if not draft.stop_receiver("the store is of another workload"):
        return True
    if store.empty:
        # Two hosts began the workload at once, and this one failed before it could say so.
        draft.do(SetAside("it is empty, and another host has made the workload's store"))
    else:
        hint = "give it the right --lease, or move the store away so that a standby's store is made here"
        draft.do(
            Exit(f"this store ({store.uuid}) is not of this lease's workload ({record.store_uuid})", 1, hint)
        )
    return True


def _unfit(draft: Draft, record: LeaseRecord) -> str:
    """Why this host may not take the lease at all, "" when it may."""
    store, policy = draft.seen.store, draft.policy
    if draft.seen.power is not None and draft.seen.power.fails:
        return f"the power of this host fails ({draft.seen.power.power}): another host shall take over"
    if store is None:
        if policy.fetches and record.store_uuid:
            return ""
        if record.store_uuid or not policy.create:
            return "waiting for a primary to send the store"
        return ""
    if store.problem:
        return store.problem
    if record.state is LeaseState.ABSENT and store.epoch >= GOVERNED_EPOCH and not policy.new_lease:
        return (
            f"there is no lease record, but this store is in epoch {store.epoch}: "
            "is the lease's directory mounted, or its etcd the right one? "
            "To begin anew with this store, run once with --new-lease"
        )
    if store.end is None:
        return "the store's last position is not known yet"
    if record.state.left and _lacks(store, record):
        return _lacking(draft, store, record)
    over = draft.now_ns >= _takeable_at_ns(draft)  # before, its owner may be running it
    if over and not store.prefix and not policy.accept_loss:
        return _unsaved(store, record)
    return ""


def _unsaved(store: StoreView, record: LeaseRecord) -> str:
    """Why a region may not be taken from an owner that ended without having saved it; "" when it did."""
    if record.state is LeaseState.CLAIMED:
        here = (store.log_epoch, store.end or 0)
        unsaved = record.position is not None and here < (record.position_epoch, record.position)
    else:
        unsaved = record.state.owned and store.log_epoch != record.epoch
    if not unsaved:
        return ""
    return (
        f"{record.holder} ended without having saved the region in epoch {record.epoch}, this host has "
        f"epoch {store.log_epoch}: start {record.holder} again, or this host with --accept-loss"
    )


def _lacking(draft: Draft, store: StoreView, record: LeaseRecord) -> str:
    """Why not yet, or not at all: the last owner noted more than this host holds."""
    has = f"position {record.position}, this host has {store.end}"
    accept = draft.policy.accept_loss
    if record.state is not LeaseState.SAVED:
        left = f"{record.holder} left in good order at {has}"
        return "" if accept else f"{left}: start {record.holder} again, or this one with --accept-loss"
    # An early signal: what is missing may be on its way.
    if draft.state.arrival_version != record.version:
        draft.remember(arrival_version=record.version, arrival_from_ns=draft.now_ns)
    until_ns = draft.state.arrival_from_ns + draft.policy.arrival_limit_ns
    if not draft.due(until_ns):
        draft.poll_fast()
        draft.wake_at(draft.now_ns + draft.policy.busy_poll_ns)
        return f"{record.holder} saves {has}: what is missing is waited for"
    limit = f"within {draft.policy.arrival_limit_ns / 1e9:g} s"
    late = f"{record.holder} saved {has}, and the rest did not arrive {limit}"
    return "" if accept else f"{late}: start {record.holder} again, or this one with --accept-loss"


def _lacks(store: StoreView, record: LeaseRecord) -> bool:
    if record.position is None or store.end is None:
        return False
    return (store.log_epoch, store.end) < (record.position_epoch, record.position)


def _takeable_at_ns(draft: Draft) -> int:
    view, store = draft.seen.lease, draft.seen.store
    assert view is not None
    if view.record.state is LeaseState.ABSENT and (store is None or store.epoch < GOVERNED_EPOCH):
        return 0
    if view.takeable_at_ns is None:
        return draft.now_ns + draft.policy.ttl_ns
    return view.takeable_at_ns


def _elected(draft: Draft, record: LeaseRecord) -> bool:
    """Whether no other standby that is alive holds more, or those that do have had their time."""
    seen, state, policy = draft.seen, draft.state, draft.policy
    if seen.lease is None or draft.now_ns - seen.lease.read_ns > policy.fresh_ns:
        # This host was stopped, or the lease store hangs: who else is alive is not known as of now.
        draft.note("reading the lease again")
        draft.wake_at(draft.now_ns + policy.busy_poll_ns)
        return False
    mine = _rank(draft)
    # Who says that it cannot take over (a primary, above all) is not waited for.
    alive = [each.candidate for each in seen.candidates if _alive(draft, each.candidate, each.changed_ns)]
    others = [each for each in alive if each.usable]
    if not others:
        return True
    if state.election_round != record.version:
        draft.remember(election_round=record.version, election_from_ns=draft.now_ns)
    due = draft.due(draft.state.announced_ns + policy.beat_ns)  # whoever waits lives, and says so
    if due or draft.state.announced_round != record.version:
        _announce(draft, record.version)
    waited_ns = draft.now_ns - draft.state.election_from_ns
    silent = [each.name for each in others if each.round != record.version]
    if silent and waited_ns < policy.election_ns:
        draft.note(f"waiting for {', '.join(silent)} to say how much they hold")
        draft.wake_at(draft.state.election_from_ns + policy.election_ns)
        return False
    better = [each for each in others if _order(each.rank, each.name) > _order(mine, policy.name)]
    # One that holds more may have failed just now. Each in the order of what they hold gets its time, so that the
    # best of those that are left goes before the others lose patience.
    patience_ns = (1 + 2 * len(better)) * policy.election_ns
    if better and waited_ns < patience_ns:
        draft.note(f"{better[0].name} holds more: position {better[0].rank.end}, this host has {mine.end}")
        draft.wake_at(draft.state.election_from_ns + patience_ns)
        return False
    return True


def _order(rank: Rank, name: str) -> tuple[Rank, str]:
    return (rank, name)


def _alive(draft: Draft, candidate: Candidate, changed_ns: int) -> bool:
    """By the last reading: what this host did not see because it was stopped itself tells nothing."""
    if candidate.name == draft.policy.name or draft.seen.lease is None:
        return False
    return draft.seen.lease.read_ns - changed_ns <= draft.policy.candidate_life_ns


def _beat(draft: Draft) -> None:
    """Tell the others now and then that this standby lives; also one that has nothing yet, for people to see."""
    view, every_ns = draft.seen.lease, draft.policy.beat_ns
    if view is not None and expected(draft, view.record):
        every_ns = min(every_ns, 2 * draft.policy.poll_ns)
    if draft.due(draft.state.announced_ns + every_ns):
        _announce(draft, 0)


def say_where(draft: Draft, grant: LeaseGrant) -> None:
    """A primary's place among the members, for people only: just after a renewal, so that it delays none."""
    seen, state, policy = draft.seen, draft.state, draft.policy
    if seen.store is None or not seen.command.running or seen.lease_busy or seen.lease_error:
        return
    fresh = grant.deadline_ns - draft.now_ns > policy.ttl_ns * 3 // 5
    if fresh and draft.due(state.announced_ns + policy.beat_ns):
        draft.remember(announced_ns=draft.now_ns, announced_round=0)
        draft.do(Announce("say where this primary is", _rank(draft), False, 0))


def _announce(draft: Draft, round_: int) -> None:
    store = draft.seen.store
    usable = store is not None and not store.problem and store.end is not None
    usable = usable and not (draft.seen.power is not None and draft.seen.power.fails)
    usable = usable and draft.now_ns >= draft.state.yield_until_ns  # others need not wait for who stands back
    draft.remember(announced_ns=draft.now_ns, announced_round=round_)
    draft.do(Announce("say what this standby holds", _rank(draft), usable, round_))


def _rank(draft: Draft) -> Rank:
    store = draft.seen.store
    return Rank(0, 0) if store is None or store.rank is None else store.rank
