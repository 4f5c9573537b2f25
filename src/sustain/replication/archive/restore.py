"""Restores a store from archives, to the newest position or to an older one.

Used by `sustain restore` and `sustain archive verify`. A snapshot, then the log behind it, both checked: the objects by
their digests, the log record by record by the engine, in the end every page against its sum. Of several archives each
object is taken from the first that has it whole; what was damaged or missing is told, whatever came of it.

The copy is made at a path of its own. Until `Restored` is given back nothing may use it.
"""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sustain._native import Replica, durability_of
from sustain.errors import (
    ArchiveCorrupt,
    ArchiveError,
    ConfigError,
    NotRestorable,
    StoreCorrupt,
    SustainError,
)
from sustain.replication.archive import pages, plan, segment
from sustain.replication.archive.contents import Contents, read_contents, read_snapshot
from sustain.replication.archive.documents import Manifest, Part, Snapshot
from sustain.replication.archive.names import SnapshotName
from sustain.replication.archive.place import Place
from sustain.replication.archive.plan import Held, Piece
from sustain.replication.archive.reading import AHEAD, ahead, holding

_LOOKS = 3  # at an archive that misses what was there a moment ago


@dataclass
class Restored:
    """What was restored. Positions in bytes, times in ns since 1970; None: unknown."""

    path: str
    store: str
    epoch: int
    position: int
    time_ns: int | None
    newest: int  # position that the archives hold
    urls: list[str]
    snapshot: str
    read_bytes: int = 0
    objects: int = 0
    duration_s: float = 0.0
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wish:
    """Which position: the newest, the last commit at or before `position`, or the last one before the first that is
    later than `at_ns`."""

    position: int | None = None
    at_ns: int | None = None

    @property
    def newest(self) -> bool:
        return self.position is None and self.at_ns is None


