"""What several archives of one store hold together, and objects out of them. Used by `restore` and `building`.

Each object is taken from the first archive that has it whole. What is damaged or missing is noted, and from then on
done without; what was compacted away meanwhile is no damage, so a look at the archives comes first.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from sustain._native import page_sums
from sustain.errors import ArchiveCorrupt, ArchiveError, ArchiveIOError, ConfigError, SustainError
from sustain.replication.archive import names, pages, plan, segment
from sustain.replication.archive.contents import Contents, read_contents, read_snapshot
from sustain.replication.archive.documents import Manifest, Part, Snapshot
from sustain.replication.archive.names import SnapshotName
from sustain.replication.archive.place import Place
from sustain.replication.archive.plan import Held
from sustain.replication.archive.rooms import Rooms

_REPLACED = 20  # times that segments may be compacted away under one step of a restore
_SEGMENT_LIMIT_BYTES = 1 << 30  # or one commit of the whole log
_Result = TypeVar("_Result")
Pages = tuple[
    memoryview, list[tuple[int, memoryview, bytes]]
]  # memory; (first page, pages, their sums) in it


class Damaged(ArchiveCorrupt):
    """One segment is no good."""

    def __init__(self, message: str, held: Held) -> None:
        super().__init__(message)
        self.held = held


class Gone(Damaged):
    """One segment was there when the archive was listed."""


class Sources:
    """Archives of one store. `report` gets lines for people."""

    def __init__(self, places: list[Place], report: Callable[[str], None], rooms: Rooms) -> None:
        self.damaged: list[str] = []
        self.contents: dict[int, Contents] = {}  # by number of the place
        self.bad: set[Held] = set()
        self.rooms = rooms
        self._places = places
        self._report = report
        self._newest: Manifest | None = None

    def note(self, text: str) -> None:
        """Something is damaged or missing."""
        if text not in self.damaged:
            self.damaged.append(text)
            self._report(text)

    def look(self) -> None:
        """Read what is in each archive. Raises ArchiveError unless one is readable, ConfigError for several stores."""
        failed: SustainError | None = None
        for number, place in enumerate(self._places):
            try:
                contents = read_contents(place)
            except ArchiveError as error:
                failed = error
                self.note(str(error))
                continue
            for text in contents.damaged:
                self.note(text)
            self.contents[number] = contents
        if not self.contents:
            assert failed is not None
            raise failed
        stores = {each.newest.store: each.place.url for each in self.contents.values()}
        if len(stores) > 1:
            raise ConfigError(
                f"{' and '.join(stores.values())} are archives of different stores",
                hint="name archives of one store",
            )
        self._newest = max(
            (each.newest for each in self.contents.values()), key=lambda each: (each.epoch, each.end)
        )

    @property
    def newest(self) -> Manifest:
        """That of the newest epoch, and of those the one that reaches furthest."""
        assert self._newest is not None
        return self._newest

    @property
    def store(self) -> bytes:
        return bytes.fromhex(self.newest.store)

    def held(self) -> list[Held]:
        """Segments that count, without those that are known to be bad."""
        found: list[Held] = []
        for number, contents in self.contents.items():
            found += plan.counted(number, self.newest, contents.manifests, contents.segments())
        return [each for each in found if each not in self.bad]

    def snapshots(self) -> list[tuple[SnapshotName, int]]:
        """Those that count, and in which archive each is."""
        return [
            (name, number)
            for number, contents in self.contents.items()
            for name in plan.usable_snapshots(
                self.newest, contents.manifests, contents.snapshots(), contents.newest.floor
            )
        ]

    def reach(self, snapshot: SnapshotName) -> int:
        """Up to where there is log behind it."""
        return plan.reach(self.held(), snapshot.start)

    def promised(self) -> int:
        """Up to where the newest primary was told that its store can be restored. Log behind a gap does not count
        before it has a snapshot."""
        same = [
            each.newest
            for each in self.contents.values()
            if plan.cut(self.newest, each.newest) >= each.newest.acked
        ]
        return max((each.acked for each in same), default=0)

    def gap(self, missing: int) -> int | None:
        """Where the log goes on again, when the archive had to leave out what begins at `missing`. None: it promised
        it."""
        manifests = [each for contents in self.contents.values() for each in contents.manifests.values()]
        runs = [run for each in manifests if plan.cut(self.newest, each) >= missing for run in each.runs]
        if any(run.first <= missing < run.end for run in runs):
            return None
        return min((run.first for run in runs if run.first > missing), default=None)

    def note_missing_snapshots(self) -> None:
        """Where the newest snapshot is missing that a manifest names; an older one may serve."""
        for contents in self.contents.values():
            path = contents.newest.snapshot
            if names.snapshot_name(path) is None or path in contents.objects:
                continue
            if contents.place.get(path) is None:
                self.note(f"{contents.place.where(path)} is missing")

    # objects

    def steadily(self, action: Callable[[], _Result]) -> _Result:
        """What `action` gives, once more without each segment that it finds to be bad, and after a look at the archives
        where one was compacted away under it. Raises what else it raises."""
        replaced = 0
        while True:
            try:
                return action()
            except Damaged as error:
                if isinstance(error, Gone) and replaced < _REPLACED:
                    self.look()
                    if error.held not in self.held():
                        replaced += 1
                        continue
                self.bad.add(error.held)
                self.note(str(error))

    def snapshot(self, name: SnapshotName, archive: int) -> Snapshot:
        """Its document. Raises ArchiveCorrupt, ArchiveIOError."""
        place = self.contents[archive].place
        with self._elsewhere():
            found = read_snapshot(place, name, self.store)
        if (found.image_size, found.log_size) != (self.newest.image_size, self.newest.log_size):
            raise ArchiveCorrupt(f"{place.where(name.path)} is of a store of other sizes")
        return found

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[None]:
        """Where another archive may have it, an object that cannot be read is one that is damaged."""
        try:
            yield
        except ArchiveIOError as error:
            if len(self.contents) > 1:
                raise ArchiveCorrupt(str(error)) from None
            raise

    def part(self, snapshot: Snapshot, archive: int, part: Part) -> Pages:
        """Raises ArchiveCorrupt, ArchiveIOError."""
        place = self.contents[archive].place
        where = place.where(part.path)
        with self._elsewhere():
            data = place.fetch(part.path, part.size, self.rooms)
        if data is None:
            raise ArchiveCorrupt(f"{where} is missing")
        count = snapshot.image_size // pages.PAGE_BYTES
        runs = pages.unpack(data, self.store, snapshot.copy, count, where)
        return data, [(first, view, page_sums(first, view)) for first, view in runs]

    def load(self, held: Held) -> tuple[segment.Header, memoryview]:
        """(header, log bytes). Raises Damaged, Gone, ArchiveIOError."""
        place, name = self.contents[held.archive].place, held.name
        where, length = place.where(name.path), name.last - name.first
        if length > max(_SEGMENT_LIMIT_BYTES, self.newest.log_size):
            raise Damaged(f"{where} is larger than any segment", held)
        try:
            with self._elsewhere():
                data = place.fetch(name.path, segment.HEADER_BYTES + length, self.rooms)
            if data is None:
                raise Gone(f"{where} is missing", held)
            return segment.unpack(data, name, self.store, where)
        except Damaged:
            raise
        except ArchiveCorrupt as error:
            self.header(held)  # it may say more: that this is another one, under a wrong name
            raise Damaged(str(error), held) from None

    def header(self, held: Held) -> segment.Header:
        """Raises Damaged, Gone, ArchiveIOError."""
        place, path = self.contents[held.archive].place, held.name.path
        where = place.where(path)
        try:
            with self._elsewhere():
                data = place.get(path, 0, segment.HEADER_BYTES)
            if data is None:
                raise Gone(f"{where} is missing", held)
            return segment.read_header(data, held.name, self.store, where)
        except Damaged:
            raise
        except ArchiveCorrupt as error:
            raise Damaged(str(error), held) from None
