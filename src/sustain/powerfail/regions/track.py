"""Which pages of a region changed, while a program that knows nothing of us writes to its mapping.

Used by the pre-copier; `sustain run` starts the program with `environment(region)`.

A tracker answers one question, again and again: which pages may differ from what they were at the last harvest? A
page too many costs a comparison; a page too few loses data, so whatever leaves a doubt makes the answer
"everything", and everything is then compared by content. Three ways:

- *write-protect* (Linux ≥ 6.7, not on DAX): the preloaded library `preload/track.c` registers the program's mappings,
  PAGEMAP_SCAN names the written pages and protects them again, from outside and in one step. The program is not
  stopped.
- *soft-dirty* (a kernel option): bits of /proc/PID/pagemap; the program stands still while they are read and cleared.
- *content*: every page is compared with its digest.

What mappings do not show is watched in other ways, and answered with "everything": write(2) and its kin and writers
that came and went (inotify), mappings that came and went between two harvests (the library counts them; children of
a program without it show in the parent's statistics). What is left is in docs/operating/regions.md.

Rejected: mprotect with a signal handler in the program, KVM's and QEMU's dirty bitmaps (one kind of program
only), a stacked device (the program would have to be moved onto it). docs/decisions/0011-change-tracking.md.
"""

import contextlib
import mmap
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sustain.errors import RegionIOError
from sustain.host import inotify, maps, pagemap, processes
from sustain.powerfail.regions.manifest import PAGE_BYTES

LIBRARY = Path(__file__).parents[2] / "_track.so"
REGION_VARIABLE, COUNTERS_VARIABLE = "SUSTAIN_TRACK_REGION", "SUSTAIN_TRACK_COUNTERS"
_COUNTERS_BYTES = 4096

Run = tuple[int, int]  # first page, how many


class Way(StrEnum):
    AUTO = "auto"
    CONTENT = "content"
    SOFT_DIRTY = "soft-dirty"
    WRITE_PROTECT = "write-protect"


@dataclass(frozen=True, slots=True)
class Harvest:
    """Pages that may have changed since the last harvest. `everything`: all of them, because of `why`; `runs`, which
    are sorted and do not touch, is then empty. `unable`: this way cannot work for a program that maps the region now.
    """

    runs: tuple[Run, ...] = ()
    everything: bool = False
    why: str = ""
    unable: bool = False

    @property
    def pages(self) -> int:
        return sum(count for _, count in self.runs)


class Tracker(ABC):
    """One way for one region. The first harvest is always "everything"."""

    way: Way  # what the last harvest was made with
    why: str  # why this way, for people
    stops: bool = False  # whether the program must stand still during a harvest

    @abstractmethod
    def harvest(self) -> Harvest:
        """What may have changed since the last one. What is written from now on is in the next."""

    def peek_bytes(self) -> int | None:
        """How much was written since the last harvest, as far as is known without harvesting; None: unknown."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the kernel's things; the program goes on."""


