"""The parts that a role needs beside the command, started again when they end unasked. Pure, part of `decide`."""

from sustain.failover.draft import Draft
from sustain.failover.types import ChildView, StartFetcher, StartReceiver, StartShipper


def keep_receiver(draft: Draft) -> None:
    """A standby receives."""
    if draft.policy.listens and (why := _start(draft, "receiver", draft.seen.receiver, "a standby receives")):
        draft.do(StartReceiver(why))


def keep_shipper(draft: Draft) -> None:
    """A primary ships."""
    if draft.policy.peers and (why := _start(draft, "shipper", draft.seen.shipper, "a primary ships")):
        draft.do(StartShipper(why))


def keep_fetcher(draft: Draft) -> None:
    """As long as pages of the store are elsewhere, somebody brings them."""
    store = draft.seen.store
    wanted = draft.policy.fetches and store is not None and store.arriving
    if wanted and (why := _start(draft, "fetcher", draft.seen.fetcher, "pages are elsewhere")):
        draft.do(StartFetcher(why))


def _start(draft: Draft, part: str, child: ChildView, why: str) -> str:
    """Why to start it now, "" when it runs or has ended unasked too recently: each time it is waited for longer."""
    fails = int(getattr(draft.state, f"{part}_fails"))
    if child.running:
        if fails and draft.now_ns - child.changed_ns > draft.policy.backoff_limit_ns:
            draft.remember(**{f"{part}_fails": 0})
        return ""
    if not child.failed:
        fails = 0  # a first start, or an end that was asked for
    elif getattr(draft.state, f"{part}_seen_ns") != child.changed_ns:
        fails += 1
        draft.remember(**{f"{part}_seen_ns": child.changed_ns, f"{part}_fails": fails})
    if not draft.due(child.changed_ns + draft.backoff(fails) if fails else 0):
        return ""
    return f"it ended unasked, {fails} in a row" if fails else why
