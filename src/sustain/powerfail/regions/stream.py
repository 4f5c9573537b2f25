"""One destination of a pre-copied region: which pages it still needs, and the thread that brings them there.

Used by `precopy`, which marks pages and says when to seal; one `Stream` for each destination, so that a slow or a
broken one holds up nobody.

For each page the stream knows the digest of what the destination holds (the *mirror*), and whether the page has to be
looked at again: *named*, because a tracker said that it changed, *suspect*, because nobody knows, or *forced*, to
be sent even if it is there already (which breaks a seal, and measures the bandwidth). A page is read into a buffer
of our own and its digest compared with the mirror; what differs is sent, from that buffer, so the digest is of the
very bytes that go out, whatever the program does meanwhile. When a connection is lost, the destination says anew
what it holds, and the difference to the mirror is named: nothing is assumed to have arrived.

Rejected: one queue of changed pages for all. Destinations lose and regain connections at different times, and a
queue that must not lose a page for the slowest grows without bound; a flag for each page does not.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sustain import _native
from sustain.clock import Clock
from sustain.errors import PeerRefused, RegionCorrupt, SustainError
from sustain.powerfail.budget import Bandwidth
from sustain.powerfail.regions.manifest import (
    DIGEST_BYTES,
    PAGE_BYTES,
    SLICE_PAGES,
    RegionIdentity,
    Seal,
)
from sustain.powerfail.regions.medium import Medium
from sustain.powerfail.regions.sink import Sink
from sustain.powerfail.regions.status import DestinationStatus
from sustain.powerfail.regions.track import Run

_SETTLED, _SUSPECT, _NAMED, _FORCED = 0, 1, 2, 3
_SPAN_PAGES = 64 * SLICE_PAGES
_FLUSH_BYTES = 64 << 20
_FLUSH_S = 1.0
_SAMPLE_BYTES = 1 << 20
_PROBE_S = 60.0
_NAMED_RUNS = 256  # of missing pages, in the status
_BACKOFF_S, _BACKOFF_LIMIT_S = 0.1, 5.0
_HURRIED_BACKOFF_LIMIT_S = 0.5

Pages = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Goal:
    """A final pass: everything that is marked, then this seal."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """What all streams of a region share. Rates in bytes per second."""

    identity: RegionIdentity
    epoch: int
    owner: str
    rate: float  # of pages sent
    scan_rate: float  # of pages read and compared


class Stream(threading.Thread):
    """Brings one destination up to date until `stop`."""

    def __init__(
        self,
        url: str,
        open_sink: Callable[[], Sink],
        medium: Medium,
        config: StreamConfig,
        clock: Clock,
        changed: Callable[[], None],
        *,
        required: bool = False,
    ) -> None:
        super().__init__(name=f"sustain-region-{url}", daemon=True)
        self.url = url
        self.required = required
        self._open_sink, self._medium, self._config, self._clock = open_sink, medium, config, clock
        self._changed = changed
        pages = medium.pages
        self._wake = threading.Condition()  # guards all below
        self._marks = np.full(pages, _SUSPECT, np.uint8)
        self._mirror = np.zeros((pages, 2), np.uint64)
        self._known = False  # whether the mirror is what the destination said
        self._in_hand: Pages = np.empty(0, np.int64)  # taken from the marks, not yet in the mirror
        self._unflushed: list[Run] = []
        self._unflushed_pages = 0
        self._unflushed_since_s = 0.0
        self._found_changed = 0  # pages, by the last complete comparison
        self._finding = 0
        self._passing = True
        self._first_pass = True
        self._cursor = 0
        self._hurry = False
        self._goal: Goal | None = None
        self._reached: Goal | None = None  # sealed, and perhaps not let go of yet
        self._stopping = False
        self._sink: Sink | None = None
        self._bandwidth = Bandwidth()
        self._measured_s = -_PROBE_S
        self._busy_s = 0.0  # in writes that are not flushed yet
        self._owed_s = 0.0
        self._buffer = memoryview(bytearray(SLICE_PAGES * PAGE_BYTES))
        self.state = "connecting"
        self.error: str | None = None
        self.acked: int | None = None
        self._held_seal: Seal | None = None
        self.last_number = 0
        self.sent_bytes = 0
        self.compared_bytes = 0

    # what the pre-copier asks for

    def mark(self, runs: Iterable[Run]) -> None:
        """These pages may have changed."""
        with self._wake:
            for first, count in runs:
                part = self._marks[first : first + count]
                np.maximum(part, _NAMED, out=part)
            self._wake.notify_all()

    def suspect_all(self) -> None:
        """Any page may have changed."""
        with self._wake:
            np.maximum(self._marks, _SUSPECT, out=self._marks)
            self._finding, self._passing = 0, True
            self._wake.notify_all()

    def finish(self, goal: Goal) -> None:
        """Send what is marked, without a rate, then seal."""
        with self._wake:
            self._goal, self._hurry = goal, True
            if self.state != "refused":
                self.state = "streaming" if self._sink is not None else "connecting"
            self._wake.notify_all()

    def resume(self) -> None:
        """The program goes on: no seal, and one that was made must be broken, whatever changes."""
        with self._wake:
            if self._goal is not None:
                self._goal, self._hurry = None, False
                self._marks[0] = _FORCED
                if self.state == "sealed":
                    self.state = "connecting"
            self._wake.notify_all()

    def hurry(self, yes: bool) -> None:
        """Whether to copy without a rate."""
        with self._wake:
            if self._hurry != yes and self._goal is None:
                self._hurry = yes
                self._wake.notify_all()

    def stop(self, timeout_s: float = 10.0) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self.join(timeout_s)

    # what it knows

    @property
    def connected(self) -> bool:
        return self.state == "streaming"

    @property
    def comparing(self) -> bool:
        """Whether pages are still to be compared because nobody knows about them."""
        with self._wake:
            return self.connected and bool((self._marks == _SUSPECT).any())

    @property
    def in_step(self) -> bool:
        """Whether the destination has once been compared completely."""
        with self._wake:
            self._look_at_pass()
            return self._known and not self._first_pass

    @property
    def behind_bytes(self) -> int:
        """What is known to be missing there; of pages that are only suspect, as many as changed the last time."""
        with self._wake:
            return self._behind()

    def _behind(self) -> int:
        named = int(np.count_nonzero(self._marks >= _NAMED)) + len(self._in_hand) + self._unflushed_pages
        suspect = int(np.count_nonzero(self._marks == _SUSPECT))
        return (named + (suspect if self._first_pass else min(suspect, self._found_changed))) * PAGE_BYTES

    @property
    def bandwidth(self) -> float | None:
        sink = self._sink
        own = None if sink is None else sink.bandwidth_bytes_per_s
        return own if own is not None else self._bandwidth.low()

    def _missing(self) -> list[Run]:
        """Pages that are not known to be held there, as runs, while a seal is asked for."""
        if self._goal is None or self._reached is self._goal:
            return []
        held = self._marks == _SETTLED
        held[self._in_hand] = False
        for first, count in self._unflushed:
            held[first : first + count] = False
        return _runs(np.flatnonzero(~held))

    def status(self) -> DestinationStatus:
        with self._wake:
            missing = self._missing()
            return DestinationStatus(
                url=self.url,
                state=self.state,
                required=self.required,
                acked=self.acked,
                bandwidth_bytes_per_s=self.bandwidth,
                behind_bytes=self._behind(),
                sent_bytes=self.sent_bytes,
                error=self.error,
                missing_pages=tuple(missing[:_NAMED_RUNS]),
                missing_more=len(missing) > _NAMED_RUNS,
            )

    def audit(self, first: int, count: int) -> list[int] | None:
        """Pages there that are not what the destination holds although nothing marks them; None: cannot be said."""
        buffer = memoryview(bytearray(count * PAGE_BYTES))
        with self._wake:
            if not self._known or self._first_pass:
                return None
            quiet = np.flatnonzero(self._marks[first : first + count] == _SETTLED) + first
            quiet = np.setdiff1d(quiet, self._in_hand, assume_unique=True)
            held = self._mirror[quiet].copy()
        used = self._read(_runs(quiet), buffer)
        found = np.frombuffer(_native.page_digests(buffer[:used], still=True), np.uint64).reshape(-1, 2)
        differ = quiet[(found != held).any(axis=1)]
        with self._wake:  # those that were marked meanwhile are known
            differ = differ[self._marks[differ] == _SETTLED]
            still: list[int] = np.setdiff1d(differ, self._in_hand).tolist()
            return still

    # the thread

    def run(self) -> None:
        pause_s = _BACKOFF_S
        while not self._stopping:
            try:
                self._connect()
                pause_s = _BACKOFF_S
                self._serve()
            except PeerRefused as error:
                self._failed("refused", error)
                return
            except SustainError as error:
                self._failed("failed", error)
            except Exception as error:  # noqa: BLE001 - one destination's trouble must not end the others'
                self._failed("failed", error)
            finally:
                self._disconnect()
            with self._wake:
                # What is sealed is let go of before that is said: whoever hears it may restore from it at once.
                if self._reached is not None and self._reached is self._goal:
                    self.state, self.error = "sealed", None
                    self._changed()
                    self._wake.wait_for(lambda: self.state != "sealed" or self._stopping)
                    continue
                limit_s = _HURRIED_BACKOFF_LIMIT_S if self._goal is not None else _BACKOFF_LIMIT_S
                self._wake.wait_for(lambda: self._stopping, min(pause_s, limit_s))
                pause_s = min(2 * pause_s, _BACKOFF_LIMIT_S)

    def _connect(self) -> None:
        sink = self._open_sink()
        try:
            held = sink.begin(self._config.identity, self._config.epoch)
        except BaseException:
            sink.close()
            raise
        with self._wake:
            self._sink = sink
            pages = len(self._marks)
            if held.table is None or len(held.table) != pages * DIGEST_BYTES:
                self._mirror[:] = 0  # no page has such a digest
                np.maximum(self._marks, _SUSPECT, out=self._marks)
                self._first_pass = self._passing = True
            else:
                theirs = np.frombuffer(held.table, np.uint64).reshape(-1, 2)
                if self._known:
                    lost = (theirs != self._mirror).any(axis=1)
                    self._marks[lost] = np.maximum(self._marks[lost], _NAMED)
                self._mirror[:] = theirs
            self._known = True
            self._unflushed, self._unflushed_pages, self._busy_s = [], 0, 0.0
            self.acked, self._held_seal = (held.seal.number if held.seal else None), held.seal
            self.last_number = max(self.last_number, held.last_number)
            # While the program runs, nothing that is sealed there may be taken for what it has now.
            if self._goal is None and held.seal is not None:
                self._marks[0] = _FORCED
            self.state, self.error = "streaming", None
        self._changed()

    def _disconnect(self) -> None:
        with self._wake:
            sink, self._sink = self._sink, None
            self._marks[self._in_hand] = np.maximum(self._marks[self._in_hand], _NAMED)
            self._in_hand = np.empty(0, np.int64)
        if sink is not None:
            try:
                sink.close()
            except SustainError as error:
                self.error = self.error or str(error)

    def _failed(self, state: str, error: BaseException) -> None:
        with self._wake:
            self.state, self.error = state, str(error) or type(error).__name__
        self._changed()

    def _serve(self) -> None:
        sink = self._sink
        assert sink is not None
        while True:
            with self._wake:
                if self._stopping or (self._goal is not None and self._reached is self._goal):
                    break
                goal = self._goal
                pages, forced = self._take()
                flush = self._unflushed_pages and (
                    not len(pages)
                    or self._unflushed_pages * PAGE_BYTES >= _FLUSH_BYTES
                    or time.monotonic() - self._unflushed_since_s >= _FLUSH_S
                )
                if not len(pages) and not flush and goal is None:
                    self._want_a_sample()
                    self._wake.wait(1.0)
                    continue
            if len(pages):
                self._bring(sink, pages, forced)
            if flush:
                self._flush(sink)
            elif goal is not None and not len(pages):
                self._seal(sink, goal)
            self._keep_to_the_rate()
        if self._unflushed_pages:
            self._flush(sink)

    def _take(self) -> tuple[Pages, npt.NDArray[np.bool_]]:
        """The next marked pages, which are in hand from now on, and which of them are forced; under the lock."""
        marks = self._marks
        while True:
            window = marks[self._cursor : self._cursor + _SPAN_PAGES]
            found = np.flatnonzero(window)[:SLICE_PAGES]
            if len(found):
                break
            self._cursor += len(window)
            if self._cursor < len(marks):
                continue
            self._cursor = 0
            self._look_at_pass()
            if not marks.any():
                return self._in_hand, np.empty(0, np.bool_)
        forced = window[found] == _FORCED
        window[found] = _SETTLED
        self._in_hand = (found + self._cursor).astype(np.int64)
        self._cursor += int(found[-1]) + 1
        return self._in_hand, forced

    def _look_at_pass(self) -> None:
        """Whether every page has been looked at since all were suspect; others may have been named meanwhile."""
        if self._passing and self._known and not (self._marks == _SUSPECT).any() and not len(self._in_hand):
            self._passing = self._first_pass = False
            self._found_changed = self._finding

    def _want_a_sample(self) -> None:
        """The bandwidth must be known before it is needed: while there is nothing to send, some pages go again."""
        if self._goal is None and time.monotonic() - self._measured_s >= _PROBE_S:
            self._measured_s = time.monotonic()
            part = self._marks[: 4 * _SAMPLE_BYTES // PAGE_BYTES]
            part[:] = _FORCED

    def _bring(self, sink: Sink, pages: Pages, forced: npt.NDArray[np.bool_]) -> None:
        """Read, compare, send what differs or is forced."""
        began_s = time.monotonic()
        used = self._read(_runs(pages), self._buffer)
        digests = _native.page_digests(self._buffer[:used], still=True)
        found = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        differ = np.flatnonzero((found != self._mirror[pages]).any(axis=1) | forced)
        read_s = time.monotonic() - began_s
        sent = 0
        for at, count in _runs(differ, pages):
            if self.acked is not None:
                with self._wake:
                    self.acked = self._held_seal = None
            sink.write(
                int(pages[at]),
                self._buffer[at * PAGE_BYTES : (at + count) * PAGE_BYTES],
                digests[at * DIGEST_BYTES : (at + count) * DIGEST_BYTES],
            )
            sent += count
            self._note_unflushed(int(pages[at]), count)
        with self._wake:
            self._mirror[pages[differ]] = found[differ]
            self._in_hand = np.empty(0, np.int64)
            self._finding += sent
        spent_s = time.monotonic() - began_s
        self._busy_s += spent_s - read_s if sent else 0.0
        self.sent_bytes += sent * PAGE_BYTES
        self.compared_bytes += used
        due_s = max(sent * PAGE_BYTES / self._config.rate, used / self._config.scan_rate)
        self._owed_s += max(0.0, due_s - spent_s)

    def _read(self, runs: list[Run], buffer: memoryview) -> int:
        """The pages of `runs` one behind the other; bytes used."""
        at = 0
        for first, count in runs:
            self._medium.read(first, buffer[at : at + count * PAGE_BYTES])
            at += count * PAGE_BYTES
        return at

    def _note_unflushed(self, first: int, count: int) -> None:
        if not self._unflushed_pages:
            self._unflushed_since_s = time.monotonic()
        self._unflushed.append((first, count))
        self._unflushed_pages += count

    def _flush(self, sink: Sink) -> None:
        sent_bytes, began_s = self._unflushed_pages * PAGE_BYTES, time.monotonic()
        runs, self._unflushed = self._unflushed, []
        try:
            sink.flush()
        except RegionCorrupt:
            # It is not known here which of them; the connection is given up, and the destination says what it has.
            self.mark(runs)
            raise
        with self._wake:
            self._unflushed_pages = 0
        now_s = time.monotonic()
        if sent_bytes >= _SAMPLE_BYTES:
            self._bandwidth.note(sent_bytes, self._busy_s + now_s - began_s)
            self._measured_s = now_s
        self._busy_s = 0.0
        self._changed()

    def _seal(self, sink: Sink, goal: Goal) -> None:
        seal = Seal(
            epoch=self._config.epoch,
            number=goal.number,
            owner=self._config.owner,
            table_digest=_native.digest(self._mirror.tobytes()),
            realtime_ns=self._clock.realtime_ns(),
            reason=goal.reason,
        )
        with self._wake:
            if self._goal is not goal or self._marks.any():
                return
            stands = self._held_seal
        if stands is not None and _same(stands, seal):
            self._note_seal(seal, goal)  # the answer to it was lost
            return
        if self.last_number >= goal.number:
            raise PeerRefused(
                f"{self.url}: holds seal {self.last_number}, and this would be seal {goal.number}",
                hint="somebody else has saved the region there; this host's number is out of date",
            )
        sink.seal(seal)
        self._note_seal(seal, goal)

    def _note_seal(self, seal: Seal, goal: Goal) -> None:
        with self._wake:
            self.acked = self.last_number = seal.number
            self._held_seal, self._reached = seal, goal

    def _keep_to_the_rate(self) -> None:
        """Sleep off what was copied too fast, in sleeps long enough to be worth it; not in a hurry."""
        with self._wake:
            if self._hurry:
                self._owed_s = 0.0
            elif self._owed_s >= 0.005:
                until_s = time.monotonic() + self._owed_s
                self._wake.wait_for(lambda: self._hurry or self._stopping, self._owed_s)
                self._owed_s = max(0.0, until_s - time.monotonic())


def _same(one: Seal, other: Seal) -> bool:
    """Whether they are of the same save."""
    return (one.epoch, one.number, one.table_digest) == (other.epoch, other.number, other.table_digest)


def _runs(positions: Pages, pages: Pages | None = None) -> list[Run]:
    """Runs of neighbours in sorted `positions`; with `pages`, those whose pages are neighbours as well."""
    if not len(positions):
        return []
    apart = np.diff(positions) != 1
    if pages is not None:
        apart |= np.diff(pages[positions]) != 1
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(positions)]
    return [(int(positions[begin]), end - begin) for begin, end in itertools.pairwise(edges)]
