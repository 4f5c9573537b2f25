"""Restoring a saved region to a file or a device: `sustain restore`, and the host that takes a workload over.

Every page that comes is compared with its digest before it is written, and every page that was written is read
back before the restore is called complete (unless asked otherwise). What the target holds already is left as it
is, so a restore that was interrupted goes on where it ended, and one onto an older state copies only the
difference. A file beside the target (`marker`) tells a half restored one. Reading and writing overlap.
"""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

from sustain.errors import RegionCorrupt, SustainError, WrongGeneration
from sustain.powerfail.regions import identity, marker
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.medium import Medium, open_target
from sustain.powerfail.regions.scan import (
    ZERO_DIGEST,
    Run,
    RunCollector,
    describe,
    differing,
    digests_at,
    digests_of,
    mismatches,
    slices,
)
from sustain.powerfail.regions.sink import Source

_SLICE_PAGES = 256
_AHEAD = 8  # slices read ahead of the writing
_SAVED_DAMAGED = "the save is damaged: restore from another destination"


@dataclass(frozen=True, slots=True)
class Report:
    """`copied_bytes` came from the source; the rest of the region was there already."""

    url: str
    path: str
    identity: RegionIdentity
    seal: Seal
    target_bytes: int
    copied_bytes: int
    verified: bool
    duration_s: float


def restore(
    source: Source,
    path: str | os.PathLike[str],
    *,
    epoch: int | None = None,
    number: int | None = None,
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Make `path` what is sealed at `source`, which is closed by its owner. `epoch`, `number`: only that seal.

    `progress` is called with pages done and pages in all. Raises RegionUnsealed, WrongGeneration, RegionCorrupt,
    RegionBusy, RegionFull, RegionIOError, and what the source raises. Whatever it raises, the next call goes on.
    """
    started = monotonic()
    region, seal = source.identity(), source.seal()
    _check_generation(source.url, seal, epoch, number)
    table = source.table()
    with open_target(path, region.size_bytes) as target:
        marker.put(path, source.url, seal.epoch, seal.number)
        written = _copy(source, target, table, verify, progress or (lambda *_: None))
        _settle(target, table, written if verify else [])
        size_bytes = target.size_bytes
    identity.store(path, identity.of(region, seal))
    marker.remove(path)
    copied_bytes = sum(pages for _, pages in written) * PAGE_BYTES
    return Report(
        source.url, os.fspath(path), region, seal, size_bytes, copied_bytes, verify, monotonic() - started
    )


def _check_generation(url: str, seal: Seal, epoch: int | None, number: int | None) -> None:
    if (epoch is not None and seal.epoch != epoch) or (number is not None and seal.number != number):
        asked = " of ".join(
            [f"seal {number}"] * (number is not None) + [f"epoch {epoch}"] * (epoch is not None)
        )
        raise WrongGeneration(
            f"{url}: holds seal {seal.number} of epoch {seal.epoch}, not {asked}",
            hint="restore from a destination that has it, or ask for what is there",
        )


def _copy(
    source: Source, target: Medium, table: bytes, verify: bool, progress: Callable[[int, int], None]
) -> list[Run]:
    """Bring over what the target does not hold; the runs that were written."""
    pages = len(table) // DIGEST_BYTES
    written, damaged = RunCollector(), RunCollector()
    with closing(_ahead(_missing(source, target, table))) as parts:
        for part in parts:
            wrong = (
                mismatches(part.data, digests_at(table, part.first, part.pages), part.first) if verify else []
            )
            for run in wrong:
                damaged.add(*run)
            if part.pages and not wrong:
                target.write(part.first, part.data)
                written.add(part.first, part.pages)
            progress(part.done, pages)
    if damaged.runs:
        raise RegionCorrupt(
            f"{source.url}: {describe(damaged.runs)} are not what their digests say; all others are restored",
            hint=_SAVED_DAMAGED,
        )
    return written.runs


@dataclass(frozen=True, slots=True)
class _Part:
    """Pages that the target does not hold. `done`: everything before that page has been looked at."""

    first: int
    pages: int
    data: bytes
    done: int


def _missing(source: Source, target: Medium, table: bytes) -> Iterator[_Part]:
    pages = len(table) // DIGEST_BYTES
    buffer = bytearray(_SLICE_PAGES * PAGE_BYTES)
    for first, count, data in target.spans(pages, _SLICE_PAGES):
        digests = ZERO_DIGEST * count
        if data:
            part = memoryview(buffer)[: count * PAGE_BYTES]
            target.read(first, part)
            digests = digests_of(part)
        for at, length in differing(digests, digests_at(table, first, count), first):
            zeros = digests_at(table, at, length) == ZERO_DIGEST * length
            yield _Part(
                at, length, bytes(length * PAGE_BYTES) if zeros else source.read(at, length), first + count
            )
        yield _Part(first, 0, b"", first + count)


def _settle(target: Medium, table: bytes, written: list[Run]) -> None:
    """Make it durable, and meanwhile read back what was written."""
    failures: list[Exception] = []

    def flush() -> None:
        try:
            target.flush()
        except SustainError as error:
            failures.append(error)

    flushing = threading.Thread(target=flush, name="flush target")
    flushing.start()
    damaged = RunCollector()
    try:
        buffer = bytearray(_SLICE_PAGES * PAGE_BYTES)
        for run in written:
            for first, pages in slices(*run, _SLICE_PAGES):
                part = memoryview(buffer)[: pages * PAGE_BYTES]
                target.read(first, part)
                for wrong in mismatches(part, digests_at(table, first, pages), first):
                    damaged.add(*wrong)
    finally:
        flushing.join()
    for failure in failures:
        raise failure
    if damaged.runs:
        raise RegionCorrupt(
            f"{target.path}: {describe(damaged.runs)} are not what was written there",
            hint="does a program write to it? otherwise its memory or device is damaged",
        )


def _ahead(parts: Iterator[_Part]) -> Generator[_Part, None, None]:
    """The same, made in a thread of its own that stays a few ahead; what it raises is raised here."""
    ready: queue.Queue[_Part | Exception | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: _Part | Exception | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for part in parts:
                if not put(part):
                    return
        except Exception as error:  # noqa: BLE001 - raised in the other thread
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=run, name="read ahead")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
