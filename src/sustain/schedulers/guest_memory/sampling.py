"""How much of a guest's memory is used, seen by the host alone: of a random sample of its pages.

Used by `look`, for guests whose agent and balloon say nothing. The best way that this kernel has:
1. page_idle (host.page_idle): pages drawn and marked at a look; used from then to the first look after `window_s`,
   which draws anew. Looks in between, as a host under pressure makes them, are told what was found last.
2. DAMON (host.damon): pages drawn every few minutes; used within the last `window_s`. Its commands wait for the
   kernel's next sample and are carried out one at a time, so a thread reads for all guests, and a look takes what it
   read last.
Where page_idle is there and we may not use it (frame numbers are hidden), or somebody else does, DAMON is taken, and
what it finds says why. Each look tries anew.
Both see what a guest does through the second-level page tables. Pages that have left memory since they were drawn do
not count. A page that the host maps large counts as used when any of its 512 is.

Either is taken when the first guest needs it and given back when none does; DAMON's thread ends with it. Rejected: a
`clear_refs` of the process, which everybody else who counts would see, and which does not see guests.
"""

import errno
import random
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sustain.clock import Clock
from sustain.errors import HostError, SustainError, anew
from sustain.host import damon, page_idle
from sustain.host.damon import Attributes, Damon, Totals, Watch
from sustain.host.maps import Area
from sustain.host.pagemap import PAGE_BYTES, Pagemap
from sustain.host.processes import Identity
from sustain.schedulers.changes import Changes, note_damon

PAGES = 1000  # standard error of a share: 1.6 % of the guest's memory at most
WINDOW_S = 10.0
_SAMPLES = 10  # in a window
_WHOLE = 0.9  # of a window is one: looks that are a window apart come a little early and late
_DRAWN_S = 300.0  # how long the same pages are looked at
_FORGOTTEN_S = 60.0  # a guest that nobody has asked about for so long, and for as many looks:
_FORGOTTEN_LOOKS = 3
_NONE = Totals(0, 0)
_AGAIN_S = 60.0  # what has failed is tried again
_OTHER_WAY = (errno.EBUSY, errno.EPERM, errno.EACCES)  # for which DAMON is taken, where page_idle is there


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of `pages` pages drawn at random and present, `used` were; when that was known (CLOCK_BOOTTIME), and how."""

    at_s: float
    used: int
    pages: int
    how: str


class Sampler:
    """For all guests of a sensor. Any thread may call; close it."""

    def __init__(
        self,
        changes: Changes,
        clock: Clock,
        root: Path = Path("/"),
        window_s: float = WINDOW_S,
        period_s: float = 0.0,
    ) -> None:
        """`period_s`: how far looks at a guest are apart."""
        self._root = root
        forgotten_s = max(_FORGOTTEN_S, _FORGOTTEN_LOOKS * period_s)
        self._marker = _Marker(clock, root, window_s, forgotten_s)
        self._watcher = _Watcher(changes, clock, root, window_s, forgotten_s)

    def look(self, name: str, who: Identity, areas: tuple[Area, ...]) -> Sampled | None:
        """What is known of that guest's memory; None: it has begun, ask again. Raises SustainError."""
        inexact: HostError | None = None
        if page_idle.available(self._root):
            try:
                return self._marker.look(name, who, areas)
            except HostError as error:
                if error.errno not in _OTHER_WAY:
                    raise
                inexact = error
        if inexact is None and not damon.present(self._root):
            raise HostError(_NEITHER, hint="see docs/operating/guest-memory.md")
        if inexact is None:
            return self._watcher.look(name, who, areas)
        return self._instead(inexact, name, who, areas)

    def forget(self) -> None:
        """Let go of guests that nobody asks about any more. To be called now and then."""
        self._marker.forget()

    def close(self) -> None:
        """Raises SustainError when DAMON could not be given back."""
        self._marker.close()
        self._watcher.close()

    def _instead(
        self, inexact: HostError, name: str, who: Identity, areas: tuple[Area, ...]
    ) -> Sampled | None:
        """By DAMON, where page_idle is there and may not be used: that is said with all that comes of it."""
        if not damon.present(self._root):
            raise HostError(
                f"{inexact}; and this kernel has no DAMON for processes (CONFIG_DAMON_VADDR, CONFIG_DAMON_SYSFS)",
                hint=inexact.hint,
                errno=inexact.errno,
            )
        try:
            found = self._watcher.look(name, who, areas)
        except SustainError as error:
            number = getattr(error, "errno", None)
            raise HostError(f"{error}; nor by page_idle: {inexact}", hint=error.hint, errno=number) from None
        return None if found is None else replace(found, how=f"{found.how}; not by page_idle: {inexact}")


