"""Frames and messages between a shipper and a receiver, without any I/O: bytes in, values out, and back.

Used by `channel` (sockets) and `auth` (handshakes); byte tables in docs/formats/wire.md. What only regions say to
each other is in `powerfail.regions.frames`; the frames themselves are all here, since a listener must be able to
tell one kind of peer from the other. Every reader here
gives a value or raises ProtocolError, whatever the bytes are, and never sets memory aside on the word of a
peer: a header's length is checked against its type's limit first.

Fixed 32-byte headers with three words, and not a MessagePack envelope for everything, because log bytes must
go from one mapping into another with no copy between: the receiver reads the header, then receives straight
into its ring.
"""

import functools
import struct
from enum import IntEnum
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from sustain.errors import ProtocolError

PROTOCOL = 1
HEADER_BYTES = 32
PAGE_BYTES = 4096
DIGEST_BYTES = 16
CHUNK_LIMIT = 4 << 20
WRITE_PAGES = 512  # most pages of one WRITE
FETCH_PAGES = 256  # most pages of one FETCHED
SUM_BYTES = 8
SEAL_BYTES = 64  # nonce and proof before a sealed message
_HEADER = struct.Struct("<IHHQQQ")
_HINT = "the other side is not a Sustain peer, or a newer one; check host, port and versions"


class Kind(IntEnum):
    """Frame types."""

    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    REFUSE = 4
    RESUME = 5
    SNAPSHOT_BEGIN = 6
    PAGES = 7
    SAME = 8
    SNAPSHOT_END = 9
    SNAPSHOT_DONE = 10
    LOG = 11
    ACK = 12
    HEARTBEAT = 13
    DIGESTS = 14
    BYE = 15
    PROBE = 16
    COUNTED = 17
    ACCOUNT = 18
    WRITE = 32
    WRITTEN = 33
    FLUSH = 34
    FLUSHED = 35
    SEAL = 36
    SEALED = 37
    READ = 38
    FAILED = 39
    WANT = 48
    FETCHED = 49


PAYLOAD_LIMIT: dict[Kind, int] = {
    Kind.CHALLENGE: 512,
    Kind.HELLO: 16 << 10,
    Kind.WELCOME: 16 << 10,
    Kind.REFUSE: 4 << 10,
    Kind.RESUME: 0,
    Kind.SNAPSHOT_BEGIN: 16 << 10,
    Kind.PAGES: CHUNK_LIMIT,
    Kind.SAME: 0,
    Kind.SNAPSHOT_END: 0,
    Kind.SNAPSHOT_DONE: 0,
    Kind.LOG: CHUNK_LIMIT,
    Kind.ACK: 0,
    Kind.HEARTBEAT: 0,
    Kind.DIGESTS: 1 << 20,
    Kind.BYE: 4 << 10,
    Kind.PROBE: 256 << 10,
    Kind.COUNTED: 0,
    Kind.ACCOUNT: 1 << 10,
    Kind.WRITE: WRITE_PAGES * (PAGE_BYTES + DIGEST_BYTES),
    Kind.WRITTEN: 0,
    Kind.FLUSH: 0,
    Kind.FLUSHED: 0,
    Kind.SEAL: 4 << 10,
    Kind.SEALED: 0,
    Kind.READ: 0,
    Kind.FAILED: 8 << 10,
    Kind.WANT: 0,
    Kind.FETCHED: FETCH_PAGES * (PAGE_BYTES + SUM_BYTES),
}
_KINDS = {int(kind): kind for kind in Kind}
# What each side may hear, by phase; anything else ends the connection.
RECEIVER_HANDSHAKE = frozenset({Kind.HELLO})
SHIPPER_HANDSHAKE = frozenset({Kind.CHALLENGE, Kind.WELCOME, Kind.REFUSE})
RECEIVER_STREAM = frozenset(
    {
        Kind.RESUME,
        Kind.SNAPSHOT_BEGIN,
        Kind.PAGES,
        Kind.SAME,
        Kind.SNAPSHOT_END,
        Kind.LOG,
        Kind.HEARTBEAT,
        Kind.BYE,
        Kind.PROBE,
        Kind.ACCOUNT,
    }
)
SHIPPER_STREAM = frozenset(
    {
        Kind.SNAPSHOT_DONE,
        Kind.ACK,
        Kind.HEARTBEAT,
        Kind.DIGESTS,
        Kind.BYE,
        Kind.COUNTED,
        Kind.ACCOUNT,
    }
)
ACCOUNTS_LIMIT = 1024  # most ACCOUNT frames that one side takes over one connection
# A receiver whose copy is fetched from, and who fetches.
FETCHED_FROM = frozenset({Kind.WANT, Kind.HEARTBEAT, Kind.BYE})
FETCHER_STREAM = frozenset({Kind.FETCHED, Kind.HEARTBEAT, Kind.BYE})
# The same for regions: who connects to save or to restore, and who keeps them.
SAVER_HANDSHAKE = frozenset({Kind.WELCOME, Kind.REFUSE, Kind.HEARTBEAT})
SAVER_STREAM = frozenset(
    {Kind.DIGESTS, Kind.WRITTEN, Kind.FLUSHED, Kind.SEALED, Kind.PAGES, Kind.FAILED, Kind.HEARTBEAT, Kind.BYE}
)
KEEPER_STREAM = frozenset({Kind.WRITE, Kind.FLUSH, Kind.SEAL, Kind.READ, Kind.HEARTBEAT, Kind.BYE})


