"""What a saved region says about itself: identity, newest epoch, seal; bytes <-> `Manifest`. Pure.

Used by every sink and source. The byte tables are in docs/formats/region.md. A manifest is written last and
whole (a new file renamed over the old one, a new object), so it is either the old or the new one; the digest
at its end is there for what rots or is cut off afterwards.

Rejected: JSON. A manifest decides whether an image may be started, so there is one way to write it, every bit
of it is covered, and an unknown field is either marked as harmless or refused.
"""

import hashlib
import re
import struct
from dataclasses import dataclass

from sustain.errors import ConfigError, NotARegion, RegionCorrupt, RegionNewerVersion

PAGE_BYTES = 4096
DIGEST_BYTES = 16
SLICE_PAGES = 1024  # most pages of one `write` or `read`: 4 MiB
NAME_LIMIT_BYTES = 64
OWNER_LIMIT_BYTES = 127
REASON_LIMIT_BYTES = 175
NO_UUID = bytes(16)

MAGIC = b"SUSREGN\0"
VERSION = 1
_SEALED, _TABLE_CURRENT = 1, 2
_XXH3_128 = 1
_HEADER = struct.Struct("<8sIIQQ16sQIIQQQQ16sQII B64s7s B127s B175s8s")
_SEGMENT = struct.Struct("<32sQQ16s")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SEGMENT_NAME = re.compile(r"[0-9a-f]{32}")
_HEADER_BYTES = 512
_SUM_BYTES = 16
assert _HEADER.size == _HEADER_BYTES
assert _SEGMENT.size == 64


def pages_of(size_bytes: int) -> int:
    """Pages of a region of `size_bytes`; the last may be filled up with zeros."""
    return -(-size_bytes // PAGE_BYTES)


def check_name(name: str) -> str:
    """`name`, when a region may be called so. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"region name {name!r} is not usable",
            hint="1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot",
        )
    return name


@dataclass(frozen=True, slots=True)
class RegionIdentity:
    """Which region: `uuid` is the same wherever it moves, `name` is the workload's name for it."""

    uuid: bytes
    size_bytes: int
    name: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.uuid) != 16 or self.uuid == NO_UUID:
            raise ConfigError(f"region {self.name}: {self.uuid.hex()} is not a UUID")
        if not 0 < self.size_bytes < 1 << 56:
            raise ConfigError(f"region {self.name}: a size of {self.size_bytes} bytes cannot be saved")

    @property
    def pages(self) -> int:
        return pages_of(self.size_bytes)


@dataclass(frozen=True, slots=True)
class Seal:
    """A complete save. `number` counts the seals of the region and rises for ever, over all epochs.

    `table_digest` covers the digests of all pages. `owner` names the host, `reason` says why, for people.
    """

    epoch: int
    number: int
    owner: str
    table_digest: bytes
    realtime_ns: int
    reason: str

    def __post_init__(self) -> None:
        if (
            len(self.table_digest) != DIGEST_BYTES
            or self.epoch < 1
            or self.number < 1
            or self.realtime_ns < 0
        ):
            raise ConfigError(f"{self} is not a seal")
        for what, text, limit in (
            ("owner", self.owner, OWNER_LIMIT_BYTES),
            ("reason", self.reason, REASON_LIMIT_BYTES),
        ):
            if len(text.encode()) > limit or "\0" in text:
                raise ConfigError(f"seal: {what} {text!r} is longer than {limit} bytes, or has a zero in it")