class _Marker:
    """Marks pages of guests, as long as nobody else on this host does (host.page_idle)."""

    def __init__(self, clock: Clock, root: Path, window_s: float, forgotten_s: float) -> None:
        self._clock = clock
        self._root = root
        self._window_s = window_s
        self._forgotten_s = forgotten_s
        self._lock = threading.Lock()  # of what follows; looks at several guests go on at once
        self._marked: dict[str, _Marked] = {}
        self._looks = 0  # that go on
        self._closed = False
        self._held: page_idle.Held | None = None  # while there are marks

    def look(self, name: str, who: Identity, areas: tuple[Area, ...]) -> Sampled | None:
        """As `Sampler.look`. Raises HostError: EBUSY, somebody else marks; EPERM, EACCES: we may not."""
        now_s = self._now_s()
        with self._lock:
            before = self._marked.get(name)
            if before is not None and before.who != who:
                before = None
            if before is not None and now_s - before.at_s < _WHOLE * self._window_s:
                before.asked_s = now_s
                return before.found
            self._marked.pop(name, None)  # what fails begins anew
            self._drop(now_s)
            if self._closed:
                return None
            if self._held is None:
                self._held = page_idle.Held(self._root)
            self._looks += 1
        try:
            marked = self._mark(who, areas, before, now_s)
            with self._lock:
                self._marked[name] = marked
            return marked.found
        finally:
            with self._lock:
                self._looks -= 1
                self._let_go()

    def forget(self) -> None:
        with self._lock:
            self._drop(self._now_s())
            self._let_go()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._marked.clear()
            self._let_go()

    def _mark(
        self, who: Identity, areas: tuple[Area, ...], before: "_Marked | None", now_s: float
    ) -> "_Marked":
        found = None
        if before is not None:
            used = page_idle.look(who.pid, before.sample, self._root)
            how = f"page_idle, used within {now_s - before.at_s:.0f} s"
            found = Sampled(now_s, used.accessed, used.accessed + used.idle, how)
        sample = page_idle.mark(who.pid, areas, PAGES, random.getrandbits(64), self._root)
        return _Marked(who, sample, now_s, found, now_s)

    def _drop(self, now_s: float) -> None:
        """The guests that nobody asks about any more: they have gone, or their agents speak again."""
        for name, marked in list(self._marked.items()):
            if now_s - marked.asked_s > self._forgotten_s:
                del self._marked[name]

    def _let_go(self) -> None:
        if self._held is not None and not self._marked and not self._looks:
            self._held.close()
            self._held = None

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


@dataclass(slots=True)
class _Marked:
    """Pages of one guest that wait to be used, and what became of those before them."""

    who: Identity
    sample: page_idle.Sample
    at_s: float
    found: Sampled | None
    asked_s: float


@dataclass(slots=True)
class _Guest:
    """One guest under DAMON."""

    who: Identity
    areas: tuple[Area, ...]
    asked_s: float
    pages: list[int] = field(default_factory=list)
    watch: Watch | None = None
    watched: Identity | None = None
    drawn_s: float = 0.0
    before: Totals = _NONE
    sampled: Sampled | None = None
    problem: SustainError | None = None
    again_s: float = 0.0  # not before


