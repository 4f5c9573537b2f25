"""Files that are written so that a power loss leaves the old or the new, and the system's errors as ours.

Used by the directory sink, by `save` and `restore`, and wherever a small file beside a region must be whole.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sustain.errors import RegionFull, RegionIOError

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


def replace_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably; after a crash it holds the old or the new. Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(draft, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in the directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
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
