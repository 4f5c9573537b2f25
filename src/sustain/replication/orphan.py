"""Keeps the log bytes that only a former primary has, before a snapshot replaces its store.

Used by `standby`. What an operator finds beside the store afterwards:

    NAME.orphan-e<epoch>-<from>-<to>        the log bytes, as they lay in the log
    NAME.orphan-e<epoch>-<from>-<to>.json   positions, epochs, commits, times, and what could not be kept

Both are durable before anything of the store is given up. Names follow from the positions, so that doing it
again after a crash writes the same files. Replaying the tail into the new history was rejected: only the
application knows whether that makes sense.
"""

import contextlib
import json
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from sustain._native import digest
from sustain.errors import StoreError, StoreIOError
from sustain.replication.records import COMMIT_BYTES, Group, commit_at, groups

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class OrphanReport:
    """What was kept, and what could not be. Positions are LSNs, times ns since 1970."""

    store: str
    store_uuid: str
    replica_uuid: str
    epoch: int  # the one in which the tail was written
    newer_epoch: int  # of the primary that was accepted instead
    common: int  # last position both share
    end: int  # end of the tail
    kept_from: int  # == common when everything was kept
    kept_bytes: int
    lost_bytes: int  # [common, kept_from) had been trimmed from the ring
    commits: int  # among what was kept, without those that opened an epoch
    first_commit: int | None
    last_commit: int | None
    first_commit_time_ns: int | None
    last_commit_time_ns: int | None
    written_at_ns: int
    file: str | None  # None when nothing could be kept
    host: str = ""
    before_commit_time_ns: int | None = None  # of the commit that ends at `common`; None: not known any more
    epochs_opened: int = 0  # among what was kept
    digest: str | None = (
        None  # of the kept bytes, XXH3-128; None: nothing was kept, or an older version kept it
    )


def keep_orphan(
    path: str,
    *,
    store_uuid: bytes,
    replica_uuid: bytes,
    epoch: int,
    newer_epoch: int,
    common: int,
    tail: int,
    end: int,
    read_log: Callable[[int, int], bytes],
    host: str = "",
) -> OrphanReport:
    """Write [max(common, tail), end) of the log of the store at `path` beside it, durably, with its report.

    Raises StoreIOError when that is impossible: the store must then stay as it is.
    """
    assert common < end, "there is no orphan"
    first = min(max(common, tail), end)
    base = f"{path}.orphan-e{epoch}-{common}-{end}"
    try:
        found, summed = _keep_bytes(base, first, end, read_log) if first < end else ([], None)
        made = [each.commit for each in found if each.opens_epoch is None]
        report = OrphanReport(
            store=path,
            store_uuid=str(uuid.UUID(bytes=store_uuid)),
            replica_uuid=str(uuid.UUID(bytes=replica_uuid)),
            epoch=epoch,
            newer_epoch=newer_epoch,
            common=common,
            end=end,
            kept_from=first,
            kept_bytes=end - first,
            lost_bytes=first - common,
            commits=len(made),
            first_commit=made[0].number if made else None,
            last_commit=made[-1].number if made else None,
            first_commit_time_ns=made[0].time_ns if made else None,
            last_commit_time_ns=made[-1].time_ns if made else None,
            written_at_ns=time.time_ns(),
            file=base if first < end else None,
            host=host,
            before_commit_time_ns=commit_time(read_log, common, tail),
            epochs_opened=len(found) - len(made),
            digest=summed,
        )
        text = json.dumps(asdict(report), indent=2).encode() + b"\n"
        write_durably(f"{base}.json", lambda fd: _write_all(fd, text))
    except OSError as error:
        raise StoreIOError(
            f"the tail that only {path} has cannot be kept: {error.strerror or error}",
            hint="make room beside the store; it stays as it is until its tail is safe",
            errno=error.errno,
        ) from error
    return report


def unresolved(path: str, replica_uuid: bytes, end: int) -> str | None:
    """The report of an orphan that the copy at `path` still holds: its snapshot was interrupted. None: there
    is none.

    Such a copy is not a prefix of the newest primary's commits and must not take over.
    """
    directory, store = os.path.split(os.path.abspath(path))
    # Without a pattern: this is asked all the time, and of another `end` each time.
    first, last = f"{store}.orphan-e", f"-{end}.json"
    for found in os.listdir(directory):
        if not (found.startswith(first) and found.endswith(last)):
            continue
        name = os.path.join(directory, found)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            with open(name, encoding="utf-8") as file:
                report = json.load(file)
            # A snapshot gives the copy another replica UUID.
            if uuid.UUID(report["replica_uuid"]).bytes == replica_uuid:
                return name
    return None


def commit_time(read_log: Callable[[int, int], bytes], end: int, tail: int) -> int | None:
    """Time of the commit that ends at `end`; None when the log, which begins at `tail`, does not hold it any more."""
    at = end - COMMIT_BYTES
    if at < tail:
        return None
    found = commit_at(read_log(at, COMMIT_BYTES), 0, at)
    return None if found is None else found.time_ns


def _keep_bytes(
    name: str, first: int, end: int, read_log: Callable[[int, int], bytes]
) -> tuple[list[Group], str]:
    """Write the bytes; the commits in them, and their digest."""

    def fill(fd: int) -> None:
        for at in range(first, end, _PIECE_BYTES):
            _write_all(fd, read_log(at, min(_PIECE_BYTES, end - at)))

    write_durably(name, fill)
    with mapped(name) as data:
        return list(groups(data, first)), digest(data).hex()


@contextlib.contextmanager
def mapped(name: str) -> Iterator[memoryview]:
    """The bytes of a file that is not empty, without reading them all at once. Raises OSError."""
    with (
        open(name, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        yield view


def write_durably(name: str, fill: Callable[[int], None]) -> None:
    """Make the file `name` hold what `fill` writes, or leave it as it was: temporary, fsync, rename,
    fsync."""
    temporary = f"{name}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fill(fd)
        os.fsync(fd)
    except (OSError, StoreError):
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, name)
    sync_directory(name)


def sync_directory(path: str) -> None:
    """Make the directory entry of `path` durable."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
