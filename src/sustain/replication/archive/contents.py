"""What is in an archive, read once: manifests first, then the listing, which is then never behind them.

Used by restore, proof, list, upkeep and, when it begins, by whoever ships.
"""

import contextlib
from dataclasses import dataclass, field

from sustain.errors import ArchiveCorrupt, ArchiveNewerVersion, NotAnArchive
from sustain.replication.archive import names
from sustain.replication.archive.documents import Hold, Manifest, Proof, Snapshot, decode
from sustain.replication.archive.names import SegmentName, SnapshotName
from sustain.replication.archive.place import Found, Place

_PART_LIMIT_BYTES = 1 << 30


@dataclass
class Contents:
    """Of the archive at `place`. Only segments and snapshots of epochs whose manifest could be read count."""

    place: Place
    manifests: dict[int, Manifest]
    objects: dict[str, Found]
    damaged: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Manifest:
        return self.manifests[max(self.manifests)]

    @property
    def store(self) -> bytes:
        return bytes.fromhex(self.newest.store)

    def segments(self) -> list[SegmentName]:
        found = map(names.segment_name, self.objects)
        return sorted(each for each in found if each is not None and each.epoch in self.manifests)

    def snapshots(self) -> list[SnapshotName]:
        found = map(names.snapshot_name, self.objects)
        return sorted(each for each in found if each is not None and each.epoch in self.manifests)


def read_manifests(place: Place) -> tuple[dict[int, Manifest], list[str]]:
    """(manifests by epoch, those that are damaged). Raises ArchiveCorrupt when the newest one is."""
    epochs = sorted(place.epochs(), reverse=True)
    manifests: dict[int, Manifest] = {}
    damaged: list[str] = []
    for epoch in epochs:
        path = names.manifest_path(epoch)
        data = place.get(path)
        if data is None:
            continue
        try:
            manifest = decode(Manifest, data, place.where(path))
            if manifest.epoch != epoch:
                raise ArchiveCorrupt(f"{place.where(path)} is that of epoch {manifest.epoch}")
        except ArchiveCorrupt as error:
            if not manifests:
                raise ArchiveCorrupt(
                    f"{error}; without it nobody can say what should be there",
                    hint="restore from another destination; shipping there again writes a new one",
                ) from None
            damaged.append(str(error))
            continue
        manifests[epoch] = manifest
    return manifests, damaged


def read_contents(place: Place) -> Contents:
    """Raises NotAnArchive, ArchiveCorrupt, ArchiveIOError."""
    manifests, damaged = read_manifests(place)
    if not manifests:
        raise NotAnArchive(f"{place.url}: no store is archived there", hint="look at the URL")
    return Contents(place, manifests, {each.path: each for each in place.list()}, damaged)


def read_snapshot(place: Place, name: SnapshotName, store: bytes) -> Snapshot:
    """Raises ArchiveCorrupt, ArchiveIOError."""
    where = place.where(name.path)
    data = place.get(name.path)
    if data is None:
        raise ArchiveCorrupt(f"{where} is missing")
    found = decode(Snapshot, data, where)
    if bytes.fromhex(found.store) != store:
        raise ArchiveCorrupt(f"{where} belongs to another store ({found.store})")
    if SnapshotName(found.epoch, found.start, found.usable) != name:
        raise ArchiveCorrupt(f"{where} is another snapshot, under a wrong name")
    for part in found.parts:
        if names.part_name(part.path) != (name.epoch, found.copy) or part.size > _PART_LIMIT_BYTES:
            raise ArchiveCorrupt(f"{where} names {part.path!r} of {part.size} bytes, which is no part of it")
    return found


def read_proof(place: Place) -> Proof | None:
    """The last restore that was tried; None: none was. Raises ArchiveCorrupt, ArchiveIOError."""
    data = place.get(names.PROOF)
    return None if data is None else decode(Proof, data, place.where(names.PROOF))


def read_holds(place: Place) -> dict[str, list[int]]:
    """When each hold was refreshed, in ns since 1970: by the store's clock, and by that of whoever reads. Of one that
    cannot be understood only the former."""
    holds = {}
    for found in place.list(names.HOLDS):
        holds[found.path] = [found.at_ns]
        with contextlib.suppress(ArchiveCorrupt, ArchiveNewerVersion):
            data = place.get(found.path)
            if data is not None:
                holds[found.path].append(decode(Hold, data, place.where(found.path)).at_ns)
    return holds
