"""Saving a region that stands still to one or several places, by hand: `sustain save`.

Each destination has a thread of its own, with its own reading of the region: one that is slow, full or dead
costs the others nothing. A destination is compared with what it holds already, page by page, and gets the rest.
It is sealed only when nothing has changed since the first page was read: then what was saved is the region as it
was at one moment. A lease on the file proves that where nobody has it open for writing; otherwise the region is
read once more while the destination makes its pages durable, and one that a program still writes to is refused,
its changed pages named.

The pre-copier (`precopy`) is for a running program; it ends with the same steps, from the last changed pages on.
"""

import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from sustain.errors import ConfigError, RegionBusy, RegionError, SustainError
from sustain.powerfail.regions import identity, marker
from sustain.powerfail.regions.background import STEP_PAGES, Buffers, ahead, page_buffer
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.medium import Medium, open_medium
from sustain.powerfail.regions.scan import (
    ZERO_DIGEST,
    Run,
    describe,
    differing,
    digests_at,
    digests_of,
    merged,
    mismatches,
    table_digest,
    zero_table,
)
from sustain.powerfail.regions.sink import Sink

_RECHECKERS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What to save. `identity.size_bytes` is the size of the region at `path`."""

    path: str
    identity: RegionIdentity
    epoch: int
    number: int  # at least; higher when a destination has seen that one
    owner: str
    reason: str
    realtime_ns: int


@dataclass(slots=True)
class Outcome:
    """What became of one destination. `sealed`: the number of the seal that it holds now, None: it has none of this
    save. `written_bytes`: sent to it; the rest it held already."""

    url: str
    sealed: int | None = None
    written_bytes: int = 0
    done_pages: int = 0
    duration_s: float | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Report:
    """`number` is that of the seal, None when not even one destination could be begun."""

    request: Request
    number: int | None
    outcomes: list[Outcome]
    duration_s: float
    note: str = ""  # something to know that is no failure

    @property
    def complete(self) -> bool:
        return all(each.sealed is not None for each in self.outcomes)


class _Stopped(Exception):
    """Somebody has asked the save to end."""


@dataclass(slots=True)
class _Line:
    """A destination on its way."""

    sink: Sink
    outcome: Outcome
    held: bytes = b""
    last_number: int = 0
    thread: threading.Thread | None = field(default=None)


def save(
    request: Request, sinks: Sequence[Sink], progress: Callable[[list[Outcome]], None] | None = None
) -> Report:
    """Save to every sink, and close it. Errors of destinations are in the report; raises those of the region alone:
    RegionError, RegionIOError. Calls `progress` a few times a second."""
    if len({sink.url for sink in sinks}) != len(sinks) or not sinks:
        raise ConfigError("every destination once, at least one", hint="give --to URL")
    started = monotonic()
    lines = [_Line(sink, Outcome(sink.url)) for sink in sinks]
    stop = threading.Event()
    show = progress or (lambda _: None)
    try:
        marker.refuse(request.path)
        open_medium(request.path).close()
        _in_parallel(lines, lambda line: _begin(line, request), show)
        ready = [line for line in lines if line.outcome.error is None]
        number = max([request.number, *(line.last_number + 1 for line in ready)])
        note = _remember(request, number) if ready else ""
        _in_parallel(ready, lambda line: _copy(line, request, number, stop, started), show)
    finally:
        stop.set()
        for line in lines:
            if line.thread is not None:
                line.thread.join()
            line.sink.close()
    outcomes = [line.outcome for line in lines]
    return Report(request, number if ready else None, outcomes, monotonic() - started, note)


def _remember(request: Request, number: int) -> str:
    """Note the number beside the region before anybody seals it, so that it is never given twice. A place that
    cannot be written to does not keep a region from being saved: what to know then."""
    region = request.identity
    known = identity.Known(str(UUID(bytes=region.uuid)), region.name, request.epoch, number)
    try:
        identity.store(request.path, known)
    except RegionError as error:
        return f"{error}; the next save needs --uuid {known.uuid} --epoch {known.epoch}"
    return ""


def _in_parallel(
    lines: list[_Line], step: Callable[[_Line], None], show: Callable[[list[Outcome]], None]
) -> None:
    """`step` for each in a thread of its own; what it raises is that destination's error."""

    def run(line: _Line) -> None:
        try:
            step(line)
        except Exception as error:  # noqa: BLE001 - shown in the report; the others go on
            line.outcome.error = error

    for line in lines:
        line.thread = threading.Thread(target=run, args=(line,), name=f"save to {line.sink.url}")
        line.thread.start()
    for line in lines:
        assert line.thread is not None
        while line.thread.is_alive():
            line.thread.join(0.2)
            show([each.outcome for each in lines])


