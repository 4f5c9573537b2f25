"""What a store says about itself: positions, destinations, the battery. Pure: words in, values out.

`Store.status` and `sustain status` make the same figures from the control words, one from inside the writer
and one from any other process. What nobody knows is None, never zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sustain._native import ControlWords, Destination


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One destination of the store's log, as its shipper last heard of it.

    acked: position that the destination holds durably; None = never heard.
    lag_bytes: committed bytes of log that it does not hold; None = unknown.
    lag_s: seconds of commits that it does not hold, which is what would be lost if this host vanished now:
        time of the newest commit less time of the newest acknowledged one; 0 when nothing is missing, None =
        unknown.
    state: "connecting", "streaming", "snapshot", "needs-snapshot", "refused", "stopped".
    required: whether the log is kept for it.
    bandwidth_bytes_per_s: how fast it nearly always takes the log; None = not measured.
    drain_s: seconds in which it would hold everything, at that bandwidth; None = unknown.
    budget_bytes: what the battery allows to be unshipped to it; None = unknown, or no battery is watched.
    left_alone_s: seconds until it is tried again, where it is left alone because it failed or cannot keep up; 0 = it is
        not left alone; None = unknown: no shipper runs.
    left_alone_why: why it is; None = it is not, or unknown.
    """

    url: str
    state: str
    required: bool
    acked: int | None
    lag_bytes: int | None
    lag_s: float | None
    bandwidth_bytes_per_s: int | None = None
    drain_s: float | None = None
    budget_bytes: int | None = None
    left_alone_s: float | None = None
    left_alone_why: str | None = None


@dataclass(frozen=True, slots=True)
class PowerStatus:
    """The battery's side of a store; there is none where nobody watches the power.

    state: "on AC", "flapping", "on battery", "low", "forced shutdown", "unknown".
    usable_s: seconds of battery that a drain may count on; None = unknown, and then there is no budget.
    drain_s: seconds in which all required destinations would hold everything (one of the others, where none is
        required); None = unknown.
    budget_bytes: unshipped bytes that the battery allows; None = none is known.
    commits: "free"; "delayed", because much of the budget is used; "waiting", until less is unshipped; "alone": no
        destination has a whole copy (and none is required), so there is nothing to hold commits back for.
    waiting_s: for how long a commit has been waiting; None = none does.
    """

    state: str
    usable_s: float | None
    drain_s: float | None
    budget_bytes: int | None
    commits: str
    waiting_s: float | None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """committed: end of the last commit; durable: position up to which this host holds the log by its
    durability; destinations: one entry for each that the shipper knows, none without a shipper; poisoned: a
    write has failed; power: None = nobody watches it."""

    committed: int
    durable: int
    destinations: tuple[DestinationStatus, ...]
    poisoned: bool
    power: PowerStatus | None = None


def destination_status(
    destination: "Destination",
    *,
    committed: int,
    commit_time_ns: int,
    now_ns: int = 0,
    shipper_alive: bool = False,
) -> DestinationStatus:
    """Lags of `destination` against the store's end (`committed`, and the time of that commit, ns since
    1970), at the moment `now_ns` (CLOCK_BOOTTIME). What a shipper that has ended was about to do is unknown."""
    acked = destination["acked"]
    lag_bytes = None if acked is None else max(0, committed - acked)
    lag_s: float | None = None
    if lag_bytes == 0:
        lag_s = 0.0
    elif lag_bytes is not None and destination["acked_commit_time_ns"] and commit_time_ns:
        lag_s = max(0.0, (commit_time_ns - destination["acked_commit_time_ns"]) / 1e9)
    bandwidth = destination["bandwidth_bytes_per_s"]
    drain_s: float | None = None
    if lag_bytes == 0:
        drain_s = 0.0
    elif lag_bytes is not None and bandwidth is not None:
        drain_s = lag_bytes / bandwidth
    until_ns = destination["left_alone_until_ns"] if shipper_alive else None
    left_alone_s = None if until_ns is None else max(0, until_ns - now_ns) / 1e9
    return DestinationStatus(
        url=destination["url"],
        state=destination["state"],
        required=destination["required"],
        acked=acked,
        lag_bytes=lag_bytes,
        lag_s=lag_s,
        bandwidth_bytes_per_s=bandwidth,
        drain_s=drain_s,
        budget_bytes=destination["budget_bytes"],
        left_alone_s=left_alone_s,
        left_alone_why=destination["left_alone_why"] if left_alone_s else None,
    )


def power_status(
    words: "ControlWords", destinations: Sequence[DestinationStatus], now_ns: int
) -> PowerStatus | None:
    """Of the moment `now_ns` (CLOCK_BOOTTIME)."""
    if not words["power_at_ns"]:
        return None
    from sustain.powerfail.budget import ALONE, POWER_STATES, usable_now_s
    from sustain.powerfail.decide import Power

    number, limit, since_ns = words["power_state"], words["limit_lsn"], words["waiting_since_ns"]
    power = POWER_STATES[number] if number < len(POWER_STATES) else Power.UNKNOWN
    alone = limit == ALONE.limit_lsn
    if alone:
        commits = "alone"
    elif not limit:
        commits = "free"
    elif since_ns or words["committed"] >= limit:
        commits = "waiting"
    else:
        commits = "delayed" if words["committed"] > words["delay_lsn"] else "free"
    return PowerStatus(
        state=str(power),
        usable_s=usable_now_s(words["usable_ns"], words["power_at_ns"], power, now_ns),
        drain_s=_drain_s(destinations),
        budget_bytes=words["budget_bytes"] if limit > 1 and not alone else None,
        commits=commits,
        waiting_s=max(0, now_ns - since_ns) / 1e9 if since_ns else None,
    )


def _drain_s(destinations: Sequence[DestinationStatus]) -> float | None:
    required = [each.drain_s for each in destinations if each.required]
    known = [each for each in required or [each.drain_s for each in destinations] if each is not None]
    if not known or (required and len(known) < len(required)):
        return None
    return max(known) if required else min(known)


def store_status(
    words: "ControlWords",
    destinations: Sequence["Destination"],
    committed: int,
    now_ns: int,
    shipper_alive: bool = False,
) -> StoreStatus:
    """`committed` is the newest commit that the asker knows; `words`, `destinations` and `shipper_alive` are of the
    same moment, which is `now_ns` on CLOCK_BOOTTIME."""
    shown = tuple(
        destination_status(
            each,
            committed=committed,
            commit_time_ns=words["commit_time_ns"],
            now_ns=now_ns,
            shipper_alive=shipper_alive,
        )
        for each in destinations
    )
    return StoreStatus(
        committed=committed,
        durable=words["committed"],
        destinations=shown,
        poisoned=words["poisoned"],
        power=power_status(words, shown, now_ns),
    )
