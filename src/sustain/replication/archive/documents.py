"""The small objects of an archive: manifest, snapshot, proof, hold. docs/formats/archive.md, "Documents".

JSON behind a magic and a digest: few fields that people want to read, in objects that are written whole. Unknown
fields are ignored, a newer format is refused.
"""

from typing import Annotated, TypeVar

import msgspec

from sustain._native import digest
from sustain.errors import ArchiveCorrupt, ArchiveNewerVersion

_MAGIC = b"SUSARCD1"
_DIGEST_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _DIGEST_BYTES
_FORMAT = 1
_LIMIT_BYTES = 64 << 20

Word = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Run(msgspec.Struct, frozen=True):
    """Log that is held without a gap: [first, end). Between two runs the archive could not follow."""

    first: Word
    end: Word


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the primary of one epoch promises: everything before `acked` can be restored. Only it writes this one."""

    format: int = _FORMAT
    store: Hex
    replica: Hex  # the store file that ships in this epoch
    name: str = ""
    epoch: Word
    history: list[tuple[Word, Word]]
    image_size: Word
    log_size: Word
    durability: str
    runs: list[Run]
    acked: Word  # less than `end` while the last run has no complete snapshot
    chain: Word  # checksum field of the COMMIT record that ends at `end`
    time_ns: Word  # of that commit
    time_high_ns: Word  # no commit before `end` is later
    written_ns: Word
    snapshot: str = ""  # path of the newest one; none is complete yet
    floor: Word = 0  # what lies before it may be deleted
    floor_ns: Word = 0  # since when

    @property
    def end(self) -> int:
        """Log before it is there."""
        return self.runs[-1].end if self.runs else 0


class Part(msgspec.Struct, frozen=True):
    path: str
    size: Word


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the image: pages read while the log went from `start` to `usable`. Written last."""

    format: int = _FORMAT
    store: Hex
    epoch: Word
    copy: str
    history: list[tuple[Word, Word]]  # before `start`
    start: Word
    start_seq: Word
    start_chain: Word
    usable: Word
    image_size: Word
    log_size: Word
    durability: str
    parts: list[Part]
    time_high_ns: Word  # no commit before `usable` is later
    written_ns: Word

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A restore that was tried."""

    format: int = _FORMAT
    store: Hex
    at_ns: Word
    worked: bool
    position: Word | None  # that was restored
    time_ns: Word | None  # of its last commit
    duration_s: float
    restored_bytes: Word
    objects: Word  # that were read and checked
    everything: bool  # not only what the newest position needs
    why: str = ""
    host: str = ""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody reads: nothing is deleted from `start` on while this is fresh."""

    format: int = _FORMAT
    at_ns: Word
    who: str


Document = TypeVar("Document", Manifest, Snapshot, Proof, Hold)


def encode(document: Manifest | Snapshot | Proof | Hold) -> bytes:
    text = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    return _MAGIC + digest(text) + text


def decode(kind: type[Document], data: bytes, where: str) -> Document:
    """Raises ArchiveCorrupt, ArchiveNewerVersion."""
    text = data[_HEAD_BYTES:]
    if data[:8] != _MAGIC or len(data) > _LIMIT_BYTES or digest(text) != data[8:_HEAD_BYTES]:
        raise ArchiveCorrupt(f"{where} is damaged: its bytes are not what its digest says")
    try:
        plain = msgspec.json.decode(text)
        if isinstance(plain, dict) and plain.get("format") != _FORMAT:
            raise ArchiveNewerVersion(f"{where} has format {plain.get('format')}", hint="use a newer Sustain")
        return msgspec.convert(plain, kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArchiveCorrupt(f"{where} cannot be understood: {error}") from None
