"""A file on a shared directory that is changed by compare-and-swap: `NAME.<version>`, the highest of which counts.

Used by `lease.file`, for the owner record and for requests. Each change is a new file, written whole under another
name, flushed, and put in place by `link()`, which fails when that version exists: that is the compare-and-swap. The
highest version is never deleted, so after linking one look at the directory says whether this host was hopelessly late
(it skipped over versions that have been deleted since); then its swap has failed.

Rejected: a lock file with `flock` around read and rename. A process that is stopped while it has the lock
would keep every other host from taking over for as long as it is stopped, which is just when a takeover is
needed; and on some network file systems flock is local to the host, silently. `link()` is atomic on all of
them, and where hard links are missing it says so.
"""

import os

from sustain.errors import LeaseError

_KEEP = 8  # old versions left for late readers and for people
_ATTEMPTS = 50


class Versions:
    """One process's access to `directory`/`name`.<version>; `draft` is a name there that no other process uses.

    Methods raise OSError, and LeaseError when versions come faster than one can be read.
    """

    def __init__(self, directory: str, name: str, draft: str) -> None:
        self._dir = directory
        self._prefix = f"{name}."
        self._draft = os.path.join(directory, draft)

    def path(self, version: int) -> str:
        return os.path.join(self._dir, f"{self._prefix}{version:012d}")

    def load(self) -> tuple[int, bytes] | None:
        """The newest version and what it holds; None when there is none."""
        for _ in range(_ATTEMPTS):
            version = self._newest()
            if version is None:
                return None
            try:
                with open(self.path(version), "rb") as file:
                    return version, file.read()
            except FileNotFoundError:
                continue  # a newer one has come, and this one was cleared away
        raise LeaseError(
            f"file://{self._dir}: the record changes faster than it can be read",
            hint="check the directory, its permissions and its file system",
        )

    def swap(self, version: int, data: bytes) -> bool:
        """Put `version` there, durably; False when it, or a later one, is there already."""
        target = self.path(version)
        _write_flushed(self._draft, data)
        try:
            if not self._link(target):
                return False
        finally:
            os.unlink(self._draft)
        self._sync_directory()
        newest = self._newest()
        if newest == version:
            self._clear_before(version - _KEEP)
        return newest == version

    def _newest(self) -> int | None:
        return max(self._versions(), default=None)

    def _versions(self) -> list[int]:
        names = (
            name.removeprefix(self._prefix) for name in os.listdir(self._dir) if name.startswith(self._prefix)
        )
        return [int(name) for name in names if name.isdecimal()]

    def _link(self, target: str) -> bool:
        try:
            os.link(self._draft, target)
        except FileExistsError:
            # A network file system may repeat a request whose answer was lost: then the link is ours.
            try:
                return os.path.samefile(self._draft, target)
            except FileNotFoundError:
                return False
        return True

    def _clear_before(self, version: int) -> None:
        for each in self._versions():
            if each < version:
                try:
                    os.unlink(self.path(each))
                except OSError:
                    return  # only tidiness; the next change tries again

    def _sync_directory(self) -> None:
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_flushed(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, data)
        os.fdatasync(fd)
    finally:
        os.close(fd)
