"""Peers that must not be shipped to, or must not be let in: one clear error each, and no harm."""

import socket
import struct
import threading
from dataclasses import replace

import pytest

from sustain._native import Control
from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    StoreFenced,
    SustainError,
)
from sustain.replication.auth import STORES, ShipperHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.door import Doorkeeper
from sustain.replication.ship import End, Shipper, ShipperConfig
from sustain.replication.urls import parse_peer
from sustain.replication.wire import SHIPPER_HANDSHAKE, Hello

from .conftest import LINK, Lab, contents, fill, until

KEY, OTHER = b"k" * 32, b"o" * 32


def undelivered(lab: Lab, target: object, **options: object) -> SustainError:
    """Ship once, which must not succeed; the error."""
    reason = lab.ship(target, until_drained=True, drain_timeout_s=20.0, **options).join()  # type: ignore[arg-type]
    assert reason.end is End.UNDELIVERED
    assert reason.error is not None
    assert reason.error.hint
    return reason.error


def test_same_key(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(credentials=Credentials(KEY))
    lab.ship(receiver, link=replace(LINK, credentials=Credentials(KEY)))
    store.wait(fill(store, 0, 10), copies=1, timeout=20)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [(KEY, OTHER, "another key"), (KEY, b"", "has no key"), (b"", KEY, "asks for a key")],
)
def test_wrong_key(lab: Lab, ours: bytes, theirs: bytes, says: str) -> None:
    fill(lab.create(), 0, 10)
    receiver = lab.receiver(credentials=Credentials(theirs))
    error = undelivered(lab, receiver, link=replace(LINK, credentials=Credentials(ours)))
    assert isinstance(error, AuthenticationFailed)
    assert says in str(error)
    assert not receiver.status()["has_store"]
    until(lambda: any("turned away" in line for line in lab.said), "the receiver says so")


def test_a_receiver_without_a_key_listens_on_loopback_only(lab: Lab) -> None:
    with pytest.raises(ConfigError) as caught:
        lab.receiver(listen=("0.0.0.0", 0))
    assert "--key-file" in caught.value.hint
    lab.receiver(listen=("0.0.0.0", 0), credentials=Credentials(KEY))


def test_a_shipper_without_a_key_ships_to_loopback_only(lab: Lab) -> None:
    config = ShipperConfig(lab.path("a"), [parse_peer("tcp://192.0.2.1:7411")])
    with pytest.raises(AuthenticationFailed) as caught:
        Shipper(config)
    assert "--key-file" in caught.value.hint


def test_an_address_in_use(lab: Lab) -> None:
    port = lab.receiver().address[1]
    with pytest.raises(ConfigError, match="cannot listen"):
        lab.receiver("c", port=port)


