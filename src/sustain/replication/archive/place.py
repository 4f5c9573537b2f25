"""Where an archive lies: whole objects by name, put at once or not at all.

Used by everything here that reads or writes. `open_place` gives the directory's or the bucket's. No conditions are
asked of a place: every object but the manifests, the proof and holds is written once under a name of its own, and a
manifest has one writer, the primary of its epoch. So a store that ignores conditional writes will do.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sustain.errors import ArchiveCorrupt
from sustain.replication.archive.names import EPOCH
from sustain.replication.archive.rooms import Rooms
from sustain.replication.urls import ArchiveUrl

if TYPE_CHECKING:
    from sustain._native import Buffer


LIMIT_BYTES = 64 << 20  # of what is read without knowing how long it is to be


class Found(NamedTuple):
    path: str
    size: int
    at_ns: int  # last written, since 1970


class Place(ABC):
    """Every method may be called from any thread and raises ArchiveIOError; ArchiveFull when there is no room."""

    url: str

    @abstractmethod
    def put(self, path: str, data: "Buffer") -> None:
        """Make the object durable. It is there whole, or as it was before."""

    @abstractmethod
    def get(self, path: str, start: int = 0, length: int | None = None) -> bytes | None:
        """The object, or `length` bytes of it from `start`; fewer where it ends. None: it is not there. Raises
        ArchiveCorrupt when it is larger than `LIMIT_BYTES`."""

    @abstractmethod
    def fetch(self, path: str, size: int, rooms: Rooms) -> memoryview | None:
        """The object, which must have `size` bytes; give it back to `rooms` after use. None: it is not there. Raises
        ArchiveCorrupt."""

    @abstractmethod
    def list(self, under: str = "") -> list[Found]:
        """Whole objects whose path begins with `under` and a slash; all without."""

    @abstractmethod
    def epochs(self) -> set[int]:
        """Of which primaries there is anything."""

    @abstractmethod
    def delete(self, paths: Sequence[str]) -> None:
        """Objects that are gone already are no error."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what interrupted puts of this host left. Only when nothing else of it is at work here."""

    def refuse_size(self, path: str, size: int, wanted: int | None = None) -> None:
        """Raises ArchiveCorrupt unless `path` has the size that is `wanted`, or at most `LIMIT_BYTES`."""
        if wanted is not None and size != wanted:
            raise ArchiveCorrupt(f"{self.where(path)} has {size} bytes, not {wanted}")
        if wanted is None and size > LIMIT_BYTES:
            raise ArchiveCorrupt(f"{self.where(path)} has {size} bytes; none of its kind is so large")

    def where(self, path: str) -> str:
        """For people."""
        return f"{self.url.rstrip('/')}/{path}"


def epoch_of(name: str) -> int | None:
    """Whose directory has this name; None: no primary's."""
    return int(name[1:]) if EPOCH.fullmatch(name) else None


def open_place(archive: ArchiveUrl) -> Place:
    """Raises ConfigError, ArchiveIOError."""
    if archive.kind == "file":
        from sustain.replication.archive.directory import Directory

        return Directory(archive.url, archive.where)
    from sustain.replication.archive.bucket import Bucket

    return Bucket(archive.url, archive.where)