class Restore:
    """One restore. `report` gets lines for people, `progress` (bytes done, bytes in all)."""

    def __init__(
        self,
        places: list[Place],
        report: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self.damaged: list[str] = []
        self.objects = self.read_bytes = 0
        self._places = places
        self._report = report
        self._progress = progress
        self._contents: dict[int, Contents] = {}  # by number of the place
        self._bad: set[Held] = set()
        self._gaps: list[tuple[int, int]] = []
        self._newest: Manifest | None = None
        self._total = 0

    def run(self, path: str, wish: Wish, durability: str) -> Restored:
        """Make the store at `path`, which nothing may be at. Raises ArchiveError, StoreError, ConfigError."""
        begun = time.monotonic()
        with holding(self._places, self._report), ThreadPoolExecutor(AHEAD, "sustain-restore") as pool:
            self._look()
            newest = self.newest
            if wish.position is not None and wish.position > (until := self._held_until()):
                raise NotRestorable(
                    f"{newest.name or 'the store'}: position {wish.position} is later than what is archived: "
                    f"{until} is the last",
                    hint="leave --position out for the newest",
                )
            self._miss_snapshots()
            tried = self._candidates(wish)
            for name, archive in tried:
                if not self._leads_on(name, archive, wish):
                    continue
                try:
                    snapshot = read_snapshot(self._contents[archive].place, name, bytes.fromhex(newest.store))
                    position, time_ns = self._build(path, snapshot, archive, wish, durability, pool)
                except _TooLate:
                    continue
                except ArchiveCorrupt as error:
                    self._note(str(error))
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    continue
                return Restored(
                    path,
                    newest.store,
                    newest.epoch,
                    position,
                    time_ns,
                    self._held_until(),
                    [each.place.url for each in self._contents.values()],
                    self._contents[archive].place.where(name.path),
                    self.read_bytes,
                    self.objects,
                    time.monotonic() - begun,
                    self.damaged,
                )
            raise self._hopeless(wish)

    @property
    def newest(self) -> Manifest:
        """That of the newest epoch, and of those the one that reaches furthest."""
        assert self._newest is not None
        return self._newest

    # what there is

    def _look(self) -> None:
        """Read what is in each archive; at least one must be readable."""
        failed: SustainError | None = None
        for number, place in enumerate(self._places):
            try:
                contents = read_contents(place)
            except ArchiveError as error:
                failed = error
                self._note(str(error))
                continue
            for text in contents.damaged:
                self._note(text)
            self._contents[number] = contents
        if not self._contents:
            assert failed is not None
            raise failed
        stores = {each.newest.store: each.place.url for each in self._contents.values()}
        if len(stores) > 1:
            raise ConfigError(
                f"{' and '.join(stores.values())} are archives of different stores",
                hint="name archives of one store",
            )
        self._newest = max(
            (each.newest for each in self._contents.values()), key=lambda each: (each.epoch, each.end)
        )

    def _held(self) -> list[Held]:
        found: list[Held] = []
        for number, contents in self._contents.items():
            found += plan.counted(number, self.newest, contents.manifests, contents.segments())
        return [each for each in found if each not in self._bad]

    def _candidates(self, wish: Wish) -> list[tuple[SnapshotName, int]]:
        """Snapshots to begin with, and in which archive each is: the best first."""
        found: list[tuple[SnapshotName, int]] = []
        for number, contents in self._contents.items():
            floor = contents.newest.floor
            for name in plan.usable_snapshots(self.newest, contents.manifests, contents.snapshots(), floor):
                if wish.position is None or name.usable <= wish.position:
                    found.append((name, number))
        reaches = {name: plan.reach(self._held(), name.start) for name, _ in found} if wish.newest else {}
        return sorted(
            found, key=lambda each: (-reaches.get(each[0], 0), -each[0].start, -each[0].usable, each[1])
        )

    def _leads_on(self, name: SnapshotName, archive: int, wish: Wish) -> bool:
        """Whether there is log from this snapshot to what is wished for."""
        goal = wish.position if wish.position is not None else self._promised()
        if wish.at_ns is not None:
            goal = name.usable
        for _ in range(_LOOKS):
            if plan.reach(self._held(), name.start, self._bad) >= max(goal, name.usable):
                return True
            self._look()  # compaction replaces segments
        missing = plan.reach(self._held(), name.start, self._bad)
        if (behind := self._gap(missing)) is None:
            self._note(
                f"{self._contents[archive].place.url}: log from position {missing} on is missing "
                f"(needed from the snapshot at {name.start} up to {max(goal, name.usable)})"
            )
        else:
            self._gaps.append((missing, behind))
        return False

    def _gap(self, missing: int) -> int | None:
        """Where the log goes on again, when the archive had to leave out what begins at `missing`. None: it promised
        it."""
        manifests = [each for contents in self._contents.values() for each in contents.manifests.values()]
        runs = [run for each in manifests if plan.cut(self.newest, each) >= missing for run in each.runs]
        if any(run.first <= missing < run.end for run in runs):
            return None
        return min((run.first for run in runs if run.first > missing), default=None)

    def _promised(self) -> int:
        """Up to where the newest primary was told that its log is archived."""
        same = [
            each.newest
            for each in self._contents.values()
            if plan.cut(self.newest, each.newest) >= each.newest.end
        ]
        return max(each.end for each in same)

    def _miss_snapshots(self) -> None:
        """Note where the newest snapshot is missing that a manifest names; an older one may serve."""
        for contents in self._contents.values():
            path = contents.newest.snapshot
            if path and path not in contents.objects and contents.place.get(path) is None:
                self._note(f"{contents.place.where(path)} is missing")

    def _held_until(self) -> int:
        held = self._held()
        return max((plan.reach(held, name.start) for name, _ in self._candidates(Wish())), default=0)

    def _hopeless(self, wish: Wish) -> ArchiveError:
        urls = ", ".join(each.place.url for each in self._contents.values())
        if self.damaged:
            return ArchiveCorrupt(
                f"{urls}: cannot be restored: {'; '.join(self.damaged[:5])}",
                hint="name another archive of the same store with --also, or an older --position",
            )
        usable = [name.usable for name, _ in self._candidates(Wish())]
        if not usable:
            return NotRestorable(
                f"{urls}: no snapshot is complete there yet", hint="let the first one finish"
            )
        if self._gaps:
            first, behind = max(self._gaps)
            return NotRestorable(
                f"{urls}: the log from position {first} to {behind} was never archived: it was overrun",
                hint=f"name a position up to {first}, or from the next snapshot on",
            )
        what = "a moment" if wish.position is None else f"position {wish.position}"
        first_kept = f"the first position that can be restored is {min(usable)}"
        return NotRestorable(
            f"{urls}: {what} older than all that is kept: {first_kept}", hint="ask for a later one"
        )

    def _note(self, text: str) -> None:
        if text not in self.damaged:
            self.damaged.append(text)
            self._report(text)

    # making it

    def _build(
        self,
        path: str,
        snapshot: Snapshot,
        archive: int,
        wish: Wish,
        durability: str,
        pool: ThreadPoolExecutor,
    ) -> tuple[int, int | None]:
        """(position, time of its commit) of the store that is at `path` then."""
        target = self._target(snapshot, wish)
        self._total = snapshot.size + max(0, target - snapshot.start)
        replica = Replica.create_for_snapshot(
            path,
            snapshot.image_size,
            snapshot.log_size,
            durability_of(path) if durability == "auto" else durability,
            bytes.fromhex(snapshot.store),
            snapshot.epoch,
            [(epoch, start) for epoch, start in snapshot.history],
            snapshot.start,
            snapshot.start_seq,
            snapshot.start_chain,
        )
        try:
            self._write_pages(replica, snapshot, archive, pool)
            self._write_log(replica, target, pool)
            if replica.end < snapshot.usable:
                raise ArchiveCorrupt(f"the log ends at {replica.end}, before the snapshot is usable")
            time_ns = replica.commit_time_ns or None
            try:
                replica.finish_snapshot()
            except StoreCorrupt as error:
                raise ArchiveCorrupt(f"the restored store is not whole: {error}") from None
            return replica.end, time_ns
        finally:
            replica.close()

    def _target(self, snapshot: Snapshot, wish: Wish) -> int:
        """The position to restore, an end of a commit."""
        held = self._held()
        if wish.newest:
            return plan.reach(held, snapshot.start, self._bad)
        if wish.position is not None:
            way = list(plan.way(held, snapshot.start, wish.position, self._bad))
            if not way or wish.position == snapshot.usable:
                return snapshot.usable
            piece = way[-1]
            body = self._load(piece.held)[1]
            return segment.last_boundary(body, piece.held.name.first, wish.position)
        assert wish.at_ns is not None
        if snapshot.time_high_ns > wish.at_ns:
            raise _TooLate(f"the snapshot at {snapshot.start} is later than was asked for")
        return self._target_by_time(snapshot, wish.at_ns)

    def _target_by_time(self, snapshot: Snapshot, at_ns: int) -> int:
        """Halve the way to the first segment that could hold a later commit, then look at commits."""
        way = list(plan.way(self._held(), snapshot.usable, without=self._bad))
        low, high = 0, len(way)
        while low < high:
            middle = (low + high) // 2
            if self._header(way[middle].held).time_high_ns > at_ns:
                high = middle
            else:
                low = middle + 1
        position = way[low - 1].last if low else snapshot.usable
        for piece in way[low:]:
            body = self._load(piece.held)[1]
            first = piece.held.name.first
            end, later = segment.last_commit_by(body, first, at_ns)
            position = max(position, min(end or first, piece.last))
            if later:
                break
        return position

    def _write_pages(
        self, replica: Replica, snapshot: Snapshot, archive: int, pool: ThreadPoolExecutor
    ) -> None:
        place, store = self._contents[archive].place, bytes.fromhex(snapshot.store)
        count = snapshot.image_size // pages.PAGE_BYTES

        def read(part: Part) -> list[tuple[int, memoryview]]:
            where, data = place.where(part.path), place.get(part.path)
            if data is None:
                raise ArchiveCorrupt(f"{where} is missing")
            if len(data) != part.size:
                raise ArchiveCorrupt(f"{where} has {len(data)} bytes, not {part.size}")
            return list(pages.unpack(data, store, snapshot.copy, count, where))

        for runs in ahead(pool, read, snapshot.parts):
            for first, view in runs:
                replica.write_pages(first, view)
                self._read(len(view))
            self.objects += 1

    def _write_log(self, replica: Replica, target: int, pool: ThreadPoolExecutor) -> None:
        looks = 0
        while replica.end < target:
            way = list(plan.way(self._held(), replica.end, target, self._bad))
            if not way or way[-1].last < target:
                raise ArchiveCorrupt(
                    f"log from position {way[-1].last if way else replica.end} on is missing or damaged"
                )
            try:
                loaded = ahead(pool, self._load, [piece.held for piece in way])
                for piece, (_, body) in zip(way, loaded, strict=True):
                    self._apply(replica, piece, body)
                    self.objects += 1
            except _Gone as error:
                looks += 1
                if looks <= _LOOKS:
                    self._look()  # a compacted one has taken its place
                    if error.held in self._held():
                        self._bad.add(error.held)
                        self._note(str(error))
                    continue
                self._bad.add(error.held)
                self._note(str(error))
            except _Damaged as error:
                self._bad.add(error.held)
                self._note(str(error))

    def _apply(self, replica: Replica, piece: Piece, body: memoryview) -> None:
        """Take in the log bytes of `piece`, as far as they are behind what the replica has."""
        at = replica.end - piece.held.name.first
        end = piece.last - piece.held.name.first
        try:
            while at < end:
                with replica.buffer(min(end - at, 8 << 20)) as room:
                    length = len(room)
                    room[:] = body[at : at + length]
                replica.advance(length)
                at += length
        except StoreCorrupt as error:
            where = self._contents[piece.held.archive].place.where(piece.held.name.path)
            raise _Damaged(f"{where} does not continue the log: {error}", piece.held) from None
        if replica.end != piece.last:
            where = self._contents[piece.held.archive].place.where(piece.held.name.path)
            replica.discard_partial()
            raise _Damaged(f"{where}: no commit ends at {piece.last}", piece.held)
        self._read(end)

    def _read(self, size: int) -> None:
        self.read_bytes += size
        self._progress(self.read_bytes, self._total)

    def _load(self, held: Held) -> tuple[segment.Header, memoryview]:
        place = self._contents[held.archive].place
        where = place.where(held.name.path)
        data = place.get(held.name.path)
        if data is None:
            raise _Gone(f"{where} is missing", held)
        try:
            return segment.unpack(data, held.name, bytes.fromhex(self.newest.store), where)
        except ArchiveCorrupt as error:
            raise _Damaged(str(error), held) from None

    def _header(self, held: Held) -> segment.Header:
        place = self._contents[held.archive].place
        data = place.get(held.name.path, 0, segment.HEADER_BYTES)
        where = place.where(held.name.path)
        if data is None:
            raise _Gone(f"{where} is missing", held)
        return segment.read_header(data, held.name, bytes.fromhex(self.newest.store), where)


class _Damaged(ArchiveCorrupt):
    """One segment is no good."""

    def __init__(self, message: str, held: Held) -> None:
        super().__init__(message)
        self.held = held


class _Gone(_Damaged):
    """One segment was there when the archive was listed."""


class _TooLate(ArchiveCorrupt):
    """A snapshot that is no use for a time."""
