"""A segment: 128 bytes of header, then log bytes as they lie in the log. docs/formats/archive.md, "Segment".

Used by `destination` and `upkeep`, which make them, and by `restore`. The header repeats the name, so that an object
that was swapped with another is found out; the digest covers what lies behind it, so is one that was cut or has rotted.
What a segment says of the log is believed only after the engine has verified every record of it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sustain._native import digest
from sustain.errors import ArchiveCorrupt, ArchiveNewerVersion
from sustain.replication.archive.names import SegmentName
from sustain.replication.records import COMMIT, COMMIT_BYTES, commits

HEADER_BYTES = 128
_MAGIC = b"SUSARCS\0"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQQQQ16s24s")  # then 16 bytes of digest over it
_DIGEST_BYTES = 16
_COMMIT_WORD = COMMIT_BYTES | COMMIT << 32  # length and type of a COMMIT record, as one word
assert _HEADER.size + _DIGEST_BYTES == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself. `time_ns`: of its last commit; `time_high_ns`: no commit before its end is later,
    as far as the archive knows. Both since 1970."""

    name: SegmentName
    store: bytes
    time_ns: int
    time_high_ns: int
    digest: bytes


def seal(
    packed: bytearray | memoryview, name: SegmentName, store: bytes, time_ns: int, time_high_ns: int
) -> None:
    """Write the header before the log bytes of `name`, which lie in `packed` behind room for it."""
    assert len(packed) == HEADER_BYTES + name.last - name.first
    with memoryview(packed) as view, view[HEADER_BYTES:] as body:
        fields = _HEADER.pack(
            _MAGIC, _VERSION, 0, store, name.epoch, name.first, name.last, time_ns, time_high_ns,
            digest(body), bytes(24),
        )  # fmt: skip
    packed[:HEADER_BYTES] = fields + digest(fields)


def read_header(data: bytes | memoryview, name: SegmentName, store: bytes, where: str) -> Header:
    """Raises ArchiveCorrupt when `data` does not begin as the segment `name` of `store` does."""
    if len(data) < HEADER_BYTES:
        raise ArchiveCorrupt(f"{where} ends early: {len(data)} bytes")
    fields = bytes(data[: _HEADER.size])
    if fields[:8] != _MAGIC or digest(fields) != bytes(data[_HEADER.size : HEADER_BYTES]):
        raise ArchiveCorrupt(f"{where} does not begin as a segment does, or is damaged there")
    _, version, _, owner, epoch, first, last, time_ns, high_ns, body, _ = _HEADER.unpack(fields)
    if version != _VERSION:
        raise ArchiveNewerVersion(f"{where} has format {version}", hint="use a newer Sustain")
    if owner != store:
        raise ArchiveCorrupt(f"{where} belongs to another store ({owner.hex()})")
    if SegmentName(epoch, first, last) != name:
        raise ArchiveCorrupt(f"{where} is {SegmentName(epoch, first, last).path}, under a wrong name")
    return Header(name, owner, time_ns, high_ns, body)


def unpack(
    data: bytes | memoryview, name: SegmentName, store: bytes, where: str
) -> tuple[Header, memoryview]:
    """(header, log bytes) of a whole object. Raises ArchiveCorrupt."""
    header = read_header(data, name, store, where)
    body = memoryview(data)[HEADER_BYTES:]
    if len(body) != name.last - name.first:
        raise ArchiveCorrupt(f"{where} holds {len(body)} bytes of log, not {name.last - name.first}")
    if digest(body) != header.digest:
        raise ArchiveCorrupt(f"{where} is damaged: its bytes are not what its digest says")
    return header, body


def likely_commits(data: bytes | bytearray | memoryview, lsn: int) -> tuple[list[int], int]:
    """(ends of the COMMIT records in `data`, latest of their times in ns): all that there are, found by how they look.

    For cutting and for the time index, at memory speed. What an application stores could look like one; so an end
    counts only when the engine says that a group begins there, and a time only makes a search begin earlier.
    """
    import numpy as np  # here: a restore starts without NumPy

    words = np.frombuffer(data, dtype="<u8", count=len(data) // 8)
    most = len(words) - COMMIT_BYTES // 8 + 1
    if most <= 0:
        return [], 0
    at = np.flatnonzero(words[:most] == _COMMIT_WORD)
    at = at[words[at + 1] == lsn + at.astype(np.uint64) * 8]
    if not len(at):
        return [], 0
    return [lsn + int(each) * 8 + COMMIT_BYTES for each in at], int(words[at + 6].max())


def last_commit_by(data: memoryview, lsn: int, time_ns: int) -> tuple[int | None, bool]:
    """(end of the last commit before the first one that is later than `time_ns`, whether there is a later one); `data`
    begins with a group. None: the first commit is later already."""
    end = None
    for commit in commits(data, lsn):
        if commit.time_ns > time_ns:
            return end, True
        end = commit.end
    return end, False


def last_boundary(data: memoryview, lsn: int, position: int) -> int:
    """The last end of a group at or before `position`; `lsn`, where `data` begins, is one."""
    found = lsn
    for end in _ends(data, lsn):
        if end > position:
            break
        found = end
    return found


def _ends(data: memoryview, lsn: int) -> Iterator[int]:
    return (commit.end for commit in commits(data, lsn))
