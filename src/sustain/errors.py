"""Every error a user can meet, each with what happened, where, and what to do about it.

The binding raises these same classes (it looks them up here by name), so `except sustain.StoreBusy`
works alike for errors found in Python and in the engine.
"""

import copy


class SustainError(Exception):
    """Base of all errors of Sustain.

    `str(error)` names the file or host; `error.hint` says what to do, "" when there is nothing useful to say.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def unexpected(error: Exception) -> str:
    """Of an error that nobody has thought of, for people, where it must not keep other things from being done."""
    import traceback

    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
    return f"unexpected {type(error).__name__}: {error} ({place}; a defect of Sustain)"


def anew(error: SustainError) -> SustainError:
    """Another one that says the same. For one that is kept, and raised whenever somebody asks: raising the kept one
    itself would add to its traceback, and keep alive what that refers to, each time and from each thread."""
    return copy.copy(error)


class StoreError(SustainError):
    """Something is wrong with a store, or with how it is used."""


class NotAStore(StoreError):
    """The file is missing, too short, or does not begin as a store does."""


class NewerVersion(StoreError):
    """The store was written by a newer Sustain and needs features that this one lacks."""


class StoreBusy(StoreError):
    """Another process holds the store for writing."""


class StoreCorrupt(StoreError):
    """A checksum or an invariant does not hold; nothing was changed."""


class StoreArriving(StoreError):
    """Pages of the store have not arrived, and are needed: all of them, or one that did not come within the limit."""


class StoreUntrusted(StoreError):
    """A `memory` store after an unclean reboot: the local copy may have holes and is refused."""


class StoreFenced(StoreError):
    """The lease has passed or a newer epoch exists: this writer may not commit any more."""


class StoreFull(StoreError):
    """The image has no room for the object; nothing was changed by the failed call."""


class LogTooSmall(StoreError):
    """One commit is larger than the log can ever hold."""


class LogFull(StoreError):
    """The log is full of what a required destination still needs, and the wait for it has timed out."""


class BudgetExceeded(StoreError):
    """More would be unshipped than the battery allows, and the wait for acknowledgements has timed out.

    The changes stay, uncommitted: commit again later, or roll back."""


class StorePoisoned(StoreError):
    """A write or a flush failed; the store takes no more commits until it is opened again."""


class StoreReadOnly(StoreError):
    """A change was asked of a store that was opened read-only."""


class StoreClosed(StoreError):
    """The store was closed, or belongs to the parent of a forked process."""


class ObjectInUse(StoreError):
    """An array cannot move or go while NumPy views of it are alive."""


class NoSuchObject(StoreError, KeyError):
    """No object of that name, or it is of another kind or shape."""

    def __str__(self) -> str:
        return str(self.args[0])


class StoreIOError(StoreError, OSError):
    """The operating system refused a call; the message names the file and the call."""

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeout(SustainError, TimeoutError):
    """`Store.wait` ran out of time; the message names what every destination holds. The commit itself
    stands."""

    def __str__(self) -> str:
        return str(self.args[0])


class ReplicationError(SustainError):
    """A destination or a peer cannot be used."""


class PeerUnreachable(ReplicationError):
    """No connection to the peer."""


class AuthenticationFailed(ReplicationError):
    """The peer has another key, or none."""


class PeerRefused(ReplicationError):
    """The peer answered and said no: another store, an older epoch, no room."""


class ProtocolError(ReplicationError):
    """What came over the wire is not what the protocol allows."""


class ArchiveError(ReplicationError):
    """An archive cannot be used."""


class NotAnArchive(ArchiveError):
    """No store is archived there."""


class ArchiveNewerVersion(ArchiveError):
    """The archive was written by a newer Sustain."""


class ArchiveCorrupt(ArchiveError):
    """Objects of an archive are damaged, missing or under a wrong name; the message names them. They are not used."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(
            message,
            hint=hint or "use another archive of this store; `sustain archive verify --all` tells more",
        )


class NotRestorable(ArchiveError):
    """The archive does not hold the position or time that was asked for."""


class ArchiveIOError(ArchiveError, OSError):
    """The operating system or an object store refused a call; the message names the object."""

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class ArchiveFull(ArchiveIOError):
    """There is no room for an archive's object."""


class LeaseError(SustainError):
    """The lease store cannot be reached, or its record cannot be understood."""


class LeaseUnavailable(LeaseError):
    """Nobody answers for the lease store, or no majority of it does. That may pass without anybody's help."""


class HandoverFailed(SustainError):
    """A workload was not moved where it was to go; the message says who has it."""


class PowerSourceError(SustainError):
    """A power source cannot be reached, or what it says cannot be understood or believed."""


class RegionError(SustainError):
    """Something is wrong with a region, with what is saved of it, or with how it is used."""


class NotARegion(RegionError):
    """Nothing is saved there under that name, or what lies there is not a saved region."""


class RegionNewerVersion(RegionError):
    """The region was saved by a newer Sustain and needs features that this one lacks."""


class RegionUnsealed(RegionError):
    """What is saved there is not complete: the save never came to its seal, or a later one broke it."""


class RegionCorrupt(RegionError):
    """Pages are not what their digests say; the message names them. They are not used."""


class RegionBusy(RegionError):
    """Another process uses the region or what is saved of it, or changes it while it is saved."""


class RegionFull(RegionError):
    """The destination or the target has no room for the region."""


class WrongGeneration(RegionError):
    """A complete save is there, but not the one that was asked for."""


class RegionIOError(RegionError, OSError):
    """The operating system or an object store refused a call; the message names the file or the URL."""

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class HostError(SustainError):
    """The kernel of this host refused a call or says what cannot be understood; the message names the file."""

    def __init__(self, message: str, *, hint: str = "", errno: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class JournalError(SustainError):
    """The journal of what a scheduler changed cannot be read or written; then nothing more is changed."""


class JournalBusy(JournalError):
    """Another process has the journal: a scheduler that runs."""


class UnknownGuest(SustainError):
    """No guest of that name is seen on this host."""


class UnknownTarget(SustainError):
    """No target of that name is seen on this host, or it has no such block."""


class RecordingError(SustainError):
    """A recording cannot be written or read; the message names the line."""


class AgentError(SustainError):
    """The agent cannot start, or does not answer."""


class ConfigError(SustainError):
    """An option, a URL or a size cannot be understood."""
