"""What a store says about itself: positions and destinations. Pure: words in, values out.

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
    """

    url: str
    state: str
    required: bool
    acked: int | None
    lag_bytes: int | None
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """committed: end of the last commit; durable: position up to which this host holds the log by its
    durability; destinations: one entry for each that the shipper knows, none without a shipper; poisoned: a
    write has failed."""

    committed: int
    durable: int
    destinations: tuple[DestinationStatus, ...]
    poisoned: bool


def destination_status(
    destination: "Destination", *, committed: int, commit_time_ns: int
) -> DestinationStatus:
    """Lags of `destination` against the store's end (`committed`, and the time of that commit, ns since
    1970)."""
    acked = destination["acked"]
    lag_bytes = None if acked is None else max(0, committed - acked)
    lag_s: float | None = None
    if lag_bytes == 0:
        lag_s = 0.0
    elif lag_bytes is not None and destination["acked_commit_time_ns"] and commit_time_ns:
        lag_s = max(0.0, (commit_time_ns - destination["acked_commit_time_ns"]) / 1e9)
    return DestinationStatus(
        url=destination["url"],
        state=destination["state"],
        required=destination["required"],
        acked=acked,
        lag_bytes=lag_bytes,
        lag_s=lag_s,
    )


def store_status(words: "ControlWords", destinations: Sequence["Destination"], committed: int) -> StoreStatus:
    """`committed` is the newest commit that the asker knows; `words` and `destinations` are of the same
    moment."""
    return StoreStatus(
        committed=committed,
        durable=words["committed"],
        destinations=tuple(
            destination_status(each, committed=committed, commit_time_ns=words["commit_time_ns"])
            for each in destinations
        ),
        poisoned=words["poisoned"],
    )
