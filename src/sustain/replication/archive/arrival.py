"""What a primary finds in an archive, and how it goes on there. Used by `destination`.

The archive cannot refuse anything, so this is where it is refused for it: another store, an older epoch, a copy of the
store that went another way in the same epoch. It is asked again before anything is acknowledged (`newer_epoch`).
"""

from dataclasses import dataclass, replace

from sustain._native import LogTail
from sustain.errors import ArchiveError, PeerRefused
from sustain.replication.archive import plan, segment
from sustain.replication.archive.contents import Contents, read_contents, read_manifests
from sustain.replication.archive.documents import Manifest, Run
from sustain.replication.archive.place import Place
from sustain.replication.records import COMMIT_BYTES, chain_at, commit_at
from sustain.replication.session import common_point
from sustain.replication.wire import Hello

_ANEW = "give this copy a history of its own: sustain restore … --new-epoch; or ship to another URL"


class NewerEpoch(PeerRefused):
    """Another primary has archived there since."""

    def __init__(self, url: str, epoch: int, ours: int) -> None:
        super().__init__(
            f"{url}: epoch {ours} is over: epoch {epoch} is archived there",
            hint="another host is the primary now; start this one as a standby",
        )
        self.epoch = epoch


@dataclass(frozen=True)
class Arrival:
    """Where to go on: at `lsn` in the last of `runs`, or nowhere (None): `why`."""

    lsn: int | None
    runs: list[Run]
    time_high_ns: int
    acked: int = 0  # what is there can be restored up to here
    snapshot: str = ""  # path of the newest one that this primary's log continues
    floor: int = 0
    floor_ns: int = 0
    why: str = ""
    time_ns: int = 0  # of the commit that ends at `lsn`; 0: unknown


def newer_epoch(place: Place, epoch: int) -> None:
    """Raises NewerEpoch when a primary of a newer epoch has been there."""
    newest = max(place.epochs(), default=0)
    if newest > epoch:
        raise NewerEpoch(place.url, newest, epoch)


def arrive(place: Place, hello: Hello, log: LogTail) -> Arrival:
    """Raises PeerRefused, ArchiveError."""
    newer_epoch(place, hello.epoch)
    manifests, _ = read_manifests(place)
    if not manifests:
        return Arrival(None, [], 0, why="nothing is archived there yet")
    found = manifests[max(manifests)]
    _refuse_others(place, found, hello, log)
    contents = read_contents(place)
    _remove_strangers(contents, found, hello, log)
    common = common_point(hello.history, hello.committed, found.history, found.end)
    runs = plan.trim_runs(found.runs, common)
    kept = Arrival(None, runs, found.time_high_ns, min(found.acked, common), "", found.floor, found.floor_ns)
    if not runs or runs[-1].end != common:
        return replace(kept, why=f"it holds no log up to position {common}")
    if not (log.tail() <= common <= log.committed() and log.group_boundary(common)):
        return replace(kept, why=f"it ends at position {common}, and the log here does not go back that far")
    if common == found.end and chain_at(log.log_view, log.tail(), log.committed(), common) != found.chain:
        raise PeerRefused(f"{place.url} holds another log before position {common}", hint=_ANEW)
    snapshots = [each for each in contents.snapshots() if each.epoch in manifests]
    usable = plan.usable_snapshots(found, manifests, snapshots, max(runs[-1].first, found.floor))
    newest = next((each.path for each in usable if each.usable <= common), "")
    time_ns = found.time_ns if common == found.end else 0
    return replace(kept, lsn=common, snapshot=newest, time_ns=time_ns)


def _remove_strangers(contents: Contents, found: Manifest, hello: Hello, log: LogTail) -> None:
    """Delete segments of this epoch that were put and never promised, and that the log here does not hold: the host
    lost its last commits with its power, and makes others in their place. Left there, those would be restored."""
    if found.epoch != hello.epoch:
        return
    place, strangers = contents.place, []
    for name in contents.segments():
        if name.epoch != hello.epoch or name.last <= found.end or name.last < log.tail():
            continue  # what the log does not go back to is not known to be wrong
        at = segment.HEADER_BYTES + name.last - name.first - COMMIT_BYTES
        commit = commit_at(place.get(name.path, at, COMMIT_BYTES) or b"", 0, name.last - COMMIT_BYTES)
        ours = name.last <= log.committed() and log.group_boundary(name.last)
        chain = chain_at(log.log_view, log.tail(), log.committed(), name.last) if ours else None
        if commit is None or commit.checksum != chain:
            strangers.append(name.path)
    place.delete(strangers)


def _refuse_others(place: Place, found: Manifest, hello: Hello, log: LogTail) -> None:
    if found.store != hello.store.hex():
        raise PeerRefused(
            f"{place.url}: another store is archived there ({found.store})",
            hint="name another directory or prefix",
        )
    if (found.image_size, found.log_size) != (hello.image_size, hello.log_size):
        raise ArchiveError(f"{place.url}: the store archived there has other sizes", hint=_ANEW)
    if found.epoch != hello.epoch:
        return
    if found.end > hello.committed:
        raise PeerRefused(
            f"{place.url} holds epoch {found.epoch} up to position {found.end}; the store here ends at "
            f"{hello.committed}: it is an older copy",
            hint=_ANEW,
        )
    if found.replica != hello.replica.hex():
        held = log.tail() <= found.end and log.group_boundary(found.end)
        if not held or chain_at(log.log_view, log.tail(), log.committed(), found.end) != found.chain:
            raise PeerRefused(
                f"{place.url}: epoch {found.epoch} was archived by another copy of this store, and nothing "
                "proves that this one continues it",
                hint=_ANEW,
            )
