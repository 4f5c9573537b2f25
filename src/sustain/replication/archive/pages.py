"""An object of pages: part of a copy of the image. docs/formats/archive.md, "Pages".

Used by `copy`, which makes them, and by `restore`. Header, then runs of pages, then the pages; one digest over
everything but itself.
"""

import struct
from collections.abc import Iterator

from sustain._native import digest
from sustain.errors import ArchiveCorrupt, ArchiveNewerVersion

PAGE_BYTES = 4096
_MAGIC = b"SUSARCP\0"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQ")  # then 16 bytes of digest
_RUN = struct.Struct("<QQ")
_DIGEST_BYTES = 16
_HEAD_BYTES = _HEADER.size + _DIGEST_BYTES


def pack(store: bytes, copy: str, runs: list[tuple[int, int]], data: bytearray) -> bytearray:
    """The object that holds `data`, the pages of `runs` of (first, count), one after another."""
    assert len(data) == sum(count for _, count in runs) * PAGE_BYTES
    index = b"".join(_RUN.pack(*run) for run in runs)
    head = _HEADER.pack(_MAGIC, _VERSION, len(runs), store, int(copy, 16), len(data))
    packed = bytearray(head + bytes(_DIGEST_BYTES) + index)
    packed += data
    packed[_HEADER.size : _HEAD_BYTES] = _sum(packed)
    return packed


def unpack(data: bytes, store: bytes, copy: str, pages: int, where: str) -> Iterator[tuple[int, memoryview]]:
    """(first page, pages) of each run, all checked before the first. `pages`: of the image. Raises ArchiveCorrupt."""
    if len(data) < _HEAD_BYTES or data[:8] != _MAGIC or _sum(data) != data[_HEADER.size : _HEAD_BYTES]:
        raise ArchiveCorrupt(f"{where} is damaged: its bytes are not what its digest says")
    _, version, count, owner, number, length = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ArchiveNewerVersion(f"{where} has format {version}", hint="use a newer Sustain")
    if owner != store:
        raise ArchiveCorrupt(f"{where} belongs to another store ({owner.hex()})")
    if number != int(copy, 16):
        raise ArchiveCorrupt(f"{where} belongs to another snapshot, under a wrong name")
    at = _HEAD_BYTES + count * _RUN.size
    runs = [_RUN.unpack_from(data, _HEAD_BYTES + each * _RUN.size) for each in range(count)]
    fits = all(first + size <= pages for first, size in runs)
    if len(data) != at + length or length != sum(size for _, size in runs) * PAGE_BYTES or not fits:
        raise ArchiveCorrupt(f"{where} is not a whole object of pages")
    view = memoryview(data)
    for first, size in runs:
        yield first, view[at : at + size * PAGE_BYTES]
        at += size * PAGE_BYTES


def _sum(data: bytes | bytearray) -> bytes:
    with memoryview(data) as view, view[_HEAD_BYTES:] as body:
        return digest(bytes(data[: _HEADER.size]) + digest(body))