@dataclass(frozen=True, slots=True)
class Segment:
    """An object of packed pages: its name (32 hexadecimal digits), size, pages, and the digest of its index."""

    name: str
    size_bytes: int
    pages: int
    index_digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies at a place. `epoch` is the newest ever seen there, `last_number` that of the newest seal ever.

    In a directory `table_current` says whether the table file says what the image file holds; a seal implies
    it. In an object store the first `sealed_segments` of `segments` are what `seal` covers, and `nonce` makes no
    two manifests alike, so that a conditional write tells them apart.
    """

    identity: RegionIdentity
    epoch: int
    last_number: int = 0
    seal: Seal | None = None
    table_current: bool = False
    segments: tuple[Segment, ...] = ()
    sealed_segments: int = 0
    nonce: bytes = bytes(8)


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest`."""
    seal = manifest.seal
    flags = (_SEALED if seal else 0) | (_TABLE_CURRENT if manifest.table_current else 0)
    name = manifest.identity.name.encode()
    owner, reason = (seal.owner.encode(), seal.reason.encode()) if seal else (b"", b"")
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        flags,
        0,
        0,
        manifest.identity.uuid,
        manifest.identity.size_bytes,
        PAGE_BYTES,
        _XXH3_128,
        manifest.epoch,
        manifest.last_number,
        seal.epoch if seal else 0,
        seal.number if seal else 0,
        seal.table_digest if seal else bytes(DIGEST_BYTES),
        seal.realtime_ns if seal else 0,
        len(manifest.segments),
        manifest.sealed_segments,
        len(name),
        name,
        bytes(7),
        len(owner),
        owner,
        len(reason),
        reason,
        manifest.nonce,
    )
    body = header + b"".join(
        _SEGMENT.pack(each.name.encode(), each.size_bytes, each.pages, each.index_digest)
        for each in manifest.segments
    )
    return body + _sum(body)


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, read from `where`. Raises NotARegion, RegionNewerVersion, RegionCorrupt."""
    if data[:8] != MAGIC:
        raise NotARegion(f"{where}: not the manifest of a saved region", hint="look at the URL and the name")
    body = data[:-_SUM_BYTES]
    if len(body) < _HEADER_BYTES or _sum(body) != data[-_SUM_BYTES:]:
        raise _damaged(where, "its digest does not fit")
    version, _, _, incompatible = struct.unpack_from("<IIQQ", body, 8)
    if version != VERSION or incompatible:
        raise RegionNewerVersion(
            f"{where}: format version {version}, features {incompatible:#x}; this Sustain knows version {VERSION}",
            hint="use the version that saved it, or a newer one",
        )
    try:
        manifest = _unpack(body)
    except (ValueError, ConfigError) as error:
        raise _damaged(where, str(error)) from None
    return manifest


def _unpack(body: bytes) -> Manifest:
    (_, _, flags, _, _, uuid, size_bytes, page_bytes, kind, epoch, last_number, *rest) = _HEADER.unpack_from(
        body
    )
    seal_epoch, seal_number, table_digest, realtime_ns, count, sealed, *texts = rest
    name_length, name, _, owner_length, owner, reason_length, reason, nonce = texts
    if page_bytes != PAGE_BYTES or kind != _XXH3_128:
        raise ValueError(f"pages of {page_bytes} bytes with digests of kind {kind} are not known")
    if len(body) != _HEADER_BYTES + count * _SEGMENT.size or sealed > count:
        raise ValueError(f"it does not have {count} segments, {sealed} of them sealed")
    seal = None
    if flags & _SEALED:
        seal = Seal(
            seal_epoch,
            seal_number,
            owner[:owner_length].decode(),
            table_digest,
            realtime_ns,
            reason[:reason_length].decode(),
        )
        if seal.number > last_number or seal.epoch > epoch:
            raise ValueError("its seal is newer than all it has seen")
    segments = tuple(
        Segment(_segment_name(name), size, pages, digest)
        for name, size, pages, digest in _SEGMENT.iter_unpack(body[_HEADER_BYTES:])
    )
    identity = RegionIdentity(uuid, size_bytes, name[:name_length].decode())
    return Manifest(identity, epoch, last_number, seal, bool(flags & _TABLE_CURRENT), segments, sealed, nonce)


def _segment_name(data: bytes) -> str:
    name = data.decode("ascii")
    if not _SEGMENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} does not name a segment")
    return name


def _sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM_BYTES).digest()


def _damaged(where: str, why: str) -> RegionCorrupt:
    return RegionCorrupt(
        f"{where}: the manifest is damaged: {why}", hint="restore from another destination, or save it again"
    )
