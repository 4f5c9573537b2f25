"""Whole reads and writes at an offset, and the system's errors as ours. Used by all that keep regions in files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sustain.errors import RegionFull, RegionIOError

# A file system with large folios (ext4 since Linux 6.16) takes memory in blocks as large as a write. 2 MiB are what a
# virtual machine gives back to its host, it seems: writes of that size cost up to ten times as much there.
_AT_ONCE_BYTES = 256 << 10
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def os_errors(where: str | os.PathLike[str], doing: str, hint: str = "") -> Iterator[None]:
    """An OSError inside becomes RegionFull or RegionIOError, which name `where` and what was being done."""
    try:
        yield
    except RegionIOError:
        raise
    except OSError as error:
        message = f"{os.fspath(where)}: {doing}: {error.strerror or error}"
        if error.errno in _NO_ROOM:
            raise RegionFull(
                message, hint=hint or "make room there, or save to another destination"
            ) from None
        raise RegionIOError(
            message, hint=hint or "look at the device and its messages in the kernel log", errno=error.errno
        ) from None


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest[:_AT_ONCE_BYTES], offset)
        rest, offset = rest[written:], offset + written


def read_all(fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; bytes read, fewer only at the end of the file. Raises OSError."""
    rest = memoryview(buffer)
    got = 0
    while rest:
        count = os.preadv(fd, [rest], offset + got)
        if not count:
            break
        got += count
        rest = rest[count:]
    return got
