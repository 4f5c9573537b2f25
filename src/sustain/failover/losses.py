"""What a takeover cost: how much of the old primary's log the new epoch goes on without. Pure.

Used by `report`. Three sources, the best first: what the old primary's own host says of its log when it has returned
(an account, `replication.accounts`); where it noted that it left in good order; and, until there is either, what was
last heard of it, which is a lower bound and nothing more. A number is exact or it is None; bounds are fields of
their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sustain.replication.wire import Account


@dataclass(frozen=True, slots=True)
class Held:
    """What the new primary had. Positions are LSNs, times ns since 1970; None is unknown."""

    position: int | None
    start: int  # of the new epoch
    commits: int | None
    commit_time_ns: int | None  # of the last of them


@dataclass(frozen=True, slots=True)
class Losses:
    """Of the old primary's log [start, end). None is unknown; the bounds are certain, too."""

    start: int | None = None
    end: int | None = None
    bytes: int | None = None
    commits: int | None = None
    seconds: float | None = None  # between the last commit that is here and the last that is not
    at_least_bytes: int | None = None
    at_least_s: float | None = None
    first_commit_time_ns: int | None = None
    last_commit_time_ns: int | None = None
    kept_bytes: int | None = None  # of them, in a file beside the old primary's store
    kept_on: str | None = None


def nothing(at: int | None) -> Losses:
    """It is certain that nothing is missing."""
    return Losses(at, at, 0, 0, 0.0, 0, 0.0, kept_bytes=0)


def by_account(held: Held, account: Account) -> Losses:
    """What the old primary itself says. Exact, but for what its log has forgotten."""
    start = min(held.start, account.common) if parted_early(held, account) else held.start
    lost_bytes = max(0, account.end - start)
    if lost_bytes == 0:
        return nothing(start)
    seconds = span_s(held.commit_time_ns if start == held.start else None, account.last_time_ns)
    if seconds is None:
        seconds = span_s(account.before_time_ns if account.common == start else None, account.last_time_ns)
    commits = lost_commits(held, account, start)
    if commits == 0:
        seconds = 0.0  # all that is missing opened an epoch
    return Losses(
        start,
        account.end,
        lost_bytes,
        commits,
        seconds,
        lost_bytes,
        seconds,
        account.first_time_ns if account.kept_from == account.common == start else None,
        account.last_time_ns,
        account.end - max(start, account.kept_from),
        account.host,
    )


def lost_commits(held: Held, account: Account, start: int) -> int | None:
    """By their numbers, which count from the store's first and are the same in both logs up to `start`."""
    if held.commits is None or start != held.position or account.common != start:
        return None
    return account.end_seq - held.commits - account.opened


def parted_early(held: Held, account: Account) -> bool:
    """Whether the histories part before the new epoch: then not all that this host has was the old primary's."""
    return account.common < min(held.start, account.end)


def at_least(
    held: Held, committed: int | None, commit_time_ns: int | None, accounts: Sequence[Account]
) -> Losses:
    """What is certain before the old primary has returned: by what was heard of it, and by what others have."""
    if held.position is None:
        return Losses()
    ends = [account.end for account in accounts] + ([] if committed is None else [committed])
    if not ends:
        return Losses(start=held.start)
    lost_bytes = max(0, max(ends) - held.position)
    seconds = span_s(held.commit_time_ns, commit_time_ns) if committed == max(ends) else None
    return Losses(start=held.start, at_least_bytes=lost_bytes, at_least_s=seconds if lost_bytes else 0.0)


def span_s(since_ns: int | None, until_ns: int | None) -> float | None:
    """None when either is unknown, and when the clock went back between them."""
    if since_ns is None or until_ns is None or until_ns < since_ns:
        return None
    return (until_ns - since_ns) / 1e9
