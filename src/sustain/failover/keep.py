"""The parts that a role needs beside the command, started again when they end unasked. Pure, part of `decide`."""

from sustain.failover.draft import Draft
from sustain.failover.types import StartFetcher, StartReceiver, StartShipper


def keep_receiver(draft: Draft) -> None:
    """A standby receives; a receiver that ends unasked is started again, later each time."""
    receiver, policy = draft.seen.receiver, draft.policy
    if not policy.listens or receiver.running:
        if receiver.running and draft.now_ns - receiver.changed_ns > policy.backoff_limit_ns:
            draft.remember(receiver_fails=0)
        return
    if receiver.failed and draft.state.receiver_seen_ns != receiver.changed_ns:
        draft.remember(receiver_seen_ns=receiver.changed_ns, receiver_fails=draft.state.receiver_fails + 1)
    fails = draft.state.receiver_fails if receiver.failed else 0
    if draft.due(receiver.changed_ns + draft.backoff(fails) if fails else 0):
        draft.do(StartReceiver("a standby receives" if not fails else f"it ended unasked, {fails} in a row"))


def keep_shipper(draft: Draft) -> None:
    """A primary ships; likewise."""
    shipper, policy = draft.seen.shipper, draft.policy
    if not policy.peers:
        return
    if shipper.running:
        if draft.now_ns - shipper.changed_ns > policy.backoff_limit_ns:
            draft.remember(shipper_fails=0)
        return
    if shipper.failed and draft.state.shipper_seen_ns != shipper.changed_ns:
        draft.remember(shipper_seen_ns=shipper.changed_ns, shipper_fails=draft.state.shipper_fails + 1)
    fails = draft.state.shipper_fails if shipper.failed else 0
    if draft.due(shipper.changed_ns + draft.backoff(fails) if fails else 0):
        draft.do(StartShipper("a primary ships" if not fails else f"it ended unasked, {fails} in a row"))


def keep_fetcher(draft: Draft) -> None:
    """As long as pages of the store are elsewhere, somebody brings them; likewise."""
    fetcher, policy, store = draft.seen.fetcher, draft.policy, draft.seen.store
    if not policy.fetches or store is None or not store.arriving:
        return
    if fetcher.running:
        if draft.now_ns - fetcher.changed_ns > policy.backoff_limit_ns:
            draft.remember(fetcher_fails=0)
        return
    if fetcher.failed and draft.state.fetcher_seen_ns != fetcher.changed_ns:
        draft.remember(fetcher_seen_ns=fetcher.changed_ns, fetcher_fails=draft.state.fetcher_fails + 1)
    fails = draft.state.fetcher_fails if fetcher.failed else 0
    if draft.due(fetcher.changed_ns + draft.backoff(fails) if fails else 0):
        draft.do(StartFetcher("pages are elsewhere" if not fails else f"it ended unasked, {fails} in a row"))