def environment(
    region: str | Path, way: str = Way.AUTO, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What to add to the environment of a program that will map `region`, so that its writes can be tracked.

    {} where nothing would come of it. What `base` (default: this process's environment) preloads stays.
    """
    if set(str(LIBRARY)) & set(" :"):
        return {}  # the loader takes them for separators
    if way == Way.CONTENT or not LIBRARY.exists() or not (pagemap.has_scan() or pagemap.has_soft_dirty()):
        return {}
    _Counters(region).close()
    already = (os.environ if base is None else base).get("LD_PRELOAD", "")
    return {
        "LD_PRELOAD": f"{LIBRARY}:{already}" if already else str(LIBRARY),
        REGION_VARIABLE: os.path.abspath(region),
        COUNTERS_VARIABLE: str(_counters_path(region)),
    }


def open_tracker(region: str | Path, pages: int, way: str = Way.AUTO, *, can_stop: bool = True) -> Tracker:
    """The tracker that `way` names. `can_stop`: whether there is a way to make the program stand still.

    Raises RegionIOError when the kernel does not offer it; `auto` always works.
    """
    chosen = Way(way)
    if chosen is Way.CONTENT:
        return ContentTracker("it was asked for")
    if chosen is Way.WRITE_PROTECT:
        return MappingTracker(region, pages, _WriteProtect(), "it was asked for")
    if chosen is Way.SOFT_DIRTY:
        if not pagemap.has_soft_dirty():
            raise RegionIOError(
                "this kernel keeps no soft-dirty bits",
                hint="boot one with CONFIG_MEM_SOFT_DIRTY, or use --track auto",
            )
        return MappingTracker(region, pages, _SoftDirty(), "it was asked for")
    return AutoTracker(region, pages, can_stop=can_stop)


class ContentTracker(Tracker):
    """Knows nothing, so everything is compared. Works for every program and every way of writing."""

    way = Way.CONTENT

    def __init__(self, why: str) -> None:
        self.why = why

    def harvest(self) -> Harvest:
        return Harvest(everything=True, why="contents are compared")

    def close(self) -> None:
        """There is nothing to let go of."""


class AutoTracker(Tracker):
    """The best way that works for the program that maps the region now; looked at again with each harvest."""

    def __init__(self, region: str | Path, pages: int, *, can_stop: bool) -> None:
        self._open: list[MappingTracker] = []
        if pagemap.has_scan():
            self._open.append(MappingTracker(region, pages, _WriteProtect(), "the kernel protects its pages"))
        if pagemap.has_soft_dirty() and can_stop:
            self._open.append(MappingTracker(region, pages, _SoftDirty(), "the kernel keeps soft-dirty bits"))
        self._current: MappingTracker | None = None
        self.way, self.why = Way.CONTENT, "the kernel has neither PAGEMAP_SCAN nor soft-dirty bits"

    @property
    def stops(self) -> bool:  # type: ignore[override]
        return self._current is not None and self._current.stops

    def harvest(self) -> Harvest:
        reason = ""
        for each in self._open:
            if each.stops and self._current is not each:
                # The caller learns from `stops` to stop the program, and this harvest compares everything.
                self._current, self.way, self.why = each, each.way, each.why
                return Harvest(everything=True, why=f"{reason}; soft-dirty bits from now on")
            found = each.harvest()
            if not found.unable:
                if self._current is not each:
                    self._current, self.way, self.why = each, each.way, each.why
                return found
            reason = found.why
        if reason:
            self.why = reason
        self._current, self.way = None, Way.CONTENT
        return Harvest(everything=True, why=self.why)

    def peek_bytes(self) -> int | None:
        return None if self._current is None else self._current.peek_bytes()

    def close(self) -> None:
        for each in self._open:
            each.close()


class MappingTracker(Tracker):
    """Looks at the page tables of all that map the region; `_Method` is how."""

    def __init__(self, region: str | Path, pages: int, method: "_Method", why: str) -> None:
        self.way, self.why, self.stops = method.way, why, method.stops
        self._pages = pages
        self._method = method
        self._key = maps.key_of(region)
        self._counters = _Counters(region)
        self._watch = inotify.Watch(region)
        self._known: dict[_Place, int] = {}  # with the faults of the process's ended children
        self._counted: tuple[int, int] | None = None
        self._open: dict[processes.Identity, pagemap.Pagemap] = {}
        self.hidden = 0  # processes that could not be looked at

    def harvest(self) -> Harvest:
        # Counters first: a mapping made after this is counted at the next harvest, whichever of the two sees it.
        counted, events = self._counters.read(), self._watch.seen()
        found = maps.mappers(self._key)
        places = {
            _Place(each.who, mapping): processes.child_faults(each.who.pid) or 0
            for each in found.found
            if each.who.pid != os.getpid()
            for mapping in each.mappings
            if mapping.writable and mapping.shared
        }
        doubts = self._doubts(places, counted, events)
        runs, unable = self._collect(places, doubts)
        self._known, self._counted, self.hidden = places, counted, found.hidden
        if unable:
            self._known = {}
            return Harvest(everything=True, why=unable, unable=True)
        if doubts:
            return Harvest(everything=True, why=doubts[0])
        return Harvest(tuple(merge(runs, self._pages)))

    def _doubts(
        self, places: "dict[_Place, int]", counted: tuple[int, int], events: inotify.Seen
    ) -> list[str]:
        """Why the page tables may not show all that was written."""
        if self._counted is None:
            return ["this is the first look"]
        came, gone = places.keys() - self._known.keys(), self._known.keys() - places.keys()
        doubts = []
        if events.written:
            doubts.append("it was written by a call, not through a mapping")
        if gone:
            doubts.append(f"process {min(gone).who.pid} no longer maps it as before")
        elif events.let_go:
            doubts.append("somebody who could write has let go of it")
        doubts += self._method.doubts(came, counted, self._counted)
        if any(faults != self._known.get(place, faults) for place, faults in places.items()):
            doubts += self._method.child_doubts(counted)
        return doubts

    def _collect(self, places: "Iterable[_Place]", doubts: list[str]) -> tuple[list[Run], str]:
        """Changed pages by the page tables, which are made ready for the next time; and why that cannot be."""
        runs: list[Run] = []
        unable = ""
        by_process: dict[processes.Identity, list[maps.Mapping]] = {}
        for place in places:
            by_process.setdefault(place.who, []).append(place.mapping)
        for who in self._open.keys() - by_process.keys():
            self._open.pop(who).close()
        for who, mappings in by_process.items():
            try:
                if who not in self._open:
                    self._open[who] = pagemap.Pagemap(who.pid)
                for mapping, (start, end) in self._method.take(self._open[who], mappings):
                    runs.append(_pages_of(mapping, start, end))
            except RegionIOError as error:
                if not processes.alive(who):
                    doubts.append(f"process {who.pid} ended meanwhile")
                elif isinstance(error, pagemap.NotRegistered):
                    unable = f"process {who.pid} is without the tracking library, or maps DAX memory"
                else:
                    unable = str(error)
        return runs, unable

    def peek_bytes(self) -> int | None:
        if self._counted is None:
            return None
        total = 0
        for place in self._known:
            found = None
            with contextlib.suppress(RegionIOError):
                found = self._method.peek(self._open[place.who], place.mapping)
            if found is None:
                return None
            total += found
        return total

    def close(self) -> None:
        for each in self._open.values():
            each.close()
        self._open.clear()
        self._watch.close()
        self._counters.close()


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """A writable mapping of one process."""

    who: processes.Identity
    mapping: maps.Mapping


class _Method(ABC):
    """How page tables are asked."""

    way: Way
    stops: bool = False

    @abstractmethod
    def take(
        self, table: pagemap.Pagemap, mappings: Iterable[maps.Mapping]
    ) -> list[tuple[maps.Mapping, Run]]:
        """Written address ranges, which count as unwritten from now on."""

    @abstractmethod
    def doubts(
        self, came: "Iterable[_Place]", counted: tuple[int, int], before: tuple[int, int]
    ) -> list[str]:
        """About mappings that are new, and those that the library has counted."""

    def child_doubts(self, counted: tuple[int, int]) -> list[str]:
        """When a process that maps the region has waited for children of its own."""
        return []

    def peek(self, table: pagemap.Pagemap, mapping: maps.Mapping) -> int | None:
        """Bytes written since they were taken; None: not to be had."""
        return None


class _WriteProtect(_Method):
    way = Way.WRITE_PROTECT

    def take(
        self, table: pagemap.Pagemap, mappings: Iterable[maps.Mapping]
    ) -> list[tuple[maps.Mapping, Run]]:
        return [(each, run) for each in mappings for run in table.written(each.start, each.end, protect=True)]

    def doubts(self, came: Iterable[_Place], counted: tuple[int, int], before: tuple[int, int]) -> list[str]:
        # A mapping is protected from its birth on, so one that came and is still there tells all by itself.
        if counted[1] != before[1]:
            return ["a mapping could not be registered, or was moved"]
        if counted[0] - before[0] != len(list(came)):
            return ["mappings have come and gone"]
        return []

    def peek(self, table: pagemap.Pagemap, mapping: maps.Mapping) -> int | None:
        return sum(end - start for start, end in table.written(mapping.start, mapping.end, protect=False))


class _SoftDirty(_Method):
    way = Way.SOFT_DIRTY
    stops = True

    def take(
        self, table: pagemap.Pagemap, mappings: Iterable[maps.Mapping]
    ) -> list[tuple[maps.Mapping, Run]]:
        found = [(each, run) for each in mappings for run in table.soft_dirty(each.start, each.end)]
        table.clear_soft_dirty()
        return found

    def doubts(self, came: Iterable[_Place], counted: tuple[int, int], before: tuple[int, int]) -> list[str]:
        # All pages of a new mapping are soft-dirty, so those that are still there tell all by themselves. Where
        # userfaultfd is missing the library counts its mappings as lost; here they are only counted.
        new = sum(counted) - sum(before)
        if new > len(list(came)):
            return ["mappings have come and gone"]
        return []

    def child_doubts(self, counted: tuple[int, int]) -> list[str]:
        # With the library, children that inherited the mapping have been counted.
        return [] if sum(counted) else ["children of a process that maps it have come and gone"]


class _Counters:
    """The words that the library counts in: a file beside the region (preload/track.c has the layout)."""

    def __init__(self, region: str | Path) -> None:
        path = _counters_path(region)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size < _COUNTERS_BYTES:
                    os.ftruncate(descriptor, _COUNTERS_BYTES)
                self._words = mmap.mmap(descriptor, _COUNTERS_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RegionIOError(
                f"{path}: {error.strerror}", hint="the region's directory must be writable"
            ) from None

    def read(self) -> tuple[int, int]:
        """(registered, lost) so far."""
        registered, lost = struct.unpack_from("=QQ", self._words)
        return registered, lost

    def close(self) -> None:
        self._words.close()


def _counters_path(region: str | Path) -> Path:
    return Path(os.path.abspath(region) + ".track")


def _pages_of(mapping: maps.Mapping, start: int, end: int) -> Run:
    first = (start - mapping.start + mapping.offset) // PAGE_BYTES
    return first, (end - start) // PAGE_BYTES


def merge(runs: Iterable[Run], pages: int) -> list[Run]:
    """Sorted runs that do not touch, none beyond the region's `pages`."""
    merged: list[Run] = []
    for first, count in sorted(runs):
        end = min(first + count, pages)
        if end <= first:
            continue
        if merged and first <= sum(merged[-1]):
            last, had = merged[-1]
            merged[-1] = last, max(had, end - last)
        else:
            merged.append((first, end - first))
    return merged