def _begin(line: _Line, request: Request) -> None:
    held = line.sink.begin(request.identity, request.epoch)
    # Never equal to a digest, so that everything is sent to a place whose content is not known.
    line.held = held.table if held.table is not None else bytes(request.identity.pages * DIGEST_BYTES)
    line.last_number = held.last_number


def _copy(line: _Line, request: Request, number: int, stop: threading.Event, started: float) -> None:
    with open_medium(request.path) as medium:
        if medium.size_bytes != request.identity.size_bytes:
            raise RegionBusy(f"{request.path}: its size has changed", hint="stop the program that uses it")
        still = medium.hold_still()
        table = _pass(medium, line, stop)
        if still:
            line.sink.flush()
        if not (still and medium.held_still()):
            with _Recheck(medium, table, stop) as recheck:
                line.sink.flush()
                recheck.result()
        line.sink.seal(
            Seal(
                request.epoch, number, request.owner, table_digest(table), request.realtime_ns, request.reason
            )
        )
    line.outcome.sealed = number
    line.outcome.duration_s = monotonic() - started


def _pass(medium: Medium, line: _Line, stop: threading.Event) -> bytearray:
    """Send what the destination does not hold; the table of what was read."""
    table = bytearray(zero_table(medium.pages))
    read = _read(medium, line.sink.read_ahead)
    with closing(ahead(read) if line.sink.read_ahead else read) as parts:
        for first, pages, data, digests in parts:
            if stop.is_set():
                raise _Stopped
            table[first * DIGEST_BYTES : (first + pages) * DIGEST_BYTES] = digests
            for at, count in differing(digests, digests_at(line.held, first, pages)):
                sent = (
                    data[at * PAGE_BYTES : (at + count) * PAGE_BYTES] if data else bytes(count * PAGE_BYTES)
                )
                line.sink.write(first + at, sent, digests_at(digests, at, count))
                line.outcome.written_bytes += count * PAGE_BYTES
            line.outcome.done_pages = first + pages
    return table


def _read(
    medium: Medium, read_ahead: bool
) -> Generator[tuple[int, int, memoryview | None, bytes], None, None]:
    """All of it: (first page, pages, what they hold, their digests); None: a hole, zeros that need not be read."""
    buffers = Buffers(read_ahead)
    for first, pages, data in medium.spans(medium.pages, STEP_PAGES):
        if data:
            part = buffers.take(pages)
            medium.read(first, part)
            yield first, pages, part, digests_of(part, still=True)
        else:
            yield first, pages, None, ZERO_DIGEST * pages


class _Recheck:
    """Reads the region once more while a destination flushes: it must not have changed."""

    def __init__(self, medium: Medium, table: bytearray, stop: threading.Event) -> None:
        self._medium, self._table, self._stop = medium, table, stop
        self._spans = medium.spans(medium.pages, STEP_PAGES)
        self._lock = threading.Lock()  # of the spans and the changes
        self._changed: list[Run] = []
        self._error: Exception | None = None
        self._threads = [threading.Thread(target=self._run, name="recheck") for _ in range(_RECHECKERS)]

    def __enter__(self) -> "_Recheck":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def result(self) -> None:
        """Raises RegionBusy when pages have changed."""
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        if self._changed:
            raise RegionBusy(
                f"{self._medium.path}: {describe(merged(self._changed))} changed while it was saved",
                hint="stop or freeze the program that writes to it, then save again",
            )

    def _run(self) -> None:
        try:
            buffer = page_buffer()
            while (span := self._next()) is not None:
                self._compare(*span, buffer)
        except (SustainError, _Stopped) as error:
            self._error = error

    def _next(self) -> tuple[int, int, bool] | None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            return next(self._spans, None)

    def _compare(self, first: int, pages: int, data: bool, buffer: memoryview) -> None:
        known, part = digests_at(self._table, first, pages), buffer[: pages * PAGE_BYTES]
        if data:
            self._medium.read(first, part)
        elif known == ZERO_DIGEST * pages:
            return
        else:
            part[:] = bytes(len(part))
        if found := mismatches(part, known, first, still=True):
            with self._lock:
                self._changed += found


def default_name(path: str | os.PathLike[str]) -> str:
    """A name for a region that has none: that of its file, as far as it is usable."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(path)).lstrip(".")[:64] or "region"
