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

from sustain.errors import ArchiveCorrupt, ArchiveError, NotRestorable
from sustain.replication.archive.building import Building, InGap, TooLate
from sustain.replication.archive.names import SnapshotName
from sustain.replication.archive.place import Place
from sustain.replication.archive.reading import AHEAD, holding
from sustain.replication.archive.rooms import Rooms
from sustain.replication.archive.sources import Sources

_LOOKS = 3  # at archives in which log seems to be missing: compaction may be at work


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
        self.objects = self.read_bytes = 0
        self._places = places
        self._report = report
        self._progress = progress
        self._sources = Sources(places, report, Rooms(keep=AHEAD + 2))
        self._gaps: list[tuple[int, int]] = []

    @property
    def damaged(self) -> list[str]:
        """What is damaged or missing, as far as it was met."""
        return self._sources.damaged

    def run(self, path: str, wish: Wish, durability: str) -> Restored:
        """Make the store at `path`, which nothing may be at. Raises ArchiveError, StoreError, ConfigError."""
        begun = time.monotonic()
        sources = self._sources
        with holding(self._places, self._report), ThreadPoolExecutor(AHEAD, "sustain-restore") as pool:
            sources.look()
            newest = sources.newest
            if wish.position is not None and wish.position > (until := self._held_until()):
                raise NotRestorable(
                    f"{newest.name or 'the store'}: position {wish.position} is later than what is archived: "
                    f"{until} is the last",
                    hint="leave --position out for the newest",
                )
            sources.note_missing_snapshots()
            for name, archive in self._candidates(wish):
                if not self._leads_on(name, archive, wish):
                    continue
                try:
                    position, time_ns = self._build(path, name, archive, wish, durability, pool)
                except TooLate:
                    continue
                except InGap as error:
                    self._gaps.append((error.first, error.behind))
                    break  # an older snapshot's log leads no further
                except ArchiveCorrupt as error:
                    sources.note(str(error))
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
                    [each.place.url for each in sources.contents.values()],
                    sources.contents[archive].place.where(name.path),
                    self.read_bytes,
                    self.objects,
                    time.monotonic() - begun,
                    self.damaged,
                )
            raise self._hopeless(wish)

    def _build(
        self,
        path: str,
        name: SnapshotName,
        archive: int,
        wish: Wish,
        durability: str,
        pool: ThreadPoolExecutor,
    ) -> tuple[int, int | None]:
        """(position, time of its commit)."""
        sources = self._sources
        building = Building(sources, sources.snapshot(name, archive), archive, pool, self._progress)
        try:
            if wish.position is not None:
                wanted = wish.position
                target = sources.steadily(lambda: building.by_position(wanted))
            elif wish.at_ns is not None:
                at_ns = wish.at_ns
                target = sources.steadily(lambda: building.by_time(at_ns))
            else:
                target = building.newest()
            return building.make(path, target, durability)
        finally:
            self.objects += building.objects
            self.read_bytes += building.read_bytes

    def _candidates(self, wish: Wish) -> list[tuple[SnapshotName, int]]:
        """Snapshots to begin with, and in which archive each is: the best first."""
        found = [
            each
            for each in self._sources.snapshots()
            if wish.position is None or each[0].usable <= wish.position
        ]
        reaches = {name: self._sources.reach(name) for name, _ in found} if wish.newest else {}
        return sorted(
            found, key=lambda each: (-reaches.get(each[0], 0), -each[0].start, -each[0].usable, each[1])
        )

    def _leads_on(self, name: SnapshotName, archive: int, wish: Wish) -> bool:
        """Whether there is log from this snapshot to what is wished for."""
        sources = self._sources
        for _ in range(_LOOKS):
            goal = sources.promised() if wish.newest else wish.position or name.usable
            goal = max(goal, name.usable)
            missing = sources.reach(name)
            if missing >= goal:
                return True
            sources.look()
        if (behind := sources.gap(missing)) is None:
            sources.note(
                f"{sources.contents[archive].place.url}: log from position {missing} on is missing "
                f"(needed from the snapshot at {name.start} up to {goal})"
            )
        else:
            self._gaps.append((missing, behind))
        return False

    def _held_until(self) -> int:
        return max((self._sources.reach(name) for name, _ in self._candidates(Wish())), default=0)

    def _hopeless(self, wish: Wish) -> ArchiveError:
        urls = ", ".join(each.place.url for each in self._sources.contents.values())
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
