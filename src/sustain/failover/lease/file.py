"""A lease in a directory: `file:///dir`, for processes on one host or hosts on a shared file system.

Used through `open_lease`. The record is `lease.<version>`, a request for a handover `handover.<version>`, each changed
as `versions` says; what a standby announces is `standby.<host>.json`, replaced whole.

The directory is never created here: on a host where a share is not mounted, an empty directory would be a
second lease, and two primaries.
"""

import errno
import os

from sustain.clock import Clock
from sustain.errors import LeaseError
from sustain.failover.lease.base import Stored, SwapLease
from sustain.failover.lease.codec import parse, parse_note, render, render_note
from sustain.failover.lease.record import RATE_MARGIN, Candidate, LeaseRecord
from sustain.failover.lease.versions import Versions

_NOTE_PREFIX, _NOTE_SUFFIX = "standby.", ".json"


class FileLease(SwapLease):
    """One supervisor's access to the lease in `directory`."""

    def __init__(
        self, directory: str, instance: str, clock: Clock, ttl_s: float, margin: float = RATE_MARGIN
    ) -> None:
        super().__init__(f"file://{directory}", instance, clock, ttl_s, margin)
        self._dir = directory
        self._records = Versions(directory, "lease", f".draft-{instance}")
        self._requests = Versions(directory, "handover", f".asking-{instance}")

    def _load(self) -> LeaseRecord:
        try:
            held = self._records.load()
        except OSError as error:
            raise self._failed("read", error) from error
        return LeaseRecord() if held is None else self._parsed(*held)

    def _parsed(self, version: int, text: bytes) -> LeaseRecord:
        path, mend = self._records.path(version), "delete the file"
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
        try:
            return self._records.swap(new.version, render(new))
        except OSError as error:
            raise self._failed("write", error) from error

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

    def _load_request(self) -> Stored | None:
        try:
            held = self._requests.load()
        except OSError as error:
            raise self._failed("read", error) from error
        return None if held is None else Stored(held[1], held[0])

    def _swap_request(self, old: Stored | None, text: bytes) -> bool:
        try:
            return self._requests.swap(1 if old is None else old.version + 1, text)
        except OSError as error:
            raise self._failed("write", error) from error

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._dir)
        except OSError as error:
            raise self._failed("read", error) from error

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
