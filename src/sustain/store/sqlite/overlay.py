"""What one connection has written to one database and not committed: blocks over the file as it is. Pure.

`files.py` reads and writes through it. SQLite writes whole pages, but not always of one size (VACUUM may change it) nor
of ours, so writes are cut into blocks of 4 KiB; with SQLite's default page size each write is one block. The
alternative, to write into the store's file at once, would leave half a transaction where the next commit of another
thread takes it along.
"""

from collections.abc import Iterator
from typing import Protocol

BLOCK_BYTES = 4096
_ZEROS = bytes(BLOCK_BYTES)


class Base(Protocol):
    """The committed database below."""

    @property
    def size(self) -> int: ...
    def pread(self, length: int, offset: int) -> bytes: ...


class Overlay:
    """Writes over `base`, which must not change meanwhile.

    size: bytes of the database as its connection sees it.
    """

    __slots__ = ("_base", "_blocks", "_floor", "_had", "size")

    def __init__(self, base: Base) -> None:
        self._base = base
        self._blocks: dict[int, bytes] = {}
        self.size = self._had = self._floor = base.size  # nothing of the base is seen from the floor on

    def read(self, length: int, offset: int) -> bytes:
        """Shorter at the end, empty beyond it."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        number, within = divmod(offset, BLOCK_BYTES)
        if within + length <= BLOCK_BYTES:
            block = self._block(number)
            return block if length == BLOCK_BYTES else block[within : within + length]
        last = (offset + length - 1) // BLOCK_BYTES
        return b"".join(map(self._block, range(number, last + 1)))[within : within + length]

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        number, within = divmod(offset, BLOCK_BYTES)
        if not within and len(data) == BLOCK_BYTES:
            self._blocks[number] = data
        else:
            at = 0
            while at < len(data):
                part = data[at : at + BLOCK_BYTES - within]
                if len(part) < BLOCK_BYTES:
                    block = self._block(number)
                    part = block[:within] + part + block[within + len(part) :]
                self._blocks[number] = part
                at += BLOCK_BYTES - within
                number, within = number + 1, 0
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        """Shorter, or longer by zeros."""
        if size < self.size:
            number, within = divmod(size, BLOCK_BYTES)
            if within:
                self._blocks[number] = self._block(number)[:within] + bytes(BLOCK_BYTES - within)
                number += 1
            for each in [each for each in self._blocks if each >= number]:
                del self._blocks[each]
            self._floor = min(self._floor, size)
        self.size = size

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of all that may differ from the base, in order, not beyond `size`."""
        numbers = set(self._blocks)
        # What was cut off and is there again, unwritten, is zeros now.
        numbers.update(range(-(-self._floor // BLOCK_BYTES), -(-min(self.size, self._had) // BLOCK_BYTES)))
        for number in sorted(numbers):
            offset = number * BLOCK_BYTES
            block = self._blocks.get(number, _ZEROS)
            yield offset, block if offset + BLOCK_BYTES <= self.size else block[: self.size - offset]

    def _block(self, number: int) -> bytes:
        found = self._blocks.get(number)
        if found is not None:
            return found
        offset = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, self._floor - offset)
        below = self._base.pread(length, offset) if length > 0 else b""
        return below if len(below) == BLOCK_BYTES else below + bytes(BLOCK_BYTES - len(below))
