"""Proves that a restore would work, by doing one. Used by `sustain archive verify`, and by `upkeep` through it.

The newest position is restored to a scratch directory, just as `sustain restore` does, and removed; with `everything`
each other object is read and compared with its digest, too. What came of it lies in the archive as `proof`, so that
whoever lists it sees when a restore last worked.
"""

import contextlib
import glob
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sustain._native import Control
from sustain.errors import ArchiveCorrupt, ArchiveError, ArchiveIOError, StoreError
from sustain.replication.archive import names, pages, segment
from sustain.replication.archive.contents import Contents, read_contents, read_snapshot
from sustain.replication.archive.documents import Proof, encode
from sustain.replication.archive.place import Place
from sustain.replication.archive.reading import AHEAD, ahead, holding
from sustain.replication.archive.restore import Restore, Restored, Wish
from sustain.replication.archive.rooms import Rooms

_SCRATCH = "sustain-verify-"
_STALE_S = 600.0


def prove(
    place: Place,
    scratch: str,
    everything: bool,
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> tuple[Proof, list[str]]:
    """(proof, what is damaged or missing). Raises ArchiveIOError, NotAnArchive, StoreIOError when nothing was
    proved, neither way."""
    store = read_contents(place).newest.store
    _sweep(scratch)
    path = os.path.join(scratch, f"{_SCRATCH}{secrets.token_hex(8)}.sus")
    restore = Restore([place], report, progress)
    begun = time.monotonic()
    restored: Restored | None = None
    why = ""
    try:
        restored = restore.run(path, Wish(), "memory")
    except ArchiveIOError:
        raise
    except ArchiveError as error:
        why = str(error)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    damaged, objects = list(restore.damaged), restore.objects
    if everything:
        more, looked_at = _read_everything(place, report)
        damaged += [text for text in more if text not in damaged]
        objects = looked_at
    proof = Proof(
        store=store,
        at_ns=time.time_ns(),
        worked=restored is not None,
        position=None if restored is None else restored.position,
        time_ns=None if restored is None else restored.time_ns,
        duration_s=time.monotonic() - begun,
        restored_bytes=restore.read_bytes,
        objects=objects,
        everything=everything,
        why=why or "; ".join(damaged)[:1000],
        host=socket.gethostname(),
    )
    try:
        place.put(names.PROOF, encode(proof))
    except ArchiveIOError as error:
        report(f"{error}: the time of this proof is not kept there")
    return proof, damaged


def _sweep(scratch: str) -> None:
    """Remove what proofs left that were killed: old, and nobody's store any more."""
    for found in glob.glob(os.path.join(glob.escape(scratch), f"{_SCRATCH}*.sus")):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if time.time() - os.lstat(found).st_mtime > _STALE_S and not _locked(found):
                os.unlink(found)


def _locked(path: str) -> bool:
    try:
        control = Control(path)
    except StoreError:
        return False  # it never came to be a store
    try:
        return control.writer_locked()
    finally:
        control.close()


def _read_everything(place: Place, report: Callable[[str], None]) -> tuple[list[str], int]:
    """(what is wrong with segments and snapshots, how many were read)."""
    damaged: list[str] = []
    rooms = Rooms(keep=AHEAD + 1)
    with holding([place], report), ThreadPoolExecutor(AHEAD, "sustain-verify") as pool:
        contents = read_contents(place)
        paths = [each.path for each in contents.segments()] + [each.path for each in contents.snapshots()]
        for path, why in zip(
            paths, ahead(pool, lambda each: _wrong(contents, each, rooms), paths), strict=True
        ):
            # What compaction or retention took away meanwhile is missed by nobody.
            if why and any(found.path == path for found in place.list(path.partition("/")[0])):
                damaged.append(why)
                report(why)
    return damaged, len(paths)


def _wrong(contents: Contents, path: str, rooms: Rooms) -> str | None:
    """What is wrong with a segment, or with a snapshot and its pages."""
    place = contents.place

    def fetch(path: str, size: int) -> memoryview:
        data = place.fetch(path, size, rooms)
        if data is None:
            raise ArchiveCorrupt(f"{place.where(path)} is missing")
        return data

    try:
        if (name := names.segment_name(path)) is not None:
            # Not by its name: that may be wrong, and larger than memory.
            data = fetch(path, contents.objects[path].size)
            segment.unpack(data, name, contents.store, place.where(path))
            rooms.give(data)
        elif (snapshot := names.snapshot_name(path)) is not None:
            found = read_snapshot(place, snapshot, contents.store)
            count = found.image_size // pages.PAGE_BYTES
            for part in found.parts:
                data = fetch(part.path, part.size)
                for _ in pages.unpack(data, contents.store, found.copy, count, place.where(part.path)):
                    pass
                rooms.give(data)
    except ArchiveCorrupt as error:
        return str(error)
    return None
