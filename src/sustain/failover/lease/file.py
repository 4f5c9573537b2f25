"""A lease in a directory: `file:///dir`, for processes on one host or hosts on a shared file system.

Used through `open_lease`. Each change of the record is a new file `lease.<version>`, written whole under
another name, flushed, and put in place by `link()`, which fails when that version exists: that is the
compare-and-swap. The highest version is the record and is never deleted, so after linking one look at the
directory says whether this host was hopelessly late (it skipped over versions that have been deleted
since); then its swap has failed.

Rejected: a lock file with `flock` around read and rename. A process that is stopped while it has the lock
would keep every other host from taking over for as long as it is stopped, which is just when a takeover is
needed; and on some network file systems flock is local to the host, silently. `link()` is atomic on all of
them, and where hard links are missing it says so.

The directory is never created here: on a host where a share is not mounted, an empty directory would be a
second lease, and two primaries.
"""

import errno
import os

from sustain.clock import Clock
from sustain.errors import LeaseError
from sustain.failover.lease.base import SwapLease
from sustain.failover.lease.codec import parse, parse_note, render, render_note
from sustain.failover.lease.record import RATE_MARGIN, Candidate, LeaseRecord

_PREFIX = "lease."
_NOTE_PREFIX, _NOTE_SUFFIX = "standby.", ".json"
_KEEP = 8  # old versions left for late readers and for people
_ATTEMPTS = 50


class FileLease(SwapLease):
    """One supervisor's access to the lease in `directory`."""

    def __init__(
        self, directory: str, instance: str, clock: Clock, ttl_s: float, margin: float = RATE_MARGIN
    ) -> None:
        super().__init__(f"file://{directory}", instance, clock, ttl_s, margin)
        self._dir = directory

    def _load(self) -> LeaseRecord:
        for _ in range(_ATTEMPTS):
            version = self._newest()
            if version is None:
                return LeaseRecord()
            try:
                with open(self._name(version), "rb") as file:
                    return self._parsed(file.read(), version)
            except FileNotFoundError:
                continue  # a newer one has come, and this one was cleared away
            except OSError as error:
                raise self._failed("read", error) from error
        raise LeaseError(f"{self.url}: the record changes faster than it can be read", hint=_HINT)

    def _parsed(self, text: bytes, version: int) -> LeaseRecord:
        path, mend = self._name(version), "delete the file"
        record = parse(text, path, mend)
        if record.version != version:
            raise LeaseError(
                f"{path}: the lease record is damaged: it says version {record.version}",
                hint=f"when every host of this workload is stopped, {mend}",
            )
        return record

    def _swap(self, old: LeaseRecord, new: LeaseRecord) -> bool:
        if new.version != old.version + 1:
            raise ValueError("a swap goes to the next version")
        target, draft = self._name(new.version), os.path.join(self._dir, f".draft-{self._instance}")
        try:
            _write_flushed(draft, render(new))
            try:
                if not self._link(draft, target):
                    return False
            finally:
                os.unlink(draft)
            self._sync_directory()
            newest = self._newest()
            if newest == new.version:
                self._clear_before(new.version - _KEEP)
        except OSError as error:
            raise self._failed("write", error) from error
        return newest == new.version

    def announce(self, candidate: Candidate) -> None:
        draft = os.path.join(self._dir, f".note-{self._instance}")
        try:
            with open(draft, "wb") as file:
                file.write(render_note(candidate))
            os.replace(draft, self._note(candidate.name))
        except OSError as error:
            raise self._failed("write", error) from error

    def withdraw(self, name: str) -> None:
        try:
            os.unlink(self._note(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed("write", error) from error

    def _announced(self) -> list[Candidate]:
        found = []
        for name in self._names():
            if name.startswith(_NOTE_PREFIX) and name.endswith(_NOTE_SUFFIX):
                try:
                    with open(os.path.join(self._dir, name), "rb") as file:
                        note = parse_note(file.read())
                except OSError:
                    continue  # gone
                if note is not None:
                    found.append(note)
        return found

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._dir)
        except OSError as error:
            raise self._failed("read", error) from error

    def _newest(self) -> int | None:
        return max(self._versions(), default=None)

    def _versions(self) -> list[int]:
        names = (name.removeprefix(_PREFIX) for name in self._names() if name.startswith(_PREFIX))
        return [int(name) for name in names if name.isdecimal()]

    def _link(self, draft: str, target: str) -> bool:
        try:
            os.link(draft, target)
        except FileExistsError:
            # A network file system may repeat a request whose answer was lost: then the link is ours.
            try:
                return os.path.samefile(draft, target)
            except FileNotFoundError:
                return False
        return True

    def _clear_before(self, version: int) -> None:
        for each in self._versions():
            if each < version:
                try:
                    os.unlink(self._name(each))
                except OSError:
                    return  # only tidiness; the next change tries again

    def _sync_directory(self) -> None:
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _name(self, version: int) -> str:
        return os.path.join(self._dir, f"{_PREFIX}{version:012d}")

    def _note(self, name: str) -> str:
        return os.path.join(self._dir, f"{_NOTE_PREFIX}{name}{_NOTE_SUFFIX}")

    def _failed(self, what: str, error: OSError) -> LeaseError:
        hint = _HINT
        if error.errno == errno.ENOENT:
            hint = "create the directory once, on the file system that all hosts share; is the share mounted?"
        elif error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK) and what == "write":
            hint = "the directory must be writable and its file system must know hard links"
        return LeaseError(f"{self.url}: cannot {what} the lease: {error.strerror or error}", hint=hint)


_HINT = "check the directory, its permissions and its file system"


def _write_flushed(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, data)
        os.fdatasync(fd)
    finally:
        os.close(fd)
