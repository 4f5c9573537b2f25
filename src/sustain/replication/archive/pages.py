"""An object of pages: part of a copy of the image. docs/formats/archive.md, "Pages".

Used by `copy`, which makes them, and by `restore`. Header, then runs of pages, then the pages; one digest over
everything but itself.
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sustain._native import digest
from sustain.errors import ArchiveCorrupt, ArchiveNewerVersion

if TYPE_CHECKING:
    from sustain._native import Buffer

PAGE_BYTES = 4096
Piece = tuple[int, memoryview]  # first page, pages
_MAGIC = b"SUSARCP\0"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQ")  # then 16 bytes of digest
_RUN = struct.Struct("<QQ")
_DIGEST_BYTES = 16
_HEAD_BYTES = _HEADER.size + _DIGEST_BYTES


def pack(room: memoryview, store: bytes, copy: str, runs: list[tuple[int, int]]) -> None:
    """Make an object of `room`, which has the size that `packed_size` says, and where the pages of `runs` of (first,
    count) lie already, one after another, from `data_offset` on."""
    index = b"".join(_RUN.pack(*run) for run in runs)
    length = sum(count for _, count in runs) * PAGE_BYTES
    assert len(room) == packed_size(runs)
    room[: _HEADER.size] = _HEADER.pack(_MAGIC, _VERSION, len(runs), store, int(copy, 16), length)
    room[_HEAD_BYTES : data_offset(runs)] = index
    room[_HEADER.size : _HEAD_BYTES] = _sum(room)


def data_offset(runs: list[tuple[int, int]]) -> int:
    """Where pages begin in an object of these runs, in bytes."""
    return _HEAD_BYTES + len(runs) * _RUN.size


def packed_size(runs: list[tuple[int, int]]) -> int:
    """Bytes of an object of these runs."""
    return data_offset(runs) + sum(count for _, count in runs) * PAGE_BYTES


def unpack(data: "Buffer", store: bytes, copy: str, pages: int, where: str) -> Iterator[Piece]:
    """(first page, pages) of each run, all checked before the first. `pages`: of the image. Raises ArchiveCorrupt."""
    if (
        len(data) < _HEAD_BYTES
        or bytes(data[:8]) != _MAGIC
        or _sum(data) != bytes(data[_HEADER.size : _HEAD_BYTES])
    ):
        raise ArchiveCorrupt(f"{where} is damaged: its bytes are not what its digest says")
    _, version, count, owner, number, length = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ArchiveNewerVersion(f"{where} has format {version}", hint="use a newer Sustain")
    if owner != store:
        raise ArchiveCorrupt(f"{where} belongs to another store ({owner.hex()})")
    if number != int(copy, 16):
        raise ArchiveCorrupt(f"{where} belongs to another snapshot, under a wrong name")
    at = _HEAD_BYTES + count * _RUN.size
    if at > len(data):
        raise ArchiveCorrupt(f"{where} is not a whole object of pages")
    runs = [_RUN.unpack_from(data, _HEAD_BYTES + each * _RUN.size) for each in range(count)]
    fits = all(first + size <= pages for first, size in runs)
    if len(data) != at + length or length != sum(size for _, size in runs) * PAGE_BYTES or not fits:
        raise ArchiveCorrupt(f"{where} is not a whole object of pages")
    view = memoryview(data)
    for first, size in runs:
        yield first, view[at : at + size * PAGE_BYTES]
        at += size * PAGE_BYTES


def _sum(data: "Buffer") -> bytes:
    with memoryview(data) as view, view[_HEAD_BYTES:] as body:
        return digest(bytes(view[: _HEADER.size]) + digest(body))
