"""Segments: objects of packed pages, written once; and which segment holds which page. Bytes <-> values.

Used by `objects` alone. The byte tables are in docs/formats/region.md.
"""

import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sustain.errors import RegionCorrupt
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, Segment
from sustain.powerfail.regions.scan import ZERO_DIGEST, Run, table_digest, zero_table

_HEADER = struct.Struct("<8sIIQ16s24s")
_RUN = struct.Struct("<QII")
_MAGIC = b"SUSRSEG\0"
_VERSION, _ZEROS = 1, 1
_HINT = "restore from another destination, or save the region again under another prefix"


@dataclass(frozen=True, slots=True)
class Part:
    """Pages that lie together in a segment; `offset` of the first in the object, None: zeros, that lie nowhere."""

    first: int
    pages: int
    offset: int | None
    digests: bytes


class Packer:
    """Gathers pages for one segment, each at most once or else in the order in which they came."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, bool]] = []
        self._digests = bytearray()
        self._data = bytearray()
        self.pages = 0

    @property
    def data_bytes(self) -> int:
        return len(self._data)

    def add(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        pages = len(digests) // DIGEST_BYTES
        zeros = digests == ZERO_DIGEST * pages
        if not zeros:
            self._data += data
        if self._runs and sum(self._runs[-1][:2]) == first_page and self._runs[-1][2] == zeros:
            self._runs[-1] = (self._runs[-1][0], self._runs[-1][1] + pages, zeros)
        else:
            self._runs.append((first_page, pages, zeros))
        self._digests += digests
        self.pages += pages

    def pack(self, region_uuid: bytes) -> tuple[Segment, bytes]:
        """The segment and its bytes."""
        index = b"".join(
            [
                _HEADER.pack(_MAGIC, _VERSION, len(self._runs), self.pages, region_uuid, bytes(24)),
                *(_RUN.pack(first, pages, _ZEROS if zeros else 0) for first, pages, zeros in self._runs),
                self._digests,
            ]
        )
        size_bytes = len(index) + len(self._data)
        return Segment(secrets.token_hex(16), size_bytes, self.pages, table_digest(index)), index + self._data


def index_bytes(head: bytes, segment: Segment, where: str) -> int:
    """How long the index is of which `head` is the beginning, at least 64 bytes. Raises RegionCorrupt."""
    if len(head) < _HEADER.size:
        raise _damaged(where, "cut off")
    magic, version, runs, pages, _, _ = _HEADER.unpack_from(head)
    if magic != _MAGIC or version != _VERSION or pages != segment.pages:
        raise _damaged(where, "not the segment that the manifest names")
    length = _HEADER.size + runs * _RUN.size + pages * DIGEST_BYTES
    if length > segment.size_bytes:
        raise _damaged(where, "its index is longer than the whole")
    return int(length)


def parts(
    index: bytes, segment: Segment, region_uuid: bytes, region_pages: int, where: str
) -> Iterator[Part]:
    """What lies in a segment, by its index. Raises RegionCorrupt."""
    if table_digest(index) != segment.index_digest:
        raise _damaged(where, "its index is not what the manifest says")
    _, _, runs, pages, uuid, _ = _HEADER.unpack_from(index)
    digests_at = _HEADER.size + runs * _RUN.size
    offset, seen = len(index), 0
    for number in range(runs):
        first, count, flags = _RUN.unpack_from(index, _HEADER.size + number * _RUN.size)
        zeros = bool(flags & _ZEROS)
        start = digests_at + seen * DIGEST_BYTES
        if first + count > region_pages:
            raise _damaged(where, f"page {first + count - 1} is not one of the region")
        yield Part(
            first, count, None if zeros else offset, bytes(index[start : start + count * DIGEST_BYTES])
        )
        offset += 0 if zeros else count * PAGE_BYTES
        seen += count
    if offset != segment.size_bytes or seen != pages or uuid != region_uuid:
        raise _damaged(where, "its index contradicts itself")


class Layout:
    """Where each page lies: the table, and for each page the segment (an index into a list of its user) and offset."""

    def __init__(self, pages: int) -> None:
        self.table = bytearray(zero_table(pages))
        self._segment = np.full(pages, -1, np.int64)
        self._offset = np.zeros(pages, np.int64)

    def put(self, segment: int, part: Part) -> None:
        """Newer than all before."""
        span = slice(part.first, part.first + part.pages)
        self.table[part.first * DIGEST_BYTES : (part.first + part.pages) * DIGEST_BYTES] = part.digests
        if part.offset is None:
            self._segment[span] = segment
            self._offset[span] = -1
        else:
            self._segment[span] = segment
            self._offset[span] = part.offset + np.arange(part.pages, dtype=np.int64) * PAGE_BYTES

    def renumber(self, kept: list[int]) -> None:
        """Of the segments only `kept` are left, in that order; no page counts in another."""
        new = np.full(max([0, *kept, int(self._segment.max(initial=-1))]) + 2, -1, np.int64)
        new[kept] = np.arange(len(kept))
        self._segment = new[self._segment]  # -1 takes the last, which is -1

    def live_pages(self, segments: int) -> list[int]:
        """Of each segment, how many pages count."""
        return [int(n) for n in np.bincount(self._segment[self._segment >= 0], minlength=segments)]

    def pages_of(self, segment: int) -> Iterator[Run]:
        """Runs of pages for which a segment counts."""
        pages = np.flatnonzero(self._segment == segment)
        if len(pages):
            for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
                yield int(run[0]), len(run)

    def spans(self, first_page: int, pages: int) -> Iterator[tuple[int, int, int, int]]:
        """(first, pages, segment or -1, offset or -1) of stretches that lie together; -1: zeros."""
        at, end = first_page, first_page + pages
        while at < end:
            segment, offset = int(self._segment[at]), int(self._offset[at])
            zeros = segment < 0 or offset < 0
            count = 1
            while at + count < end:
                here = int(self._segment[at + count]), int(self._offset[at + count])
                if zeros != (here[0] < 0 or here[1] < 0):
                    break
                if not zeros and here != (segment, offset + count * PAGE_BYTES):
                    break
                count += 1
            yield (at, count, -1, -1) if zeros else (at, count, segment, offset)
            at += count


def _damaged(where: str, why: str) -> RegionCorrupt:
    return RegionCorrupt(f"{where}: {why}", hint=_HINT)
