"""Small files that are replaced whole: a reader, and a crash, sees the old content or the new one and nothing between.

Used wherever one process writes what another reads, or what must be there after a power loss: run files, region
identities and manifests, statuses, reports. The new content goes to `PATH.new` in the same directory, which takes
the name over by a rename. A path has one writer at a time; who may be the writer is settled by the caller's lock.

Rejected: a draft of a name that nobody else has. Each kill in the middle of a write would leave one behind.
"""

import os
from pathlib import Path


def replace(path: Path, data: bytes, *, durable: bool, mode: int = 0o666) -> None:
    """Make `path` hold `data`. Raises OSError.

    `durable`: after a power loss, too, it holds the old or the new, and the new once this has returned. Without, a
    power loss may leave it empty: for what tells of a life that is over then. `mode`: of a new file, before umask.
    """
    draft = path.with_name(f"{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(fd, data[at:], at)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(draft, path)
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in the directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
