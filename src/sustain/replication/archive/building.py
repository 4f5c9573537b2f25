"""Makes a store of one snapshot and the log behind it. Used by `restore`.

Objects are read and compared with their digests by threads, ahead of this one, which writes pages and takes in log;
that is checked by the engine record by record, and in the end each page against its sum.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from sustain._native import Replica, durability_of
from sustain.errors import ArchiveCorrupt, StoreCorrupt
from sustain.replication.archive import plan, segment
from sustain.replication.archive.documents import Part, Snapshot
from sustain.replication.archive.plan import Piece
from sustain.replication.archive.reading import ahead
from sustain.replication.archive.sources import Damaged, Pages, Sources


class TooLate(ArchiveCorrupt):
    """A snapshot that is no use for a time."""


class InGap(ArchiveCorrupt):
    """The log that a time asks for was never archived."""

    def __init__(self, first: int, behind: int) -> None:
        super().__init__(f"no log from position {first} to {behind}")
        self.first, self.behind = first, behind


class Building:
    """One store, from `snapshot` of archive number `archive`. `progress`: (bytes done, bytes in all)."""

    def __init__(
        self,
        sources: Sources,
        snapshot: Snapshot,
        archive: int,
        pool: ThreadPoolExecutor,
        progress: Callable[[int, int], None],
    ) -> None:
        self.objects = self.read_bytes = 0
        self._sources = sources
        self._snapshot = snapshot
        self._archive = archive
        self._pool = pool
        self._progress = progress
        self._total = 0

    def make(self, path: str, target: int, durability: str) -> tuple[int, int | None]:
        """(position, time of its commit) of the store that is at `path` then. Raises ArchiveCorrupt, StoreError."""
        snapshot = self._snapshot
        self._total = snapshot.size + max(0, target - snapshot.start)
        parts = ahead(self._pool, self._part, snapshot.parts)
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
            self._write_pages(replica, parts)
            while replica.end < target:
                self._sources.steadily(lambda: self._write_log(replica, target))
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

    def newest(self) -> int:
        """The last position that there is log for."""
        return plan.reach(self._sources.held(), self._snapshot.start)

    def by_position(self, position: int) -> int:
        """The last end of a commit at or before `position`."""
        snapshot = self._snapshot
        if position == snapshot.usable:
            return position
        way = list(plan.way(self._sources.held(), snapshot.start, position))
        if not way or way[-1].last < position:
            raise ArchiveCorrupt(self._missing(way, snapshot.start))
        piece = way[-1]
        body = self._sources.load(piece.held)[1]
        return segment.last_boundary(body, piece.held.name.first, position)

    def by_time(self, at_ns: int) -> int:
        """The last end of a commit before the first one that is later: halve the way to the first segment that could
        hold one, then look at commits."""
        sources, usable = self._sources, self._snapshot.usable
        if self._snapshot.time_high_ns > at_ns:
            raise TooLate(f"the snapshot at {self._snapshot.start} is later than was asked for")
        way = list(plan.way(sources.held(), usable))
        low, high = 0, len(way)
        while low < high:
            middle = (low + high) // 2
            if sources.header(way[middle].held).time_high_ns > at_ns:
                high = middle
            else:
                low = middle + 1
        position = way[low - 1].last if low else usable
        for piece in way[low:]:
            body, first = sources.load(piece.held)[1], piece.held.name.first
            end, later = segment.last_commit_by(body, first, at_ns)
            position = max(position, min(end or first, piece.last))
            if later:
                return position
        until = way[-1].last if way else usable
        if until < sources.promised():  # what follows may hold commits of that time, too
            behind = sources.gap(until)
            if behind is None:
                raise ArchiveCorrupt(self._missing(way, usable))
            raise InGap(until, behind)
        return position

    def _part(self, part: Part) -> Pages:
        return self._sources.part(self._snapshot, self._archive, part)

    def _write_pages(self, replica: Replica, parts: Iterator[Pages]) -> None:
        for memory, pieces in parts:
            for first, view, sums in pieces:
                replica.write_pages(first, view, sums)
                self._read(len(view))
                view.release()
            self._sources.rooms.give(memory)
            self.objects += 1

    def _write_log(self, replica: Replica, target: int) -> None:
        way = list(plan.way(self._sources.held(), replica.end, target))
        if not way or way[-1].last < target:
            raise ArchiveCorrupt(self._missing(way, replica.end))
        loaded = ahead(self._pool, self._sources.load, [piece.held for piece in way])
        for piece, (_, body) in zip(way, loaded, strict=True):
            self._apply(replica, piece, body)
            self._sources.rooms.give(body)
            self.objects += 1

    def _missing(self, way: list[Piece], start: int) -> str:
        return f"log from position {way[-1].last if way else start} on is missing or damaged"

    def _apply(self, replica: Replica, piece: Piece, body: memoryview) -> None:
        """Take in the log bytes of `piece`, as far as they are behind what the replica has."""
        name = piece.held.name
        at, end = replica.end - name.first, piece.last - name.first
        where = self._sources.contents[piece.held.archive].place.where(name.path)
        try:
            with body[at:end] as part:
                replica.receive(part)
        except StoreCorrupt as error:
            raise Damaged(f"{where} does not continue the log: {error}", piece.held) from None
        if replica.end != piece.last:
            replica.discard_partial()
            raise Damaged(f"{where}: no commit ends at {piece.last}", piece.held)
        self._read(end - at)

    def _read(self, size: int) -> None:
        self.read_bytes += size
        self._progress(self.read_bytes, self._total)
