"""Reads record headers and COMMIT records out of raw log bytes. Pure; verifies nothing (the engine does
that).

Used by the shipper, to compare its COMMIT at a replica's end with the replica's, and for orphan tails: to count
what a former primary had committed alone, and to say what that changed. Layout: docs/formats/store.md, "Log records".
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DATA, COMMIT, ZERO, EPOCH = 1, 2, 3, 4
RECORD_BYTES = 32
COMMIT_BYTES = 72
_RECORD = struct.Struct("<IHHQQII")
_COMMIT = struct.Struct("<QQQQII")
_PAIR = struct.Struct("<QQ")
_EPOCH = struct.Struct("<QQ16s")
_OFFSET_MASK = (1 << 48) - 1


@dataclass(frozen=True)
class Record:
    """A record's header. `lsn` and `length` in bytes."""

    length: int
    kind: int
    lsn: int
    epoch: int
    checksum: int
    count: int


@dataclass(frozen=True)
class Commit:
    """What a COMMIT record says of its group."""

    first_lsn: int
    number: int
    time_ns: int  # since 1970
    chain: int
    checksum: int
    epoch: int
    end: int


def record_at(data: bytes | bytearray | memoryview, offset: int, lsn: int) -> Record | None:
    """The record at `offset`, which must be that of `lsn`; None when there is none."""
    if offset + RECORD_BYTES > len(data):
        return None
    length, kind, _, stated, epoch, count, checksum = _RECORD.unpack_from(data, offset)
    if stated != lsn or kind not in (DATA, COMMIT, ZERO, EPOCH) or length < RECORD_BYTES or length % 8:
        return None
    return Record(length, kind, stated, epoch, checksum, count)


def commit_at(data: bytes | bytearray | memoryview, offset: int, lsn: int) -> Commit | None:
    """The COMMIT record at `offset`; None when there is none."""
    record = record_at(data, offset, lsn)
    if record is None or record.kind != COMMIT or record.length != COMMIT_BYTES:
        return None
    if offset + COMMIT_BYTES > len(data):
        return None
    first, number, time_ns, _, _, chain = _COMMIT.unpack_from(data, offset + RECORD_BYTES)
    return Commit(first, number, time_ns, chain, record.checksum, record.epoch, lsn + COMMIT_BYTES)


def commits(data: bytes | memoryview, lsn: int) -> Iterator[Commit]:
    """The COMMIT records in `data`, which begins with a record at `lsn`; ends where records do."""
    offset = 0
    while (record := record_at(data, offset, lsn + offset)) is not None:
        commit = commit_at(data, offset, lsn + offset)
        if commit is not None:
            yield commit
        offset += record.length


@dataclass(frozen=True)
class Group:
    """One commit, with where its records lie in the bytes that it was found in."""

    commit: Commit
    opens_epoch: int | None  # the epoch that it opens; such a commit no application made
    records: tuple[tuple[int, Record], ...]  # (offset, header), without the COMMIT


@dataclass(frozen=True)
class Change:
    """What a commit did to bytes [offset, offset + length) of the image; `data` None: they became zero."""

    offset: int
    length: int
    data: bytes | None


def groups(data: bytes | memoryview, lsn: int) -> Iterator[Group]:
    """The whole groups in `data`, which begins with a group at `lsn`; ends where they do."""
    offset, opened = 0, None
    held: list[tuple[int, Record]] = []
    while (record := record_at(data, offset, lsn + offset)) is not None:
        if record.kind == COMMIT:
            commit = commit_at(data, offset, lsn + offset)
            if commit is None:
                return
            yield Group(commit, opened, tuple(held))
            held, opened = [], None
        else:
            held.append((offset, record))
            if record.kind == EPOCH and (found := epoch_at(data, offset, lsn + offset)) is not None:
                opened = found[0]
        offset += record.length


def epoch_at(data: bytes | memoryview, offset: int, lsn: int) -> tuple[int, bytes] | None:
    """(epoch, replica UUID of who opened it) of the EPOCH record at `offset`; None when there is none."""
    record = record_at(data, offset, lsn)
    if record is None or record.kind != EPOCH or record.length < RECORD_BYTES + _EPOCH.size:
        return None
    if offset + RECORD_BYTES + _EPOCH.size > len(data):
        return None
    epoch, _, writer = _EPOCH.unpack_from(data, offset + RECORD_BYTES)
    return epoch, writer


def changes(data: bytes | memoryview, group: Group) -> Iterator[Change]:
    """What `group`, found in `data`, changed, in the order of the log. Raises ValueError for a record that does not
    hold what it says."""
    for offset, record in group.records:
        if record.kind not in (DATA, ZERO):
            continue
        at, end = offset + RECORD_BYTES, offset + record.length
        if end > len(data):
            raise ValueError(f"the record at {record.lsn} is longer than the log")
        for _ in range(record.count):
            if at + _PAIR.size > end:
                raise ValueError(f"the record at {record.lsn} is shorter than its ranges")
            first, second = _PAIR.unpack_from(data, at)
            at += _PAIR.size
            if record.kind == ZERO:
                yield Change(first, second, None)
                continue
            length = (first >> 48) * 8
            if at + length > end:
                raise ValueError(f"the record at {record.lsn} is shorter than its ranges")
            yield Change(first & _OFFSET_MASK, length, bytes(data[at : at + length]))
            at += length


def chain_at(
    view: Callable[[int, int], bytes | memoryview], tail: int, committed: int, lsn: int
) -> int | None:
    """Checksum of the COMMIT record that ends at `lsn`, a group boundary in [tail, committed]; None: not in
    the log.

    `view(lsn, length)` gives log bytes. The record itself is looked at if the log still holds it; else the
    COMMIT of the next group names it.
    """
    if lsn == 0:
        return 0
    if lsn - COMMIT_BYTES >= tail:
        before = commit_at(view(lsn - COMMIT_BYTES, COMMIT_BYTES), 0, lsn - COMMIT_BYTES)
        return before.checksum if before else None
    at = lsn
    while at + RECORD_BYTES <= committed:
        record = record_at(view(at, RECORD_BYTES), 0, at)
        if record is None:
            return None
        if record.kind == COMMIT:
            commit = commit_at(view(at, COMMIT_BYTES), 0, at)
            return commit.chain if commit else None
        at += record.length
    return None