class _Watcher:
    """The thread that reads DAMON."""

    def __init__(
        self, changes: Changes, clock: Clock, root: Path, window_s: float, forgotten_s: float
    ) -> None:
        self._changes = changes
        self._clock = clock
        self._root = root
        self._window_s = window_s
        self._forgotten_s = forgotten_s
        window_us = int(window_s * 1e6)
        self._attributes = Attributes(window_us // _SAMPLES, window_us)
        self._changed = threading.Condition()
        self._guests: dict[str, _Guest] = {}
        self._damon: Damon | None = None  # the thread's own, as is all of a guest but what `look` sets
        self._impossible: SustainError | None = None
        self._kept: SustainError | None = None  # why DAMON could not be given back
        self._thread: threading.Thread | None = None
        self._closed = False

    def look(self, name: str, who: Identity, areas: tuple[Area, ...]) -> Sampled | None:
        with self._changed:
            if self._impossible is not None:
                raise anew(self._impossible)
            now_s = self._now_s()
            guest = self._guests.get(name)
            if guest is None:
                self._guests[name] = guest = _Guest(who, areas, now_s)
            guest.asked_s = now_s
            if guest.who != who:
                guest.sampled = None
            guest.who, guest.areas = who, areas
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="read DAMON", daemon=True)
                self._thread.start()
            if guest.problem is not None:
                raise anew(guest.problem)
            return guest.sampled

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(10 + 3 * self._window_s / _SAMPLES)
            if thread.is_alive():
                raise HostError(
                    "DAMON does not answer, and is not given back",
                    hint="`sustain agent restore`, later, takes it away",
                )
        self._give_back()
        if self._kept is not None:
            raise anew(self._kept)

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                guests = dict(self._guests)
            if not guests or self._kept is not None:
                self._give_back()
            if not guests and self._kept is None:
                with self._changed:
                    if not self._guests:
                        self._thread = None
                        return
                continue
            for name, guest in guests.items():
                self._round(name, guest)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._window_s / 2)
        self._give_back()

    def _round(self, name: str, guest: _Guest) -> None:
        now_s = self._now_s()
        if self._closed or now_s < guest.again_s:
            return
        if now_s - guest.asked_s > self._forgotten_s or self._impossible is not None:
            self._end(guest)
            with self._changed:
                del self._guests[name]
            return
        try:
            if guest.watch is not None and guest.watched != guest.who:  # it has been started anew
                self._end(guest)
            if guest.watch is None:
                self._draw(guest)
            else:
                self._read(guest, guest.watch)
            guest.problem = None
        except SustainError as error:
            self._end(guest)
            gone = getattr(error, "errno", None) == errno.ESRCH
            guest.sampled, guest.problem = None, None if gone else error
            guest.again_s = now_s + (0.0 if gone else _AGAIN_S)
            if getattr(error, "errno", None) == errno.EOPNOTSUPP:
                self._impossible = error  # this kernel cannot

    def _draw(self, guest: _Guest) -> None:
        """Choose pages among those that are present, and have them watched."""
        with self._changed:
            who, areas = guest.who, guest.areas
        guest.pages = draw(who.pid, areas, PAGES, self._root)
        if len(guest.pages) < damon.LEAST_REGIONS:
            return
        if self._kept is not None:
            raise HostError(
                f"DAMON could not be given back, and is not used until it is: {self._kept}",
                hint=self._kept.hint,
            )
        if self._damon is None:
            self._damon = Damon(partial(note_damon, self._changes), self._root)
        regions = [(page, page + PAGE_BYTES) for page in guest.pages]
        guest.watch = self._damon.watch(who.pid, regions, self._attributes)
        guest.watched = who
        guest.drawn_s, guest.before = self._now_s(), _NONE

    def _read(self, guest: _Guest, watch: Watch) -> None:
        now = watch.totals()
        seen = now.seen - guest.before.seen
        if seen >= len(guest.pages):
            assert guest.watched is not None
            table = Pagemap(guest.watched.pid, self._root)
            try:
                here = table.present(guest.pages)
            finally:
                table.close()
            used = round((now.used - guest.before.used) * len(guest.pages) / seen)
            how = f"DAMON, used within {self._window_s:g} s"
            guest.sampled = Sampled(self._now_s(), used, max(here, used), how)
            guest.before = now
        if self._now_s() - guest.drawn_s > _DRAWN_S:
            self._end(guest)

    def _end(self, guest: _Guest) -> None:
        watch, guest.watch = guest.watch, None
        if watch is None:
            return
        try:
            watch.close()
        except HostError as error:
            guest.problem = error
            self._give_back()  # when somebody else has it by now, nothing of ours is left

    def _give_back(self) -> None:
        """What cannot be given back stays ours and is used no more; the next round tries again."""
        if self._damon is None:
            return
        with self._changed:
            for guest in self._guests.values():
                guest.watch = None  # so that one that is held is always of the DAMON that is held
        try:
            self._damon.close()
        except SustainError as error:
            self._kept = error
            return
        self._damon = self._kept = None

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / 1e9


def draw(pid: int, areas: tuple[Area, ...], count: int, root: Path = Path("/")) -> list[int]:
    """Up to `count` pages of these areas that are present now, chosen at random: addresses, in order."""
    table = Pagemap(pid, root)
    try:
        runs = [run for area in areas for run in table.census(area.start, area.end).present]
    finally:
        table.close()
    total = sum(end - start for start, end in runs) // PAGE_BYTES
    chosen = iter(sorted(random.sample(range(total), min(count, total))))
    found: list[int] = []
    before = 0
    number = next(chosen, None)
    for start, end in runs:
        size = (end - start) // PAGE_BYTES
        while number is not None and number < before + size:
            found.append(start + (number - before) * PAGE_BYTES)
            number = next(chosen, None)
        before += size
    return found


_NEITHER = (
    "no agent, no balloon's driver, and this host's kernel cannot sample it: it has neither page_idle "
    "(CONFIG_IDLE_PAGE_TRACKING) nor DAMON for processes (CONFIG_DAMON_VADDR, CONFIG_DAMON_SYSFS)"
)