class Header(NamedTuple):
    """A frame without its payload; `a`, `b`, `c` mean what the kind says."""

    kind: Kind
    length: int
    a: int
    b: int
    c: int


def pack_header(kind: Kind, length: int = 0, a: int = 0, b: int = 0, c: int = 0) -> bytes:
    """The 32 bytes before `length` bytes of payload."""
    assert length <= PAYLOAD_LIMIT[kind], f"{kind.name} of {length} bytes"
    return _HEADER.pack(length, kind, 0, a, b, c)


def unpack_header(data: bytes | bytearray | memoryview, allowed: frozenset[Kind]) -> Header:
    """The header in the 32 bytes `data`. Raises ProtocolError unless it is one that may come now."""
    length, number, reserved, a, b, c = _HEADER.unpack(data)
    kind = _KINDS.get(number)
    if kind is None or reserved:
        raise ProtocolError(f"frame of unknown type {number:#x}", hint=_HINT)
    if kind not in allowed:
        raise ProtocolError(f"{kind.name} is not allowed here", hint=_HINT)
    if length > PAYLOAD_LIMIT[kind]:
        raise ProtocolError(f"{kind.name} of {length} bytes, {PAYLOAD_LIMIT[kind]} allowed", hint=_HINT)
    if kind is Kind.PAGES and (length == 0 or length % PAGE_BYTES):
        raise ProtocolError(f"PAGES of {length} bytes is not whole pages", hint=_HINT)
    if kind is Kind.WRITE and (length == 0 or length % (PAGE_BYTES + DIGEST_BYTES)):
        raise ProtocolError(f"WRITE of {length} bytes is not whole pages with their digests", hint=_HINT)
    if kind is Kind.DIGESTS and length % DIGEST_BYTES:
        raise ProtocolError(f"DIGESTS of {length} bytes is not whole digests", hint=_HINT)
    return Header(kind, length, a, b, c)


