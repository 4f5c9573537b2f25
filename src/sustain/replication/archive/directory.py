"""An archive in a directory. Used through `place.open_place`.

An object is written under a name of its own, made durable, renamed, and the directory made durable. obstore's
`LocalStore` was rejected: it flushes neither.
"""

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sustain.errors import ArchiveFull, ArchiveIOError
from sustain.replication.archive.place import Found, Place

if TYPE_CHECKING:
    from sustain._native import Buffer

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".put-"


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
        with self._errors(path, "cannot be read"):
            try:
                file = open(os.path.join(self._root, path), "rb", buffering=0)  # noqa: SIM115 - closed below
            except (FileNotFoundError, NotADirectoryError):
                return None
            with file:
                size = os.fstat(file.fileno()).st_size
                return _read(file.fileno(), start, max(0, min(length or size, size - start)))

    def list(self, under: str = "") -> list[Found]:
        found: list[Found] = []
        with self._errors(under, "cannot be listed"):
            for directory, _, names in os.walk(os.path.join(self._root, under), onerror=_raise_but_missing):
                for name in names:
                    if name.startswith("."):
                        continue
                    whole = os.path.join(directory, name)
                    with contextlib.suppress(FileNotFoundError):
                        stat = os.stat(whole)
                        path = os.path.relpath(whole, self._root)
                        found.append(Found(path, stat.st_size, stat.st_mtime_ns))
        return found

    def epochs(self) -> set[int]:
        with self._errors("", "cannot be listed"):
            try:
                names = os.listdir(self._root)
            except FileNotFoundError:
                return set()
        return {int(name[1:]) for name in names if name[:1] == "e" and name[1:].isdecimal()}

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
                for name in names:
                    if name.startswith(f"{_TEMPORARY}{_host()}-"):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(os.path.join(directory, name))

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


def _read(fd: int, start: int, length: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)
    data = os.read(fd, length)
    while len(data) < length and (more := os.read(fd, length - len(data))):
        data += more
    return data


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
