"""An archive in a directory. Used through `place.open_place`.

An object is written under a name of its own, made durable, renamed, and the directory made durable. obstore's
`LocalStore` was rejected: it flushes neither.
"""

import contextlib
import errno
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sustain.errors import ArchiveCorrupt, ArchiveFull, ArchiveIOError
from sustain.replication.archive.place import Found, Place, epoch_of
from sustain.replication.archive.rooms import Rooms

if TYPE_CHECKING:
    from sustain._native import Buffer

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".put-"
_STALE_S = 3600.0


class Directory(Place):
    """The directory `root`, made when something is put there."""

    def __init__(self, url: str, root: str) -> None:
        self.url = url
        self._root = root
        self._made: set[str] = set()  # directories whose entries are durable

    def put(self, path: str, data: "Buffer") -> None:
        target = os.path.join(self._root, path)
        directory = os.path.dirname(target)
        temporary = os.path.join(directory, f"{_TEMPORARY}{_host()}-{secrets.token_hex(8)}")
        with self._errors(path, "cannot be written"):
            self._make(directory)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                try:
                    _write_all(fd, data)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _sync(directory)

    def get(self, path: str, start: int = 0, length: int | None = None) -> bytes | None:
        with self._errors(path, "cannot be read"), self._opened(path) as (fd, size):
            if fd is None:
                return None
            if length is None:
                self.refuse_size(path, size)
            room = bytearray(max(0, min(size if length is None else length, size - start)))
            return bytes(room[: _read(fd, start, memoryview(room))])

    def fetch(self, path: str, size: int, rooms: Rooms) -> memoryview | None:
        with self._errors(path, "cannot be read"), self._opened(path) as (fd, found):
            if fd is None:
                return None
            self.refuse_size(path, found, size)
            room = rooms.take(size)
            self.refuse_size(path, _read(fd, 0, room), size)
            return room

    def list(self, under: str = "") -> list[Found]:
        found: list[Found] = []
        with self._errors(under, "cannot be listed"):
            for directory, _, names in os.walk(os.path.join(self._root, under), onerror=_raise_but_missing):
                for name in names:
                    whole = os.path.join(directory, name)
                    with contextlib.suppress(FileNotFoundError):
                        status = os.lstat(whole)
                        if not name.startswith(".") and stat.S_ISREG(status.st_mode):
                            path = os.path.relpath(whole, self._root)
                            found.append(Found(path, status.st_size, status.st_mtime_ns))
        return found

    def epochs(self) -> set[int]:
        with self._errors("", "cannot be listed"):
            try:
                names = os.listdir(self._root)
            except FileNotFoundError:
                return set()
        return {epoch for name in names if (epoch := epoch_of(name)) is not None}

    def delete(self, paths: Sequence[str]) -> None:
        directories = set()
        for path in paths:
            with self._errors(path, "cannot be deleted"), contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._root, path))
                directories.add(os.path.dirname(os.path.join(self._root, path)))
        with self._errors("", "cannot be made durable"):
            for directory in directories:
                with contextlib.suppress(FileNotFoundError):
                    _sync(directory)

    def sweep(self) -> None:
        with self._errors("", "cannot be listed"):
            for directory, _, names in os.walk(self._root, onerror=_raise_but_missing):
                ours = epoch_of(os.path.basename(directory)) is not None
                for name in names:
                    whole = os.path.join(directory, name)
                    if name.startswith(f"{_TEMPORARY}{_host()}-"):
                        with contextlib.suppress(FileNotFoundError):
                            # Elsewhere somebody else of this host may be putting a hold or a proof just now.
                            if ours or time.time() - os.lstat(whole).st_mtime > _STALE_S:
                                os.unlink(whole)

    def _make(self, directory: str) -> None:
        """See that `directory` is there, durably."""
        if directory in self._made:
            return
        missing = []
        at = directory
        while not os.path.isdir(at):
            missing.append(at)
            at = os.path.dirname(at)
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(each, 0o700)
            _sync(os.path.dirname(each))
        self._made.add(directory)

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int | None, int]]:
        """(descriptor, size) of an object: of a regular file, whatever else there may be of that name."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(os.path.join(self._root, path), flags)
        except (FileNotFoundError, NotADirectoryError):
            yield None, 0
            return
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveCorrupt(f"{self.where(path)} is not a regular file")
            yield fd, status.st_size
        finally:
            os.close(fd)

    @contextmanager
    def _errors(self, path: str, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"{self.where(path)} {doing}: {error.strerror or error}"
            self._made.clear()  # it may have been taken away
            if error.errno in _NO_ROOM:
                raise ArchiveFull(text, hint="make room there, or keep less: ?keep=TIME") from None
            hint = "look at the directory, its permissions and its file system"
            raise ArchiveIOError(text, hint=hint, errno=error.errno) from None


def _host() -> str:
    return "".join(each if each.isalnum() else "_" for each in socket.gethostname())[:64]


def _raise_but_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_all(fd: int, data: "Buffer") -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(fd, view[at : at + (64 << 20)])


def _read(fd: int, start: int, room: memoryview) -> int:
    """Fill `room` from `start` on; how much there was."""
    at = 0
    while at < len(room) and (count := os.preadv(fd, [room[at : at + (64 << 20)]], start + at)):
        at += count
    return at


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