MOST = 2**63 - 1  # of a word in a message
Word = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Chain = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]  # a checksum of the log
Uuid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
MaybeUuid = Annotated[bytes, msgspec.Meta(max_length=16)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
History = Annotated[list[tuple[Word, Word]], msgspec.Meta(max_length=128)]
Durability = Annotated[str, msgspec.Meta(pattern="^(memory|disk|pmem)$")]
Text = Annotated[str, msgspec.Meta(max_length=1000)]


class Challenge(msgspec.Struct, frozen=True):
    protocol: Word
    nonce: Nonce
    keyed: bool
    service: Name = "stores"  # what the receiver keeps


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """What every HELLO has."""

    protocol: Word


class Hello(Introduction, frozen=True, kw_only=True):
    """What the primary's side says of itself; or, to fetch, what is known of the store that is to be here."""

    purpose: Literal["ship", "fetch"] = "ship"
    store: Uuid
    replica: Uuid
    name: Name
    epoch: Word
    history: History
    log_size: Word
    image_size: Word
    durability: Durability
    tail: Word
    committed: Word
    accounts: bool = False


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the replica's side says of itself. Without a store all of it is zero or empty."""

    replica: MaybeUuid = b""
    name: Name = ""
    has_store: bool = False
    store: MaybeUuid = b""
    image_size: Word = 0
    log_size: Word = 0
    end: Word = 0
    end_seq: Word = 0
    end_chain: Chain = 0
    epoch: Word = 0
    history: History = []
    incomplete: bool = False
    diverged: bool = False
    digests: bool = False
    primary_committed: Word | None = None
    probes: bool = False
    accounts: bool = False


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a host that returned says of the log that it had: where it ended, and what nobody else has of it."""

    store: Uuid
    replica: Uuid
    host: Name
    epoch: Word  # the newest of that log
    writer: bool  # this host wrote that epoch itself: nobody has more of it
    newer_epoch: Word  # of the primary that it met when it returned
    common: Word  # up to here both had the same log
    end: Word  # where its own ended
    end_seq: Word  # commits before that
    opened: Word  # of them, behind `common`: those that opened an epoch, which no application made
    kept_from: Word  # what lies in [kept_from, end) is in a file beside its store
    before_time_ns: Word | None  # of the commit that ends at `common`; None: not known any more
    first_time_ns: Word | None  # of the first commit that was kept
    last_time_ns: Word | None  # of the last commit
    noted_ns: Word


class Refuse(msgspec.Struct, frozen=True):
    code: Name
    message: Text
    hint: Text = ""
    epoch: Word = 0


class SnapshotBegin(msgspec.Struct, frozen=True, kw_only=True):
    store: Uuid
    image_size: Word
    log_size: Word
    durability: Durability
    epoch: Word
    history: History
    start: Word
    start_seq: Word
    start_chain: Chain
    common: Word | None
    reason: Text
    total_bytes: Word
    compare: bool


class Bye(msgspec.Struct, frozen=True):
    code: Name
    message: Text = ""


M = TypeVar("M", bound=msgspec.Struct)
_encoder = msgspec.msgpack.Encoder()


@functools.cache
def _decoder(kind: type[Any]) -> Any:
    return msgspec.msgpack.Decoder(kind)


def encode(message: msgspec.Struct) -> bytes:
    """The message's bytes."""
    return _encoder.encode(message)


def decode(kind: type[M], data: bytes | bytearray | memoryview) -> M:
    """The message in `data`. Raises ProtocolError."""
    try:
        message: M = _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__} cannot be read: {error}", hint=_HINT) from None
    return message


class FrameReader:
    """Whole frames out of bytes that arrive in any pieces; holds at most one frame.

    For everything but the receiver's stream, whose log and pages go past Python.
    """

    def __init__(self, allowed: frozenset[Kind]) -> None:
        self.allowed = allowed
        self._held = bytearray()
        self._header: Header | None = None

    @property
    def wanted(self) -> int:
        """How many bytes may be fed now: up to the end of the header, or of the payload."""
        end = HEADER_BYTES if self._header is None else self._header.length
        return end - len(self._held)

    def feed(self, data: bytes | memoryview) -> tuple[Header, bytes] | None:
        """Take at most `wanted` bytes; the frame that they complete. Raises ProtocolError."""
        assert len(data) <= self.wanted
        self._held += data
        if self.wanted:
            return None
        if self._header is None:
            self._header = unpack_header(self._held, self.allowed)
            self._held.clear()
            if self._header.length:
                return None
        frame = (self._header, bytes(self._held))
        self._header = None
        self._held.clear()
        return frame
