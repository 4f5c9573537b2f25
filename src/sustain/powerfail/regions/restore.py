"""Restoring a saved region to a file or a device: `sustain restore`, and the host that takes a workload over.

Every page that comes is compared with its digest before it is written (unless asked otherwise). Every page that was
written is read back before the restore is called complete, which finds a file system that loses writes, and a program
that writes there, too; not in memory (tmpfs), where a write lease proves that nobody else has opened the target
meanwhile. What the target holds already is left as it is, so a restore that was interrupted goes on where it ended,
and one onto an older state copies only the difference. A file beside the target (`marker`) tells a half restored
one. Reading and writing overlap: in threads, or because the pages are on their way from a peer.
"""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

from sustain.errors import RegionCorrupt, WrongGeneration
from sustain.powerfail.regions import identity, marker
from sustain.powerfail.regions.background import STEP_PAGES, EarlySync, Readback, ahead
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
)
from sustain.powerfail.regions.sink import Source

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
        size_bytes = target.size_bytes
    identity.store(path, identity.of(region, seal))
    marker.remove(path)
    copied_bytes = written * PAGE_BYTES
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
) -> int:
    """Bring over what the target does not hold, durably; pages that were written."""
    pages = len(table) // DIGEST_BYTES
    written, damaged = RunCollector(), RunCollector()
    readback, early = Readback(target.read, table), EarlySync(target.flush)
    alone = verify and target.in_memory and target.hold_alone()
    behind = verify and not alone
    missing = _missing(source, target, table, verify)
    try:
        with closing(ahead(missing) if source.read_ahead else missing) as parts:
            for part in parts:
                for run in part.wrong:
                    damaged.add(*run)
                if part.pages and not part.wrong:
                    target.write(part.first, part.data)
                    written.add(part.first, part.pages)
                    early.wrote(len(part.data))
                    if behind:
                        readback.wrote(part.first, part.pages)
                progress(part.done, pages)
                alone = alone and target.held_alone()
        early.finish()
        if verify and not behind and not (alone and target.held_alone()):
            for run in written.runs:
                readback.wrote(*run)
        lost = readback.finish()
    finally:
        readback.close()
        early.close()
    if damaged.runs:
        raise RegionCorrupt(
            f"{source.url}: {describe(damaged.runs)} are not what their digests say; all others are restored",
            hint=_SAVED_DAMAGED,
        )
    if lost:
        raise RegionCorrupt(
            f"{target.path}: {describe(lost)} are not what was written there",
            hint="does a program write to it? otherwise its memory or device is damaged",
        )
    return sum(count for _, count in written.runs)


@dataclass(frozen=True, slots=True)
class _Part:
    """Pages that the target does not hold; `wrong`: those of them that are not what the table says. `done`: everything
    before that page has been looked at."""

    first: int
    pages: int
    data: bytes | bytearray | memoryview
    wrong: list[Run]
    done: int


def _missing(source: Source, target: Medium, table: bytes, verify: bool) -> Generator[_Part, None, None]:
    buffer = bytearray(STEP_PAGES * PAGE_BYTES)
    for first, count, data in target.spans(len(table) // DIGEST_BYTES, STEP_PAGES):
        digests = ZERO_DIGEST * count
        if data:
            part = memoryview(buffer)[: count * PAGE_BYTES]
            target.read(first, part)
            digests = digests_of(part, still=True)
        for at, length in differing(digests, digests_at(table, first, count), first):
            wanted = digests_at(table, at, length)
            if wanted == ZERO_DIGEST * length:
                yield _Part(at, length, bytes(length * PAGE_BYTES), [], first + count)
            else:
                got = source.read(at, length)
                yield _Part(
                    at, length, got, mismatches(got, wanted, at, still=True) if verify else [], first + count
                )
        yield _Part(first, 0, b"", [], first + count)
