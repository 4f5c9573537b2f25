"""What to do with a replica that has just introduced itself: go on, start over, or keep away. Pure.

Used by the shipper (which decides) and the receiver (which checks for itself what it would lose). The model:
a *history* is the list of (epoch, LSN where it began). An epoch has one writer, so two copies that share an
entry share everything before it; they part where, behind the last shared entry, the first of them opened
another epoch. The *common point* is that position, or the end of the shorter copy.

    resume  only if   replica's end <= common point, its last COMMIT is the primary's at that position,
                      and the primary's log still holds what follows
    rewind  if        the replica holds something that is not the primary's (it is kept in a file first)
    snapshot          otherwise

A comparison of positions alone was rejected: a former primary that wrote 100 bytes nobody received, and was
overtaken by a new epoch of 200 bytes, would look merely late.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Histories = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PrimaryFacts:
    """The primary, as its shipper sees it. Positions in bytes."""

    store: bytes
    epoch: int
    history: Histories
    image_size: int
    log_size: int
    tail: int
    committed: int
    holds_end: bool  # a group begins at the replica's end, and the log holds it
    chain_at_end: (
        int | None
    )  # checksum of the primary's COMMIT that ends there; None: not in the log any more


@dataclass(frozen=True)
class ReplicaFacts:
    """The replica, as it says."""

    has_store: bool
    store: bytes = b""
    epoch: int = 0
    history: Histories = ()
    image_size: int = 0
    log_size: int = 0
    end: int = 0
    end_chain: int = 0
    incomplete: bool = False
    diverged: bool = False


@dataclass(frozen=True)
class Resume:
    lsn: int


@dataclass(frozen=True)
class Snapshot:
    reason: str


@dataclass(frozen=True)
class Rewind:
    """A snapshot too; but the replica holds [common, end), which the primary does not have."""

    common: int
    reason: str


@dataclass(frozen=True)
class Refused:
    code: str  # as in docs/formats/wire.md
    message: str


Course = Resume | Snapshot | Rewind
Decision = Course | Refused


def common_point(ours: Histories, our_end: int, theirs: Histories, their_end: int) -> int:
    """The last position up to which two copies of a store are the same log. 0 when no epoch is shared.

    Symmetric. Histories that have lost their oldest entries (only the newest 128 are kept) still meet at the
    newest shared one.
    """
    shared = set(map(tuple, ours)) & set(map(tuple, theirs))
    if not shared:
        return 0
    last = max(shared)
    points = [our_end, their_end]
    for history in (ours, theirs):
        points += [start for epoch, start in history if epoch > last[0]]
    return max(min(points), 0)


def decide_resume(primary: PrimaryFacts, replica: ReplicaFacts) -> Decision:
    """How to bring `replica` to where `primary` is."""
    if replica.epoch > primary.epoch:
        return Refused(
            "fenced", f"the replica has seen epoch {replica.epoch}, this primary is of {primary.epoch}"
        )
    if not replica.has_store:
        return Snapshot("the replica has no store yet")
    if replica.store != primary.store:
        return Refused("other-store", "the replica holds another store")
    if (replica.image_size, replica.log_size) != (primary.image_size, primary.log_size):
        return Refused("size", "the replica's image or log has another size")
    if replica.incomplete:
        return Snapshot("the replica's snapshot was interrupted")
    common = common_point(primary.history, primary.committed, replica.history, replica.end)
    if replica.end > common:
        return Rewind(common, f"histories part at {common}, the replica ends at {replica.end}")
    if replica.end < primary.tail:
        return Snapshot(f"the replica ends at {replica.end}, the log begins at {primary.tail}")
    if not primary.holds_end:
        return Rewind(_epoch_start(primary, replica), f"no commit ends at {replica.end} in this log")
    if primary.chain_at_end is not None and primary.chain_at_end != replica.end_chain:
        return Rewind(_epoch_start(primary, replica), f"another commit ends at {replica.end} in this log")
    if replica.diverged:
        return Rewind(
            _epoch_start(primary, replica), f"the log does not continue the replica's at {replica.end}"
        )
    return Resume(replica.end)


def _epoch_start(primary: PrimaryFacts, replica: ReplicaFacts) -> int:
    """Same epochs, different bytes: two writers were in one epoch. Nothing behind its beginning is surely
    shared."""
    shared = set(map(tuple, primary.history)) & set(map(tuple, replica.history))
    return min(max(shared)[1], replica.end) if shared else 0
