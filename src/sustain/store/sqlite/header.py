"""The header of a SQLite database, as far as it says WAL mode. Pure.

https://sqlite.org/fileformat2.html: bytes 18 and 19 are 2 in WAL mode, else 1; 24 is the change counter, and 92 the
counter for which the size at 28 holds. A database that comes from elsewhere (a backup, the bytes of a file) may say
WAL, and SQLite would refuse it here: so it is not shown, and not written.
"""

from typing import Final

_WAL: Final = b"\2\2"
_COUNTER: Final = slice(24, 28)
_VALID_FOR: Final = slice(92, 96)


def shown(data: bytes) -> bytes:
    """What SQLite is given of the beginning of the file."""
    return data if data[18:20] != _WAL else data[:18] + b"\1\1" + data[20:]


def written(data: bytes) -> bytes:
    """What is kept of the first page as SQLite writes it. Where it said WAL its counter moves on, too: then SQLite
    finds that what it has in its cache is not what is there."""
    if data[18:20] != _WAL or len(data) < _VALID_FOR.stop:
        return data
    page = bytearray(shown(data))
    counter = (int.from_bytes(page[_COUNTER], "big") + 1) % 2**32
    page[_COUNTER] = page[_VALID_FOR] = counter.to_bytes(4, "big")
    return bytes(page)
