"""Ships a store's log to an archive, from a look at what is there to the first failure.

Used by `destination`. Log is gathered until there is a segment's worth or its oldest commit has waited long enough,
because object stores are paid by the request; it is put at once while everything has to get away (a drain, a power
failure). Several puts are on their way at a time; a position counts as acknowledged when all before it is there, a
usable snapshot too, and the manifest says so.

Snapshots are taken between segments (`copy`). The log is pinned for an archive only if it is required, or while a
snapshot needs it: what is overrun gets a new snapshot, and a gap that the manifest tells of.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NoReturn, Protocol

from sustain._native import LogTail
from sustain.errors import PeerUnreachable, SustainError
from sustain.replication.archive import names, proofs
from sustain.replication.archive.arrival import Arrival, newer_epoch
from sustain.replication.archive.copy import Copy, point
from sustain.replication.archive.cutting import Cut, Cutter
from sustain.replication.archive.documents import Manifest, Proof, Run
from sustain.replication.archive.place import Place
from sustain.replication.archive.promise import Promise
from sustain.replication.archive.upload import PutMeter, Uploads
from sustain.replication.outlet import LinkConfig, Owner
from sustain.replication.records import COMMIT_BYTES, chain_at, commit_at
from sustain.replication.urls import ArchiveUrl
from sustain.replication.wire import Hello

COPY_SHARE = 10  # after an overrun, copying takes at most one part in so many of the time
_PARALLEL = 4
_POLL_S = 0.02  # while commits come
_IDLE_S = 0.25
_PATIENCE_S = 2.0  # for puts that are on their way at the end
_SAY_S = 0.5
_PROBE_BYTES = 4 << 20


class Keeper(Protocol):
    """What outlives a shipping: the destination. Attributes as of `replication.destination.Destination`."""

    peer: ArchiveUrl
    slot: int
    acked: int | None
    pinned: int | None
    needs_snapshot: bool
    last_moved: float
    delivered: bool
    copied_s: float  # how long the last copy took
    overrun: bool
    whole: bool
    log: LogTail
    config: LinkConfig
    owner: Owner
    meter: PutMeter
    dropped: threading.Event

    def show(self, state: str) -> None:
        """In the control words."""


class Shipping:
    """From the look at what is there to the first failure."""

    def __init__(self, destination: Keeper, place: Place, hello: Hello, arrival: Arrival) -> None:
        self.uploads = Uploads(place, _PARALLEL, destination.meter)
        self._destination = destination
        self._archive = destination.peer
        self._log = destination.log
        self._owner = destination.owner
        self._place = place
        self._hello = hello
        self._arrival = arrival
        self._runs = list(arrival.runs)
        self._floor, self._floor_ns = arrival.floor, arrival.floor_ns
        self._wanted_floor = 0
        self._time_high_ns = arrival.time_high_ns
        self._cutter = Cutter(
            self._log,
            hello,
            self._archive.url,
            self._archive.segment_bytes,
            self.uploads.rooms,
            arrival.time_high_ns,
        )
        self._time_ns = arrival.time_ns
        self._chain = 0
        self._whole = False  # a usable snapshot is there
        self._snapshot = arrival.snapshot
        self._cut = 0  # log before it was handed to uploads
        self._there = 0  # log before it has arrived
        self._said = -1  # and the manifest says so
        self._said_s = 0.0  # when
        self._log_bytes = hello.log_size
        self._since: float | None = None  # since when there is log that was not cut
        self._bytes = 0
        self._copy: Copy | None = None
        self._parts: Iterator[tuple[str, memoryview]] | None = None
        self._parts_out = 0  # on their way
        self._copy_due_s = 0.0
        self._copied_end = -1  # what has not changed since is not copied again
        self._promise = Promise(place)
        self._cut_limit = min(self._archive.segment_bytes, max(hello.log_size // 8, 4096))

    def run(self) -> None:
        """Raises SustainError."""
        self._begin()
        while not self._owner.halt.is_set():
            if self._destination.dropped.is_set():
                self._overrun("the log is full of what this archive does not take")
            self.uploads.settle()
            if self._cut_if_due() or self._copy_if_due():
                continue  # first keep all puts going
            if self._acknowledge_due:
                self._acknowledge()
            else:
                self._wait()

    @property
    def _acknowledge_due(self) -> bool:
        """While puts follow one another, not after each: a listing and a manifest would take as long as a put."""
        if self._said == self._there and self._wanted_floor <= self._floor:
            return False
        held = self._there - self._said >= self._log_bytes // 4  # commits may be waiting for room in the log
        return not self.uploads.busy or held or time.monotonic() - self._said_s >= _SAY_S

    # beginning

    def _begin(self) -> None:
        destination, arrival = self._destination, self._arrival
        if arrival.lsn is not None and arrival.snapshot:
            self._whole = destination.whole = True
            destination.needs_snapshot = False
            destination.show("streaming")
            self._go_on(arrival.lsn)
            self._copy_due_s = time.monotonic() + self._until_next_copy_s()
        else:
            why = arrival.why or "there is no snapshot that the log there continues"
            destination.config.report(f"{self._archive.url} gets a snapshot: {why}")
            destination.show("snapshot")
            start, _, chain = self._begin_copy()
            if arrival.lsn is not None and self._runs[-1].first <= start:
                self._go_on(arrival.lsn)
            else:
                self._cut = self._there = start
                self._chain = chain
                self._time_ns = self._commit_time_ns(start)
                self._time_high_ns = self._cutter.high_ns = max(arrival.time_high_ns, self._time_ns)
                self._runs = [each for each in self._runs if each.end < start] + [Run(start, start)]
        if self._owner.power_watched:
            self._probe()
        while self._cut_if_due() or self._copy_if_due():
            pass  # while puts are on their way, the manifest is
        self._acknowledge()

    def _go_on(self, lsn: int) -> None:
        log = self._log
        self._cut = self._there = lsn
        self._chain = chain_at(log.log_view, log.tail(), log.committed(), lsn) or 0

    def _commit_time_ns(self, lsn: int) -> int:
        """Of the commit that ends at `lsn`; of the newest where the log does not go back that far."""
        at = lsn - COMMIT_BYTES
        if at >= self._log.tail():
            with self._log.log_view(at, COMMIT_BYTES) as view:
                commit = commit_at(view, 0, at)
            if commit is not None:
                return commit.time_ns
        return self._log.words()["commit_time_ns"]

    def _until_next_copy_s(self) -> float:
        """By the age of the newest snapshot there."""
        ages = [found.at_ns for found in self._place.list() if names.snapshot_name(found.path)]
        age_s = (time.time_ns() - max(ages, default=0)) / 1e9
        return max(0.0, self._archive.snapshot_s - max(0.0, age_s))

    def _probe(self) -> None:
        """Find out how fast puts are, where a battery is watched and nothing has been put yet."""
        if self._destination.meter.estimate(time.monotonic()) is None:
            path = "probe"
            for _ in range(2):
                begun = time.monotonic()
                self._place.put(path, bytes(_PROBE_BYTES))
                self._destination.meter.note(_PROBE_BYTES, time.monotonic() - begun)
            self._place.delete([path])

    # segments

    def _cut_if_due(self) -> bool:
        """Hand one segment to uploads, if it is time and there is room; whether it did."""
        committed = self._log.committed()
        copy_end = self._copy.usable if self._copy is not None else None
        if copy_end is not None and copy_end > self._cut:
            committed = copy_end  # a segment ends where the copy is usable
        behind = committed - self._cut
        if behind < 0:
            raise PeerUnreachable(f"{self._archive.url}: the log has gone back", hint="it begins again")
        if not behind:
            self._since = None
            return False
        now_s = time.monotonic()
        self._since = now_s if self._since is None else self._since
        waited = now_s - self._since >= self._archive.every_s
        due = behind >= self._cut_limit or waited or self._hurried or committed == copy_end
        if not due or not self.uploads.room:
            return False
        self._cut_to(committed)
        self._since = None if self._cut >= committed else now_s
        return True

    @property
    def _hurried(self) -> bool:
        """All has to get away, or nothing more comes: the application has closed its store."""
        return self._owner.power_fails or self._owner.draining or not self._log.words()["writer_pid"]

    def _cut_to(self, committed: int) -> None:
        cut = self._cutter.cut(self._cut, committed)
        if cut is None:
            self._overrun("the log was trimmed before it was archived")
        self._cut = cut.name.last
        if self._copy is not None and self._cut == self._copy.usable:
            self._copy.time_high_ns = cut.high_ns
        size = len(cut.packed)
        self.uploads.submit(cut.name.path, cut.packed, lambda: self._arrived(cut, size))
        self._log.update_slot(self._destination.slot, sent=self._cut)

    def _arrived(self, cut: Cut, size: int) -> None:
        self._there = cut.name.last
        self._time_ns, self._chain, self._time_high_ns = cut.time_ns, cut.chain, cut.high_ns
        self._runs[-1] = Run(self._runs[-1].first, self._there)
        self._bytes += size

    # acknowledging

    def _acknowledge(self) -> None:
        """Say in the manifest what is there; then it counts. Not when a newer primary has come."""
        destination = self._destination
        lower = self._floor < self._wanted_floor
        if lower:
            self._floor, self._floor_ns = self._wanted_floor, time.time_ns()
        if lower or self._said != self._there:
            self._put_manifest()
        if self._copy_is_there:
            self._finish_copy()
        newer_epoch(self._place, self._hello.epoch)  # last: a pause before it must not hide one
        destination.delivered = True
        destination.last_moved = time.monotonic()
        if self._whole:
            destination.acked = self._said
            self._log.update_slot(
                destination.slot,
                acked=self._said,
                acked_commit_time_ns=self._time_ns or None,
                bytes_sent=self._bytes,
            )
        self._repin()
        self._owner.moved()

    def _put_manifest(self) -> None:
        hello = self._owner.hello()
        if hello.epoch != self._hello.epoch:
            raise PeerUnreachable(
                f"{self._archive.url}: epoch {hello.epoch} has begun here", hint="it begins again"
            )
        manifest = Manifest(
            store=hello.store.hex(),
            replica=hello.replica.hex(),
            name=hello.name,
            epoch=hello.epoch,
            history=hello.history,
            image_size=hello.image_size,
            log_size=hello.log_size,
            durability=hello.durability,
            runs=[each for each in self._runs if each.end > self._floor or each is self._runs[-1]],
            acked=self._there if self._whole else self._arrival.acked,
            chain=self._chain,
            time_ns=self._time_ns,
            time_high_ns=self._time_high_ns,
            written_ns=time.time_ns(),
            snapshot=self._snapshot,
            floor=self._floor,
            floor_ns=self._floor_ns,
        )
        self._promise.put(manifest)
        self._said, self._said_s = self._there, time.monotonic()

    def _repin(self) -> None:
        needed = self._archive.required or self._copy is not None
        self._destination.pinned = self._there if needed else None
        self._owner.repin()

    def _overrun(self, why: str) -> NoReturn:
        self._destination.needs_snapshot = self._destination.overrun = True
        raise PeerUnreachable(
            f"{self._archive.url}: {why}", hint="a larger log, or ?required=1, keeps it longer"
        )

    # snapshots

    def _begin_copy(self) -> tuple[int, int, int]:
        """Pin what a copy needs, where that is not in the archive already; then begin it. Where its log begins."""
        log, destination = self._log, self._destination
        if log.superblock()["arriving"]:
            raise PeerUnreachable(
                f"{self._archive.url}: the store here has not arrived yet", hint="it is tried again"
            )
        recoveries = log.words()["recoveries"]
        begin = point(log)
        while not self._whole:
            destination.pinned = begin[0]
            self._owner.repin()
            if log.tail() <= begin[0]:
                break
            begin = point(log)
        self._copy = Copy(log, self._hello, begin, recoveries)
        self._parts, self._parts_out = self._copy.parts(self.uploads.rooms), 0
        return begin

    def _copy_if_due(self) -> bool:
        """Put one more part of a copy, or begin one; whether it did."""
        if self._copy is None:
            if time.monotonic() < self._copy_due_s or self._said <= self._copied_end:
                return False
            if self._hurried or self._log.superblock()["arriving"]:
                return False
            if point(self._log)[0] < self._runs[-1].first:
                return False
            self._begin_copy()
        if self._parts is None or not self.uploads.room:
            return False
        assert self._copy is not None
        part = next(self._parts, None)
        if part is None:
            self._parts = None
            if self._copy.usable == self._cut:
                self._copy.time_high_ns = self._cutter.high_ns
            return True
        path, packed = part
        self._parts_out += 1
        self.uploads.submit(path, packed, self._part_arrived)
        self._log.update_slot(
            self._destination.slot,
            snapshot_done_bytes=self._copy.done_bytes,
            snapshot_total_bytes=max(self._copy.done_bytes, self._log.image_size()),
        )
        self._destination.last_moved = time.monotonic()
        return True

    def _part_arrived(self) -> None:
        self._parts_out -= 1

    @property
    def _copy_is_there(self) -> bool:
        """All its pages, and its log up to where it is usable. Segments may be on their way all the time."""
        copy = self._copy
        if copy is None or copy.usable is None or self._parts is not None or self._parts_out:
            return False
        return self._said >= copy.usable

    def _finish_copy(self) -> None:
        """Make a copy count, whose pages and log are there."""
        copy, destination = self._copy, self._destination
        assert copy is not None
        assert copy.usable is not None
        path, data = copy.document()
        copy.named = True
        self._place.put(path, data)
        self._snapshot, first = path, not self._whole
        self._whole = destination.whole = True
        self._put_manifest()
        destination.copied_s = time.monotonic() - copy.begun_s
        pause_s = max(self._archive.snapshot_s, destination.copied_s * COPY_SHARE)
        self._copy_due_s = time.monotonic() + pause_s
        self._copied_end, self._copy = copy.usable, None
        if first:
            destination.needs_snapshot = False
            destination.show("streaming")
        destination.config.report(f"{self._archive.url} has a snapshot, at position {copy.usable}")

    def give_up(self) -> None:
        """After the end: forget what is on its way, and delete the pages of a copy that nothing names, which would take
        the room of the next one."""
        self.uploads.forsake(_PATIENCE_S)
        copy, self._copy = self._copy, None
        if copy is not None and not copy.named and not self._owner.halt.is_set():
            with contextlib.suppress(SustainError):
                self._place.delete(copy.paths)

    # waiting

    def _wait(self) -> None:
        if self._copy_is_there:
            self._acknowledge()
        elif self.uploads.busy:
            self.uploads.stirred.wait(_POLL_S if self.uploads.room else _IDLE_S)
        elif self._since is not None or self._copy is not None:
            self._owner.halt.wait(_POLL_S)
        else:
            self._log.wait_commit(self._cut, _IDLE_S)

    def manifest(self) -> Manifest | None:
        """The manifest as it was last put. From any thread."""
        return self._promise.manifest()

    def note_proof(self, proof: Proof) -> None:
        """For `sustain status`. From any thread."""
        try:
            proofs.note(self._owner.store, self._archive.url, proof)
        except OSError as error:
            self._destination.config.report(f"{proofs.path_of(self._owner.store)}: {error.strerror}")

    def raise_floor(self, floor: int) -> None:
        """Have the manifest say that what lies before `floor` may be deleted. From any thread."""
        self._wanted_floor = max(self._wanted_floor, floor)
