"""Keys and handshakes: both sides prove the key; nobody else gets anywhere."""

import os
from pathlib import Path

import pytest

from sustain.errors import AuthenticationFailed, ConfigError, ProtocolError
from sustain.replication import wire
from sustain.replication.auth import STORES, ReceiverHandshake, Refused, Service, ShipperHandshake, load_key
from sustain.replication.wire import HEADER_BYTES, Hello, Kind, Refuse, Welcome

Receiving, Shipping = ReceiverHandshake[Hello, Welcome], ShipperHandshake[Hello, Welcome]
KEY, OTHER = b"k" * 16, b"o" * 16
HELLO = Hello(
    protocol=wire.PROTOCOL,
    store=b"s" * 16,
    replica=b"r" * 16,
    name="a",
    epoch=1,
    history=[(1, 0)],
    log_size=1,
    image_size=1,
    durability="memory",
    tail=0,
    committed=0,
)


def body(frame: bytes) -> bytes:
    return frame[HEADER_BYTES:]


def shake(receiver: Receiving, shipper: Shipping) -> Hello:
    return receiver.hello(body(shipper.hello(body(receiver.challenge()), HELLO)))


@pytest.mark.parametrize("key", [KEY, b""])
def test_same_key(key: bytes) -> None:
    receiver, shipper = ReceiverHandshake(key, STORES), ShipperHandshake(key, STORES)
    assert shake(receiver, shipper) == HELLO
    welcome = Welcome(name="b", end=7)
    assert shipper.answer(Kind.WELCOME, body(receiver.welcome(welcome))) == welcome


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [(KEY, OTHER, "another key"), (KEY, b"", "has no key"), (b"", KEY, "asks for a key")],
)
def test_another_key(ours: bytes, theirs: bytes, says: str) -> None:
    receiver, shipper = ReceiverHandshake(theirs, STORES), ShipperHandshake(ours, STORES)
    with pytest.raises(AuthenticationFailed):
        shake(receiver, shipper)
    refusal = receiver.refuse(Refuse("authentication", "no", ""))
    with pytest.raises(AuthenticationFailed, match=says):
        shipper.answer(Kind.REFUSE, body(refusal))


def test_a_proved_refusal_is_believed() -> None:
    receiver, shipper = ReceiverHandshake(KEY, STORES), ShipperHandshake(KEY, STORES)
    shake(receiver, shipper)
    with pytest.raises(Refused) as caught:
        shipper.answer(Kind.REFUSE, body(receiver.refuse(Refuse("fenced", "over", "", 9))))
    assert caught.value.refusal.epoch == 9


def test_a_fence_without_a_proof_is_not_believed() -> None:
    shipper = ShipperHandshake(KEY, STORES)
    shake(ReceiverHandshake(KEY, STORES), shipper)
    forged = bytes(64) + wire.encode(Refuse("fenced", "over", "", 9))
    with pytest.raises(AuthenticationFailed):
        shipper.answer(Kind.REFUSE, forged)


def test_a_welcome_without_the_key_is_not_believed() -> None:
    shipper = ShipperHandshake(KEY, STORES)
    impostor = ReceiverHandshake(OTHER, STORES)
    hello = shipper.hello(body(impostor.challenge()), HELLO)
    impostor._peer_nonce = body(hello)[:32]  # it lets anybody in
    with pytest.raises(AuthenticationFailed):
        shipper.answer(Kind.WELCOME, body(impostor.welcome(Welcome())))


def test_a_replayed_hello_is_refused() -> None:
    receiver, shipper = ReceiverHandshake(KEY, STORES), ShipperHandshake(KEY, STORES)
    hello = shipper.hello(body(receiver.challenge()), HELLO)
    receiver.hello(body(hello))
    with pytest.raises(AuthenticationFailed):
        ReceiverHandshake(KEY, STORES).hello(body(hello))


def test_a_proof_cannot_be_reflected_or_reused_for_another_type() -> None:
    receiver, shipper = ReceiverHandshake(KEY, STORES), ShipperHandshake(KEY, STORES)
    hello = shipper.hello(body(receiver.challenge()), HELLO)
    with pytest.raises(AuthenticationFailed):
        shipper.answer(Kind.WELCOME, body(hello))
    receiver.hello(body(hello))
    with pytest.raises(AuthenticationFailed):  # a REFUSE that becomes a WELCOME
        shipper.answer(Kind.WELCOME, body(receiver.refuse(Refuse("busy", ""))))


def test_each_bit_of_a_hello_matters() -> None:
    receiver, shipper = ReceiverHandshake(KEY, STORES), ShipperHandshake(KEY, STORES)
    hello = body(shipper.hello(body(receiver.challenge()), HELLO))
    for at in range(len(hello)):
        flipped = hello[:at] + bytes([hello[at] ^ 1]) + hello[at + 1 :]
        with pytest.raises(AuthenticationFailed):
            receiver.hello(flipped)


def test_another_protocol_version() -> None:
    receiver, shipper = ReceiverHandshake(KEY, STORES), ShipperHandshake(KEY, STORES)
    newer = wire.encode(wire.Challenge(2, bytes(32), True))
    with pytest.raises(ProtocolError, match="protocol 2"):
        shipper.hello(newer, HELLO)
    hello = Hello(**{name: getattr(HELLO, name) for name in HELLO.__struct_fields__} | {"protocol": 2})
    with pytest.raises(ProtocolError, match="protocol 2"):
        receiver.hello(body(shipper.hello(body(receiver.challenge()), hello)))


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    os.chmod(path, mode)
    return path


def test_key_file(tmp_path: Path) -> None:
    assert load_key(write(tmp_path / "key", b"0123456789abcdef\n")) == b"0123456789abcdef"
    assert load_key(write(tmp_path / "key", bytes(range(32)), 0o640)) == bytes(range(32))


@pytest.mark.parametrize(
    ("data", "mode", "says"),
    [(b"short\n", 0o600, "5 bytes"), (b"k" * 32, 0o644, "open to everybody"), (b"k" * 5000, 0o600, "bytes")],
)
def test_bad_key_file(tmp_path: Path, data: bytes, mode: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_key(write(tmp_path / "key", data, mode))
    assert caught.value.hint


def test_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key file"):
        load_key(tmp_path / "none")


def test_who_came_to_the_wrong_place_is_told_so() -> None:
    regions = Service("regions", Hello, Welcome, b"sustain/1 saver", b"sustain/1 keeper")
    with pytest.raises(ProtocolError, match="keeps regions, not stores"):
        ShipperHandshake(KEY, STORES).hello(body(ReceiverHandshake(KEY, regions).challenge()), HELLO)


def test_a_proof_for_one_service_is_none_for_another() -> None:
    regions = Service("stores", Hello, Welcome, b"sustain/1 saver", b"sustain/1 keeper")
    with pytest.raises(AuthenticationFailed):
        shake(ReceiverHandshake(KEY, regions), ShipperHandshake(KEY, STORES))
