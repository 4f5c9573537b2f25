"""What every place can do that a region is saved to (`Sink`) or restored from (`Source`), and which URL is which.

Used by `save`, `restore` and the pre-copier, which know no destination by kind. The order is always

    begin → (write … flush)* → seal

and whatever ends in between leaves the place unsealed or as it was: nothing but `seal` makes a save
complete. A sink is used by one thread at a time. It holds whole pages of 4 KiB with a digest each; when the
region's size is not a multiple of that, its last page is filled up with zeros on the way and in the digest.

Rejected: a stream of blocks with a trailer, as backups have it. Pre-copying sends a page many times, and the
last pass must cost only what changed, so a place is addressed by page and says what it holds already.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from sustain.errors import ConfigError
from sustain.powerfail.regions.manifest import RegionIdentity, Seal
from sustain.replication.credentials import Credentials


@dataclass(frozen=True, slots=True)
class Held:
    """What a destination holds when a save begins.

    `table`: digests of its pages now, 16 bytes each, for the size that `begin` was given; None: nothing usable.
    `seal`: what is sealed there now. `last_number`: number of the newest seal ever there, 0: never one; the
    next seal's must be higher.
    """

    table: bytes | None
    seal: Seal | None
    last_number: int = 0


class Sink(ABC):
    """A place that a region is saved to. Closing it without `seal` leaves what was flushed, unsealed."""

    url: str
    read_ahead = True  # whether a saver wins by reading in one thread and writing in another

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """A low percentile of what it takes, where the sink measures that itself; None: unknown."""
        return None

    @abstractmethod
    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        """Take the place for a save of `epoch`, which it notes durably; what it holds.

        Raises PeerRefused for an epoch older than the newest it has seen ("epoch N is over") and for another
        region of that name, RegionBusy while another save or a restore uses it, RegionFull, RegionIOError.
        """

    @abstractmethod
    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        """Put whole pages (at most SLICE_PAGES of them) from `first_page` on; `digests` has 16 bytes for each. Nobody
        changes `data` meanwhile; it is the caller's again when the call returns.

        Breaks the seal durably before the first byte, unless the place keeps the sealed state apart. It need not be
        durable before `flush`, and an error may come only then.
        """

    @abstractmethod
    def flush(self) -> None:
        """All that was written is durable there and is what its digests say. Raises RegionCorrupt, which names
        the pages; they count as not held then, and may be written again."""

    @abstractmethod
    def seal(self, seal: Seal) -> None:
        """Declare the save complete, durably. After `flush`, and only when the table there has
        `seal.table_digest` (RegionCorrupt) and the number is higher than any before (WrongGeneration)."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the place. May be called twice and after any error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(ABC):
    """A sealed save that is read. While it is open nobody changes it: a save that begins is told RegionBusy, or
    leaves what this one reads alone."""

    url: str
    read_ahead = True  # whether a restore wins by reading in one thread and writing in another

    @abstractmethod
    def identity(self) -> RegionIdentity:
        """Which region it is."""

    @abstractmethod
    def seal(self) -> Seal:
        """What is sealed. Raises RegionUnsealed."""

    @abstractmethod
    def table(self) -> bytes:
        """Digests of all pages, checked against the seal. Raises RegionUnsealed, RegionCorrupt."""

    @abstractmethod
    def read(self, first_page: int, pages: int) -> bytes | bytearray | memoryview:
        """Whole pages, at most SLICE_PAGES, as they lie there: whoever uses them compares them with `table`. Without
        `read_ahead` they stay as they are until the next read only."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. May be called twice and after any error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_HINT = "write file:///dir, s3://bucket/prefix or tcp://host:port"


def open_sink(url: str, *, credentials: Credentials, name: str) -> Sink:
    """The place at `url` for the region `name`. `credentials` are for tcp:// alone. Raises ConfigError."""
    kind, where = _split(url)
    if kind == "file":
        from sustain.powerfail.regions.directory import DirectorySink

        return DirectorySink(where, name, url=url)
    if kind == "tcp":
        from sustain.powerfail.regions.peer import open_peer_sink

        return open_peer_sink(url, credentials=credentials, name=name)
    if kind == "s3":
        from sustain.powerfail.regions.objects import ObjectSink

        bucket, _, prefix = where.partition("/")
        return ObjectSink(url, bucket, prefix, name)
    raise AssertionError(kind)


def open_source(url: str, *, credentials: Credentials, name: str) -> Source:
    """What is saved at `url` of the region `name`. Raises ConfigError, NotARegion, RegionBusy, RegionIOError."""
    kind, where = _split(url)
    if kind == "file":
        from sustain.powerfail.regions.directory import DirectorySource

        return DirectorySource(where, name, url=url)
    if kind == "tcp":
        from sustain.powerfail.regions.peer import open_peer_source

        return open_peer_source(url, credentials=credentials, name=name)
    if kind == "s3":
        from sustain.powerfail.regions.objects import ObjectSource

        bucket, _, prefix = where.partition("/")
        return ObjectSource(url, bucket, prefix, name)
    raise AssertionError(kind)


def _split(url: str) -> tuple[str, str]:
    """(kind, where) of a URL: a directory for "file", BUCKET/PREFIX for "s3", nothing for "tcp"."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url!r}: {error}", hint=_HINT) from None
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and not parts.query:
        return "file", unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc and not parts.query:
        return "s3", f"{parts.netloc}/{unquote(parts.path).strip('/')}"
    if parts.scheme == "tcp":
        return "tcp", ""
    raise ConfigError(f"{url!r} is not a place for regions", hint=_HINT)
