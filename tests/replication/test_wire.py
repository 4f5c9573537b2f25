"""Frames and messages: what is written is read back; whatever else is read is a ProtocolError and nothing
more."""

import contextlib
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sustain.errors import AuthenticationFailed, PeerRefused, ProtocolError
from sustain.replication import wire
from sustain.replication.auth import STORES, ReceiverHandshake, ShipperHandshake
from sustain.replication.wire import (
    HEADER_BYTES,
    PAYLOAD_LIMIT,
    Account,
    Bye,
    Challenge,
    FrameReader,
    Header,
    Hello,
    Kind,
    Refuse,
    SnapshotBegin,
    Welcome,
)

CORPUS = Path(__file__).parent / "corpus"
ALLOWED = (
    wire.RECEIVER_HANDSHAKE,
    wire.SHIPPER_HANDSHAKE,
    wire.RECEIVER_STREAM,
    wire.SHIPPER_STREAM,
    frozenset(Kind),
)
WORDS = st.integers(0, 2**64 - 1)
SMALL = st.integers(0, 2**63 - 1)
UUIDS = st.binary(min_size=16, max_size=16)
HISTORIES = st.lists(st.tuples(SMALL, SMALL), max_size=128)
HELLOS = st.builds(
    Hello,
    protocol=st.just(wire.PROTOCOL),
    store=UUIDS,
    replica=UUIDS,
    name=st.text(max_size=64),
    epoch=SMALL,
    history=HISTORIES,
    log_size=SMALL,
    image_size=SMALL,
    durability=st.sampled_from(["memory", "disk", "pmem"]),
    tail=SMALL,
    committed=SMALL,
)
WELCOMES = st.builds(
    Welcome, name=st.text(max_size=64), has_store=st.booleans(), end=SMALL, epoch=SMALL, history=HISTORIES
)
BEGINS = st.builds(
    SnapshotBegin,
    store=UUIDS,
    image_size=SMALL,
    log_size=SMALL,
    durability=st.just("disk"),
    epoch=SMALL,
    history=HISTORIES,
    start=SMALL,
    start_seq=SMALL,
    start_chain=st.integers(0, 2**32 - 1),
    common=st.none() | SMALL,
    reason=st.text(max_size=100),
    total_bytes=SMALL,
    compare=st.booleans(),
)
OTHERS = st.one_of(
    st.builds(Challenge, SMALL, st.binary(min_size=32, max_size=32), st.booleans()),
    st.builds(Refuse, st.text(max_size=64), st.text(max_size=1000), st.text(max_size=1000), SMALL),
    st.builds(Bye, st.text(max_size=64), st.text(max_size=1000)),
)


def read(data: bytes, allowed: frozenset[Kind], pieces: int = 1 << 30) -> list[tuple[Header, bytes]]:
    """Every frame in `data`, fed at most `pieces` bytes at a time; never holds more than one frame."""
    reader, frames, at = FrameReader(allowed), [], 0
    while at < len(data):
        wanted = reader.wanted
        assert 0 < wanted <= max(HEADER_BYTES, *(PAYLOAD_LIMIT[kind] for kind in allowed))
        piece = data[at : at + min(wanted, pieces)]
        at += len(piece)
        frame = reader.feed(piece)
        if frame is not None:
            frames.append(frame)
    return frames


@given(HELLOS | WELCOMES | BEGINS | OTHERS)
def test_messages_round_trip(message: msgspec.Struct) -> None:
    assert wire.decode(type(message), wire.encode(message)) == message


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Kind.LOG, Kind.PAGES, Kind.ACK, Kind.HEARTBEAT, Kind.BYE]),
            WORDS,
            WORDS,
            WORDS,
            st.binary(),
        )
    ),
    st.integers(1, 100),
)
def test_frames_round_trip_in_any_pieces(
    frames: list[tuple[Kind, int, int, int, bytes]], pieces: int
) -> None:
    data, expected = b"", []
    for kind, a, b, c, payload in frames:
        body = payload if PAYLOAD_LIMIT[kind] else b""
        body = bytes(4096) if kind is Kind.PAGES else body
        data += wire.pack_header(kind, len(body), a, b, c) + body
        expected.append((Header(kind, len(body), a, b, c), body))
    assert read(data, frozenset(Kind), pieces) == expected


@given(st.sampled_from(list(Kind)), st.integers(0, 2**32 - 1), st.sampled_from(ALLOWED))
def test_a_length_above_the_limit_is_refused_before_memory_is_set_aside(
    kind: Kind, length: int, allowed: frozenset[Kind]
) -> None:
    header = length.to_bytes(4, "little") + int(kind).to_bytes(2, "little") + bytes(26)
    reader = FrameReader(allowed)
    if kind not in allowed or length > PAYLOAD_LIMIT[kind]:
        with pytest.raises(ProtocolError):
            reader.feed(header)
    else:
        try:
            reader.feed(header)
        except ProtocolError:
            assert kind in (Kind.PAGES, Kind.DIGESTS, Kind.WRITE)  # not whole pages or digests
        assert reader.wanted <= max(HEADER_BYTES, PAYLOAD_LIMIT[kind])


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def swallow(data: bytes) -> None:
    """Put `data` through every reader there is."""
    for allowed in ALLOWED:
        try:
            frames = read(data, allowed)
        except ProtocolError:
            frames = []
        for header, payload in frames:
            handle(header, payload)
    for kind in (Challenge, Hello, Welcome, Refuse, SnapshotBegin, Bye, Account):
        with contextlib.suppress(ProtocolError):
            wire.decode(kind, data)


def handle(header: Header, payload: bytes) -> None:
    shipper, receiver = (
        ShipperHandshake(b"k" * 16, STORES, bytes(32)),
        ReceiverHandshake(b"k" * 16, STORES, bytes(32)),
    )
    with contextlib.suppress(ProtocolError, AuthenticationFailed):
        receiver.hello(payload)
    with contextlib.suppress(ProtocolError, AuthenticationFailed, PeerRefused):
        shipper.answer(header.kind, payload)


def test_corpus_is_swallowed() -> None:
    assert len(seeds()) >= 10
    for data in seeds():
        swallow(data)


def test_each_bit_of_the_corpus_flipped_is_swallowed() -> None:
    for data in seeds():
        for at, bit in itertools.product(range(min(len(data), 160)), range(8)):
            swallow(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        for cut in range(min(len(data), 160)):
            swallow(data[:cut])


@settings(max_examples=500)
@given(st.binary(max_size=4096))
@example(b"HTTP/1.1 400 Bad Request\r\n\r\n")
@example(bytes(64))
@example(b"\xff" * 64)
def test_arbitrary_bytes_are_swallowed(data: bytes) -> None:
    swallow(data)


@settings(max_examples=300)
@given(st.data())
def test_mutated_frames_are_swallowed(data: st.DataObject) -> None:
    frame = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
        if not frame:
            frame = bytearray(1)
    swallow(bytes(frame))


@settings(max_examples=300)
@given(st.sampled_from([Challenge, Hello, Welcome, Refuse, SnapshotBegin, Bye]), st.data())
def test_messages_of_wrong_shape_are_swallowed(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    plain = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text(max_size=80)
        | st.binary(max_size=80)
    )
    values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
    fields = st.sampled_from(kind.__struct_fields__)
    shape = data.draw(st.dictionaries(fields, values, max_size=len(kind.__struct_fields__)))
    swallow(msgspec.msgpack.encode(shape))


def test_deep_nesting_is_swallowed() -> None:
    swallow(b"\x91" * 16000)
