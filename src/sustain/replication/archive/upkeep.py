"""Keeps an archive small and its promise checked, beside whoever ships to it. A thread.

Used by `destination`. Small segments become larger ones; what is too old goes; a restore is tried, in a process of its
own (`sustain archive verify`), so that its work delays no segment. None of it touches what is not acknowledged yet.

What is deleted: the manifest first says before which position nothing can be counted on (its floor), and no restore
begins there from then on. It is deleted at the next look, if no hold of a restore that began before is left. A
compacted segment is put before those it was made of are deleted; a restore that misses one looks again.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from sustain.errors import ArchiveCorrupt, SustainError
from sustain.replication.archive import names, plan, segment
from sustain.replication.archive.contents import (
    Contents,
    read_contents,
    read_holds,
    read_proof,
    read_snapshot,
)
from sustain.replication.archive.documents import Manifest, Proof
from sustain.replication.archive.names import SegmentName
from sustain.replication.archive.place import Place
from sustain.replication.archive.rooms import Rooms
from sustain.replication.urls import ArchiveUrl

LOOK_S = 60.0
HOLD_S = 600.0  # a restore refreshes its hold more often than that
_LEAST = 8  # segments that are worth compacting
_GARBAGE_S = 86400.0  # pages that no snapshot names, of other epochs


class Ships(Protocol):
    """What upkeep needs of whoever ships."""

    def manifest(self) -> Manifest | None:
        """As it was last put."""

    def raise_floor(self, floor: int) -> None:
        """Have the manifest say that what lies before `floor` may be deleted."""

    def note_proof(self, proof: Proof) -> None:
        """A restore was tried."""


class Upkeep(threading.Thread):
    """Looks every `LOOK_S` until `end`."""

    def __init__(
        self,
        archive: ArchiveUrl,
        place: Place,
        ships: Ships,
        report: Callable[[str], None],
        look_s: float = LOOK_S,
    ) -> None:
        super().__init__(name=f"sustain-upkeep-{archive.url}", daemon=True)
        self._archive = archive
        self._place = place
        self._ships = ships
        self._report = report
        self._look_s = look_s
        self._ending = threading.Event()
        self._reported: str | None = None
        self._verifying: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while not self._ending.wait(self._look_s):
            try:
                self.look()
                self._reported = None
            except SustainError as error:
                if str(error) != self._reported:
                    self._reported = str(error)
                    self._report(f"upkeep: {error}")

    def end(self) -> None:
        """Stop at the next step; a restore that is being tried is stopped too."""
        self._ending.set()
        if self._verifying is not None and self._verifying.poll() is None:
            self._verifying.terminate()
            self._verifying.wait()

    def look(self) -> None:
        """Do what is due now. Raises ArchiveError."""
        manifest = self._ships.manifest()
        if manifest is None:
            return
        contents = read_contents(self._place)
        if contents.newest.epoch != manifest.epoch:
            return  # another primary's by now; whoever ships will see it, too
        # A damaged segment stops compaction, and must stop neither proofs nor retention.
        self._verify(manifest)
        self._retain(contents, manifest)
        compact(contents, manifest, self._archive.segment_bytes, self._ending.is_set)

    def _retain(self, contents: Contents, manifest: Manifest) -> None:
        for path in delete_condemned(contents, manifest, time.time_ns()):
            contents.objects.pop(path, None)
        wanted = floor_wanted(contents, manifest, time.time_ns(), int(self._archive.keep_s * 1e9))
        if wanted is not None and wanted > manifest.floor:
            self._ships.raise_floor(wanted)

    def _verify(self, manifest: Manifest) -> None:
        """Tell of the last restore that was tried, by whomever, and have one tried when it is due."""
        proof = None
        with contextlib.suppress(ArchiveCorrupt):  # as if none had been
            proof = read_proof(self._place)
        if proof is not None:
            self._ships.note_proof(proof)
        if self._archive.verify_s is None or not manifest.snapshot:
            return
        if self._verifying is not None and self._verifying.poll() is None:
            return
        if proof is not None and time.time_ns() - proof.at_ns < self._archive.verify_s * 1e9:
            return
        words = [sys.executable, "-m", "sustain.cli", "archive", "verify", self._archive.url]
        self._verifying = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def compact(contents: Contents, manifest: Manifest, segment_bytes: int, stop: Callable[[], bool]) -> int:
    """Make one segment of many small ones, as often as it goes; how many were made. Raises ArchiveError."""
    made, rooms = 0, Rooms(keep=2)
    segments = [each for each in contents.segments() if each.epoch == manifest.epoch]
    while not stop() and (series := plan.to_compact(segments, manifest.end, segment_bytes, _LEAST)):
        merged = _merge(contents, series, rooms)
        segments = [each for each in segments if each not in series] + [merged]
        made += 1
    return made


def _merge(contents: Contents, series: list[SegmentName], rooms: Rooms) -> SegmentName:
    place, store = contents.place, contents.store
    merged = SegmentName(series[0].epoch, series[0].first, series[-1].last)
    whole = rooms.take(segment.HEADER_BYTES + merged.last - merged.first)
    high_ns = time_ns = 0
    for name in series:
        where, length = place.where(name.path), name.last - name.first
        data = place.fetch(name.path, segment.HEADER_BYTES + length, rooms)
        if data is None:
            raise ArchiveCorrupt(f"{where} is missing")
        header, body = segment.unpack(data, name, store, where)
        at = segment.HEADER_BYTES + name.first - merged.first
        whole[at : at + length] = body
        rooms.give(data)
        time_ns, high_ns = header.time_ns, max(high_ns, header.time_high_ns)
    segment.seal(whole, merged, store, time_ns, high_ns)
    place.put(merged.path, whole)
    place.delete([each.path for each in series])
    rooms.give(whole)
    return merged


def floor_wanted(contents: Contents, manifest: Manifest, now_ns: int, keep_ns: int) -> int | None:
    """Before which position nothing is needed any more; None: all is."""
    usable = plan.usable_snapshots(manifest, contents.manifests, contents.snapshots(), manifest.floor)
    ages = [plan.Age(each, contents.objects[each.path].at_ns) for each in usable]
    return plan.oldest_needed(ages, now_ns, keep_ns)


def delete_condemned(contents: Contents, manifest: Manifest, now_ns: int) -> list[str]:
    """Delete what lies before the floor that the manifest told of at an earlier look; the paths. Also pages that no
    snapshot names. Nothing while a restore holds."""
    place = contents.place
    holds = read_holds(place)
    fresh = [path for path, times in holds.items() if any(abs(now_ns - at) < HOLD_S * 1e9 for at in times)]
    if fresh:
        return []
    gone = [*holds, *(each.path for each in contents.segments() if each.last <= manifest.floor)]
    kept: set[str] = set()
    unknown = False  # whose pages are whose
    for name in contents.snapshots():
        try:
            parts = {part.path for part in read_snapshot(place, name, contents.store).parts}
        except ArchiveCorrupt:  # damaged, or deleted by another since; a proof tells
            unknown, parts = unknown or name.start >= manifest.floor, set()
        if name.start < manifest.floor:
            gone += [name.path, *(parts & set(contents.objects))]
        else:
            kept |= parts
    # Those of a copy that is being made look like garbage, too, but they are young.
    young_ns = now_ns - int(_GARBAGE_S * 1e9)
    pages = [found for found in contents.objects.values() if names.part_name(found.path)]
    if not unknown:
        gone += [each.path for each in pages if each.path not in kept and each.at_ns < young_ns]
    gone = list(dict.fromkeys(gone))
    # What names others goes first: nobody is to find a snapshot without its pages.
    gone.sort(key=lambda path: names.snapshot_name(path) is None)
    if gone:
        place.delete(gone)
    return gone