def test_nobody_listens(lab: Lab) -> None:
    fill(lab.create(), 0, 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = lab.ship(f"tcp://127.0.0.1:{port}", until_drained=True, drain_timeout_s=0.3)
    error = running.join().error
    assert isinstance(error, PeerUnreachable)
    assert f"127.0.0.1:{port}" in str(error)
    assert error.hint
    assert len(running.said) == 1  # said once, not at every try


def test_another_store(lab: Lab) -> None:
    fill(lab.create("a"), 0, 10)
    other = lab.create("b")
    fill(other, 0, 5)
    other.close()
    receiver = lab.receiver("b")
    error = undelivered(lab, receiver)
    assert isinstance(error, PeerRefused)
    assert "another store" in str(error)
    receiver.stop()
    assert len(contents(lab.open("b"))) == 5


def test_above_the_size_limit(lab: Lab) -> None:
    fill(lab.create(), 0, 10)
    error = undelivered(lab, lab.receiver(size_limit=1 << 20))
    assert isinstance(error, PeerRefused)
    assert "limit" in str(error)


def test_a_log_that_would_fill_the_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lab.create(log_size="4MiB"), 0, 10)
    small = {"SC_PHYS_PAGES": 1024, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("sustain.replication.standby.os.sysconf", small.__getitem__)
    error = undelivered(lab, lab.receiver())
    assert isinstance(error, PeerRefused)
    assert "memory" in str(error)


def test_an_old_epoch_is_fenced_by_every_standby(lab: Lab) -> None:
    old, b, c = lab.create("a"), lab.receiver("b"), lab.receiver("c")
    running = lab.ship(b, c)
    old.wait(fill(old, 0, 50), copies=2, timeout=20)
    running.stop()
    b.promote(2)
    new = lab.open("b")
    shipping = lab.ship(c, name="b")
    new.wait(fill(new, 50, 10), copies=1, timeout=20)
    # The old primary still believes: what it sends is refused, and its own commits end.
    held = c.status()["end"]
    fill(old, 900, 3)
    reason = lab.ship(c, name="a").join()
    assert reason.end is End.FENCED
    assert isinstance(reason.error, StoreFenced)
    assert c.status()["end"] == held
    assert Control(lab.path("a")).words()["fence_epoch"] == 2  # type: ignore[index]
    with pytest.raises(StoreFenced):
        fill(old, 950, 1)
    # and the new one was not disturbed
    new.wait(fill(new, 60, 10), copies=1, timeout=20)
    shipping.stop()


def test_the_fence_outlives_the_receiver(lab: Lab) -> None:
    old, b, c = lab.create("a"), lab.receiver("b"), lab.receiver("c")
    running = lab.ship(b, c)
    old.wait(fill(old, 0, 20), copies=2, timeout=20)
    running.stop()
    b.promote(7)
    lab.open("b")
    shipping = lab.ship(c, name="b")
    until(lambda: c.status()["epoch"] == 7, "c has heard of epoch 7")
    shipping.stop()
    c.stop()
    again = lab.receiver("c")
    assert lab.ship(again, name="a").join().end is End.FENCED


def introduce(address: tuple[str, int], hello: Hello) -> None:
    """Be let in as `hello`'s primary, and vanish."""
    with socket.create_connection(address, timeout=20) as sock:
        channel = Channel(sock, 20.0)
        handshake = ShipperHandshake(b"", STORES)
        _, payload = channel.receive_frame(SHIPPER_HANDSHAKE)
        channel.send_raw([handshake.hello(payload, hello)])
        header, payload = channel.receive_frame(SHIPPER_HANDSHAKE)
        handshake.answer(header.kind, payload)


def test_an_epoch_is_durable_before_anything_of_it_arrives(lab: Lab) -> None:
    store, c = lab.create("a"), lab.receiver("c")
    running = lab.ship(c)
    store.wait(fill(store, 0, 20), copies=1, timeout=20)
    hello = running.shipper.hello()
    running.stop()
    newer = Hello(**{name: getattr(hello, name) for name in hello.__struct_fields__} | {"epoch": 9})
    introduce(c.address, newer)
    c.stop()
    again = lab.receiver("c")
    assert again.status()["epoch"] == 9
    assert lab.ship(again, name="a").join().end is End.FENCED


def test_one_byte_at_a_time_does_not_stretch_the_handshake(lab: Lab) -> None:
    receiver = lab.receiver(handshake_timeout_s=0.3, timeout_s=60.0)
    pause = threading.Event()
    with socket.create_connection(receiver.address, timeout=20) as sock:

        def drip() -> None:
            for byte in struct.pack("<IHHQQQ", 16 << 10, 2, 0, 0, 0, 0) + bytes(16 << 10):
                sock.sendall(bytes([byte]))
                pause.wait(0.02)

        with pytest.raises(OSError):
            drip()


def test_a_primary_with_a_newer_epoch_ends_the_session_of_the_older(lab: Lab) -> None:
    old, b, c = lab.create("a"), lab.receiver("b"), lab.receiver("c")
    running = lab.ship(b, c)
    old.wait(fill(old, 0, 20), copies=2, timeout=20)
    b.promote(2)
    new = lab.open("b")
    lab.ship(c, name="b")
    new.wait(fill(new, 20, 5), copies=1, timeout=20)
    assert running.join().end is End.FENCED


def test_the_door_of_a_primary_fences_an_older_one(lab: Lab) -> None:
    old, b = lab.create("a"), lab.receiver("b")
    running = lab.ship(b)
    old.wait(fill(old, 0, 20), copies=1, timeout=20)
    running.stop()
    b.promote(5)
    uuid = Control(lab.path("b")).superblock()["store_uuid"]
    heard: list[int] = []
    door = Doorkeeper(("127.0.0.1", 0), NO_CREDENTIALS, store_uuid=uuid, epoch=5, fence=heard.append)
    door.start()
    try:
        url = f"tcp://127.0.0.1:{door.address[1]}"
        reason = lab.ship(url).join()
        assert reason.end is End.FENCED
        assert heard == []
    finally:
        door.stop()


def test_the_door_of_a_primary_hears_of_a_newer_epoch(lab: Lab) -> None:
    old, b = lab.create("a"), lab.receiver("b")
    running = lab.ship(b)
    old.wait(fill(old, 0, 20), copies=1, timeout=20)
    running.stop()
    b.promote(5)
    uuid = Control(lab.path("a")).superblock()["store_uuid"]
    heard: list[int] = []
    door = Doorkeeper(("127.0.0.1", 0), NO_CREDENTIALS, store_uuid=uuid, epoch=1, fence=heard.append)
    door.start()
    try:
        again = lab.ship(f"tcp://127.0.0.1:{door.address[1]}", name="b")
        until(lambda: any("primary itself" in line for line in again.said), "it is told")
        assert set(heard) == {5}
        again.stop()
    finally:
        door.stop()


def test_not_a_receiver(lab: Lab) -> None:
    fill(lab.create(), 0, 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        running = lab.ship(
            f"tcp://127.0.0.1:{server.getsockname()[1]}", until_drained=True, drain_timeout_s=20.0
        )
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\nContent-Length: 0\r\n\r\n")
            error = running.join().error
    assert isinstance(error, ProtocolError)
    assert error.hint


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: someone\r\n\r\n",
        bytes(4096),
        struct.pack("<IHHQQQ", 2**32 - 1, 2, 0, 0, 0, 0),
        struct.pack("<IHHQQQ", 64, 2, 0, 0, 0, 0) + bytes(64),
        struct.pack("<IHHQQQ", 1 << 20, 11, 0, 0, 0, 0),
        b"x",
        b"",
    ],
)
def test_garbage_at_the_door_harms_nobody(lab: Lab, data: bytes) -> None:
    store, receiver = lab.create(), lab.receiver(handshake_timeout_s=0.3)
    with socket.create_connection(receiver.address, timeout=20) as sock:
        sock.sendall(data)
        while sock.recv(1 << 16):
            pass  # the challenge, perhaps a refusal, then the end: within the handshake's time
    lab.ship(receiver)
    store.wait(fill(store, 0, 3), copies=1, timeout=20)


def test_many_silent_connections_do_not_lock_the_primary_out(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(handshake_timeout_s=0.5)
    silent = [socket.create_connection(receiver.address) for _ in range(40)]
    lab.ship(receiver)
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
    for each in silent:
        each.close()
