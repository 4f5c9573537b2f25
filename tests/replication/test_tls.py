"""TLS between a shipper and a receiver over real sockets: who is let in, what each end is told otherwise, and that
renewed certificates are used without a restart."""

import contextlib
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerUnreachable,
    ProtocolError,
    SustainError,
)
from sustain.replication import wire
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, CredentialFiles, Credentials
from sustain.replication.fetch import keeps_store
from sustain.replication.listener import HANDSHAKES_AT_ONCE
from sustain.replication.receive import Receiver
from sustain.replication.ship import End
from sustain.replication.tls import Tls
from sustain.replication.urls import join
from sustain.replication.wire import SHIPPER_HANDSHAKE, Kind

from .certificates import ALPN, HANDSHAKE_LIMIT_BYTES, Authority, bundle, client_context, connect, unproved
from .conftest import LINK, Lab, contents, fill, until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path / "ca")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path / "other", "another CA")


def undelivered(lab: Lab, receiver: Receiver | str, credentials: Credentials) -> SustainError:
    """Ship once, which must not succeed; the error."""
    link = replace(LINK, credentials=credentials)
    reason = lab.ship(receiver, link=link, until_drained=True, drain_timeout_s=20.0).join()
    assert reason.end is End.UNDELIVERED
    assert reason.error is not None
    return reason.error


def both_told(lab: Lab, credentials: Credentials, receiver: Receiver, here: str, there: str) -> None:
    """The shipper ends with one error that says `here`, the receiver reports one that says `there`."""
    error = undelivered(lab, receiver, credentials)
    assert isinstance(error, AuthenticationFailed)
    assert here in str(error)
    assert f"tcp://{join(*receiver.address)}: " in str(error)
    assert len(error.hint) > 10
    until(
        lambda: any("turned away" in line and there in line for line in lab.said),
        f"the receiver says: {there}",
    )
    assert not receiver.status()["has_store"]


def test_a_log_is_shipped(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b").load())
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 0, 200), copies=1, timeout=20)
    receiver.stop()
    assert contents(lab.open("b")) == contents(store)


def test_a_snapshot_and_large_commits_are_shipped(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    fill(store, 0, 40, os.urandom(100_000))  # more than the log holds
    receiver = lab.receiver(credentials=authority.host("b").load())
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 40, 3, os.urandom(500_000)), copies=1, timeout=20)
    receiver.stop()
    assert contents(lab.open("b")) == contents(store)


def test_a_key_beside_the_certificates_must_be_the_same(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    a, b = authority.host("a").load(), authority.host("b").load()
    receiver = lab.receiver(credentials=replace(b, key=b"k" * 32))
    error = undelivered(lab, receiver, replace(a, key=b"o" * 32))
    assert isinstance(error, AuthenticationFailed)
    assert "another key" in str(error)
    lab.ship(receiver, link=replace(LINK, credentials=replace(a, key=b"k" * 32)))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)


def test_with_certificates_any_address_may_be_listened_on(lab: Lab, authority: Authority) -> None:
    with pytest.raises(ConfigError) as caught:
        lab.receiver(listen=("0.0.0.0", 0))
    assert "--tls-cert" in caught.value.hint
    # A listener that is open to others for as long as it takes to see that it may be.
    Receiver.stop(lab.receiver("c", listen=("0.0.0.0", 0), credentials=authority.host("b").load()))


def until_closed(sock: socket.socket) -> None:
    """Read until the other side has ended the connection, in whatever manner."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sock.recv(1 << 16):
            pass


def drip(sock: socket.socket, data: bytes) -> None:
    """One byte after the other. Raises OSError when nobody takes them any more."""
    pause = threading.Event()
    for byte in data:
        sock.sendall(bytes([byte]))
        pause.wait(0.02)


# certificates that are of no use


def test_the_receiver_is_of_another_ca(lab: Lab, authority: Authority, other: Authority) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b").load())
    both_told(
        lab,
        other.host("a").load(),
        receiver,
        "its certificate is not of a CA that is trusted here",
        "the other side does not trust the CA of our certificate",
    )


def test_the_shipper_is_of_another_ca(
    lab: Lab, authority: Authority, other: Authority, tmp_path: Path
) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b").load())
    both = bundle(tmp_path / "both.pem", authority.ca, other.ca)
    both_told(
        lab,
        other.host("a", ca=both).load(),
        receiver,
        "the other side does not trust the CA of our certificate",
        "its certificate is not of a CA that is trusted here",
    )


def test_the_receivers_certificate_has_expired(
    lab: Lab, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lab.create(), 0, 3)
    expired = authority.host("b", begins_in_days=-40)
    receiver = lab.receiver(credentials=unproved(expired, monkeypatch))
    both_told(
        lab,
        authority.host("a").load(),
        receiver,
        "its certificate has expired",
        "the other side finds our certificate expired",
    )


def test_the_shippers_certificate_has_expired(
    lab: Lab, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b").load())
    both_told(
        lab,
        unproved(authority.host("a", begins_in_days=-40), monkeypatch),
        receiver,
        "the other side finds our certificate expired",
        "its certificate has expired",
    )


def test_a_certificate_is_not_valid_yet(
    lab: Lab, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b").load())
    both_told(
        lab,
        unproved(authority.host("a", begins_in_days=5), monkeypatch),
        receiver,
        "not valid yet",
        "its certificate is not valid yet",
    )


@pytest.mark.parametrize("names", [("10.0.0.2",), ("b.example",)])
def test_the_receiver_is_another_host(lab: Lab, authority: Authority, names: tuple[str, ...]) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b", *names).load())
    both_told(
        lab,
        authority.host("a").load(),
        receiver,
        "is not for the address that was connected to",
        "not for the address it connects to",
    )


def test_a_host_is_reached_by_a_name_in_its_certificate(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b", "localhost").load())
    url = f"tcp://localhost:{receiver.address[1]}"
    running = lab.ship(url, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
    running.stop()
    wrong = lab.receiver("c", credentials=authority.host("c", "c.example").load())
    error = undelivered(lab, f"tcp://localhost:{wrong.address[1]}", authority.host("d").load())
    assert "is not for the name that was connected to" in str(error)


# sides that speak something else


def test_a_client_without_a_certificate(lab: Lab, authority: Authority) -> None:
    receiver = lab.receiver(credentials=authority.host("b").load())
    context = client_context(authority.ca)
    context.set_alpn_protocols([ALPN])
    with (
        connect(receiver.address, context) as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
    ):
        sock.recv(1)
    until(lambda: any("it has shown no certificate" in line for line in lab.said), "the receiver says so")


def test_older_tls_is_refused(lab: Lab, authority: Authority) -> None:
    receiver = lab.receiver(credentials=authority.host("b").load())
    context = client_context(authority.ca, authority.host("a"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        connect(receiver.address, context)
    until(lambda: any("no TLS 1.3" in line for line in lab.said), "the receiver says so")


def test_a_receiver_that_offers_only_older_tls_is_refused(lab: Lab, authority: Authority) -> None:
    fill(lab.create(), 0, 3)
    files = authority.host("b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert files.tls_cert is not None
    context.load_cert_chain(files.tls_cert, files.tls_key)
    error = answered(lab, authority, lambda sock: context.wrap_socket(sock, server_side=True))
    assert isinstance(error, ProtocolError)
    assert "TLS 1.3" in str(error)


def answered(lab: Lab, authority: Authority, answer: Callable[[socket.socket], object]) -> SustainError:
    """What a shipper with a certificate ends with, when its first connection is answered so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        link = replace(LINK, credentials=authority.host("a").load())
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        running = lab.ship(url, link=link, until_drained=True, drain_timeout_s=20.0)
        sock, _ = server.accept()
        sock.settimeout(20)
        try:
            answer(sock)
        except (ssl.SSLError, OSError):
            pass
        finally:
            error = running.join().error
            sock.close()
    assert error is not None
    assert error.hint
    return error


def test_tls_that_is_not_for_sustain(lab: Lab, authority: Authority) -> None:
    fill(lab.create(), 0, 3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = authority.host("b")
    assert files.tls_cert is not None
    context.load_cert_chain(files.tls_cert, files.tls_key)
    error = answered(lab, authority, lambda sock: context.wrap_socket(sock, server_side=True))
    assert isinstance(error, ProtocolError)
    assert "not for Sustain" in str(error)
    receiver = lab.receiver(credentials=authority.host("c").load())
    with connect(receiver.address, client_context(authority.ca, files)) as sock:
        until_closed(sock)
    until(lambda: any("not for Sustain" in line for line in lab.said), "the receiver says so")


def test_a_shipper_without_certificates_is_told_that_the_receiver_wants_them(
    lab: Lab, authority: Authority
) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver(credentials=authority.host("b").load(), handshake_timeout_s=1.0)
    for plain in (NO_CREDENTIALS, Credentials(b"k" * 32)):
        error = undelivered(lab, receiver, plain)
        assert isinstance(error, ProtocolError)
        assert "asks for TLS" in str(error)
        assert "--tls-cert" in error.hint
    until(lambda: any("asks for TLS" in line for line in lab.said), "the receiver says so")
    with pytest.raises(ProtocolError, match="asks for TLS"):
        keeps_store(f"tcp://{join(*receiver.address)}", NO_CREDENTIALS)


def test_a_shipper_with_certificates_is_told_that_the_receiver_has_none(
    lab: Lab, authority: Authority
) -> None:
    fill(lab.create(), 0, 3)
    receiver = lab.receiver()
    error = undelivered(lab, receiver, authority.host("a").load())
    assert isinstance(error, ProtocolError)
    assert "it does not speak TLS" in str(error)
    assert "--tls-cert" in error.hint
    until(lambda: any("this host has no certificate" in line for line in lab.said), "the receiver says so")


# time and size


def test_one_byte_at_a_time_does_not_stretch_the_handshake(lab: Lab, authority: Authority) -> None:
    receiver = lab.receiver(credentials=authority.host("b").load(), handshake_timeout_s=0.5, timeout_s=60.0)
    began = time.monotonic()
    with socket.create_connection(receiver.address, timeout=20) as sock, pytest.raises(OSError):
        drip(sock, b"\x16\x03\x01\x40\x00" + bytes(1 << 14))
    assert time.monotonic() - began < 10


def test_silent_tls_clients_do_not_lock_the_primary_out(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b").load(), handshake_timeout_s=0.5)
    silent = [socket.create_connection(receiver.address) for _ in range(40)]
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
    for each in silent:
        each.close()


def test_one_address_cannot_lock_the_others_out(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    b = authority.host("b").load()
    receiver = lab.receiver(credentials=b, handshake_timeout_s=600.0, timeout_s=600.0)
    there, many = receiver.address, HANDSHAKES_AT_ONCE
    hostile = [socket.create_connection(there, source_address=("127.0.0.2", 0)) for _ in range(many)]
    for each in hostile:
        with contextlib.suppress(OSError):  # one that was closed at once
            each.sendall(b"\x16\x03\x01\x01\x00")  # and nothing more
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
    for each in hostile:
        each.close()


def test_a_handshake_without_end_is_cut(authority: Authority) -> None:
    tls = authority.host("b").load().tls
    assert tls is not None
    session = tls.server()
    piece = b"\x16" + bytes(1023)
    for _ in range(HANDSHAKE_LIMIT_BYTES // len(piece)):
        session.feed(piece)
    with pytest.raises(ProtocolError, match="without end"):
        session.feed(piece)


def test_a_frame_above_its_limit_ends_the_connection(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b").load())
    context = client_context(authority.ca, authority.host("a"))
    context.set_alpn_protocols([ALPN])
    with connect(receiver.address, context) as sock:
        sock.sendall(wire._HEADER.pack(2**32 - 1, Kind.HELLO, 0, 0, 0, 0))
        until_closed(sock)
    until(lambda: any("4294967295 bytes" in line for line in lab.said), "the receiver says so")
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("c").load()))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)


# renewal


def test_a_renewed_certificate_is_used_without_a_restart(
    lab: Lab, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=unproved(authority.host("b", begins_in_days=-40), monkeypatch))
    running = lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    until(lambda: any("has expired" in line for line in running.said), "the shipper says so")
    authority.host("b", renew=True)
    store.wait(fill(store, 0, 3), copies=1, timeout=30)


def test_a_renewed_certificate_is_used_by_who_connects(
    lab: Lab, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b").load())
    link = replace(LINK, credentials=unproved(authority.host("a", begins_in_days=-40), monkeypatch))
    running = lab.ship(receiver, link=link)
    until(
        lambda: any("finds our certificate expired" in line for line in running.said), "the shipper says so"
    )
    authority.host("a", renew=True)
    store.wait(fill(store, 0, 3), copies=1, timeout=30)


def test_a_connection_outlives_its_certificates_renewal(lab: Lab, authority: Authority) -> None:
    store = lab.create()
    receiver = lab.receiver(credentials=authority.host("b").load())
    lab.ship(receiver, link=replace(LINK, credentials=authority.host("a").load()))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)
    authority.host("b", renew=True)
    store.wait(fill(store, 3, 3), copies=1, timeout=20)
    assert receiver.status()["sessions"] == 1


def handshake(server: Tls, client: Tls) -> None:
    ends = (server.server(), client.client("127.0.0.1"))
    done = [False, False]
    while not all(done):
        for at, end in enumerate(ends):
            done[at] = done[at] or end.shake()
            data = end.outgoing()
            if data:
                ends[1 - at].feed(data)


def tls_of(files: CredentialFiles, said: list[str]) -> Tls:
    tls = files.load(said.append).tls
    assert tls is not None
    return tls


def test_files_that_do_not_fit_leave_what_was_read_before_in_use(
    authority: Authority, other: Authority
) -> None:
    said: list[str] = []
    files = authority.host("b")
    server, client = tls_of(files, said), tls_of(authority.host("a"), [])
    handshake(server, client)
    assert said == []
    foreign = other.host("b")
    assert files.tls_key is not None and foreign.tls_key is not None  # noqa: PT018
    assert files.tls_cert is not None and foreign.tls_cert is not None  # noqa: PT018
    kept = Path(files.tls_key).read_bytes()
    shutil.copy(foreign.tls_key, files.tls_key)  # the first of two is replaced
    handshake(server, client)
    handshake(server, client)
    assert len(said) == 1  # said once
    assert "do not belong together" in said[0]
    assert "stays in use" in said[0]
    Path(files.tls_key).write_bytes(kept)
    handshake(server, client)
    assert "read again" in said[1]


def test_what_ends_soon_is_said(authority: Authority) -> None:
    said: list[str] = []
    tls = tls_of(authority.host("b", days=3), said)
    assert "renew it" in said[0]
    assert 2.9 * 86400 < tls.ends_s - time.time() < 3.1 * 86400


# files


@pytest.mark.parametrize(("begins_in_days", "says"), [(-40, "has expired"), (5, "is not valid yet")])
def test_an_own_certificate_that_nobody_would_take(
    authority: Authority, begins_in_days: int, says: str
) -> None:
    files = authority.host("b", begins_in_days=begins_in_days)
    with pytest.raises(ConfigError, match=says) as caught:
        files.load()
    assert caught.value.hint
    assert str(files.tls_cert) in str(caught.value)


def test_an_own_certificate_of_another_ca(authority: Authority, other: Authority) -> None:
    with pytest.raises(ConfigError, match="is not of a CA that is trusted here"):
        authority.host("b", ca=other.ca).load()


def test_a_key_of_another_certificate(authority: Authority) -> None:
    a, b = authority.host("a"), authority.host("b")
    with pytest.raises(ConfigError, match="do not belong together"):
        replace(a, tls_key=b.tls_key).load()


def test_a_key_that_everybody_may_read(authority: Authority) -> None:
    files = authority.host("a")
    assert files.tls_key is not None
    os.chmod(files.tls_key, 0o644)
    with pytest.raises(ConfigError, match="open to everybody") as caught:
        files.load()
    assert "chmod" in caught.value.hint


def test_a_key_with_a_passphrase(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization as form

    files = authority.host("a")
    assert files.tls_key is not None
    path = Path(files.tls_key)
    key = form.load_pem_private_key(path.read_bytes(), None)
    for kind in (form.PrivateFormat.PKCS8, form.PrivateFormat.TraditionalOpenSSL):
        path.write_bytes(key.private_bytes(form.Encoding.PEM, kind, form.BestAvailableEncryption(b"secret")))
        with pytest.raises(ConfigError, match="is encrypted") as caught:
            files.load()
        assert "openssl pkey" in caught.value.hint


@pytest.mark.parametrize("what", ["tls_cert", "tls_key", "tls_ca"])
@pytest.mark.parametrize("content", [None, b"", b"hello\n", bytes(100_000)])
def test_a_file_that_is_none(authority: Authority, tmp_path: Path, what: str, content: bytes | None) -> None:
    path = tmp_path / "thing"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match="thing") as caught:
        replace(authority.host("a"), **{what: str(path)}).load()
    assert caught.value.hint


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_one_of_the_three_is_missing(authority: Authority, missing: str) -> None:
    with pytest.raises(ConfigError, match=f"--{missing.replace('_', '-')} is missing"):
        replace(authority.host("a"), **{missing: None}).load()


# a channel


@pytest.fixture
def pair(authority: Authority) -> tuple[Channel, Channel]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = socket.create_connection(listening.getsockname(), timeout=20)
        here, _ = listening.accept()
    server, client = authority.host("b").load().tls, authority.host("a").load().tls
    assert server is not None and client is not None  # noqa: PT018
    ends = Channel(here, 10.0), Channel(there, 10.0)
    thread = threading.Thread(target=ends[0].secure, args=(server.server(),))
    thread.start()
    ends[1].secure(client.client("127.0.0.1"))
    thread.join(20)
    return ends


def test_both_ends_send_and_receive_at_once(pair: tuple[Channel, Channel]) -> None:
    """What any number of threads send arrives in whole frames while others receive, at both ends."""
    frames, senders = 60, 3
    payloads = [os.urandom(size) for size in (1, 1000, 70_000, 300_001)]
    got: list[list[tuple[int, bytes]]] = [[], []]

    def send(channel: Channel, who: int) -> None:
        for number in range(frames):
            channel.send(Kind.PROBE, who * 1000 + number, payload=payloads[number % 4][: 256 << 10])

    def receive(at: int) -> None:
        allowed = frozenset({Kind.PROBE})
        for _ in range(frames * senders):
            header = pair[at].receive_header(allowed)
            got[at].append((header.a, pair[at].receive_payload(header)))

    threads = [threading.Thread(target=send, args=(end, who)) for end in pair for who in range(senders)]
    threads += [threading.Thread(target=receive, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for found in got:
        assert sorted(number for number, _ in found) == sorted(
            who * 1000 + number for who in range(senders) for number in range(frames)
        )
        assert all(payload == payloads[number % 1000 % 4][: 256 << 10] for number, payload in found)
    for end in pair:
        end.release()


def test_what_has_arrived_is_known_to_be_there(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    assert not there.ready()
    here.send(Kind.HEARTBEAT, 1)
    here.send(Kind.HEARTBEAT, 2)
    assert there.ready(10)
    allowed = frozenset({Kind.HEARTBEAT})
    assert there.receive_header(allowed).a == 1
    assert there.ready(10)  # in the session already, and nothing in the socket
    assert there.receive_header(allowed).a == 2
    assert not there.ready()
    here.release()
    with pytest.raises(PeerUnreachable):
        there.receive_header(allowed)
    there.release()


def test_a_changed_byte_ends_the_connection(authority: Authority) -> None:
    server, client = authority.host("b").load().tls, authority.host("a").load().tls
    assert server is not None and client is not None  # noqa: PT018
    ends = [server.server(), client.client("127.0.0.1")]
    done = [False, False]
    while not all(done):
        for at, end in enumerate(ends):
            done[at] = done[at] or end.shake()
            if data := end.outgoing():
                ends[1 - at].feed(data)
    assert ends[1].seal(b"x" * 1000) == 1000
    sealed = bytearray(ends[1].outgoing())
    sealed[500] ^= 1
    ends[0].feed(bytes(sealed))
    view = memoryview(bytearray(2000))
    with socket.socket() as unused:
        for _ in range(2):  # and it stays so
            with pytest.raises(ProtocolError, match="TLS"):
                ends[0].receive_into(unused.fileno(), view)


def test_a_host_name_that_no_certificate_can_have(authority: Authority) -> None:
    tls = authority.host("a").load().tls
    assert tls is not None
    with pytest.raises(ConfigError, match="host"):
        tls.client(".example")


def test_raw_frames_are_answered_over_tls(lab: Lab, authority: Authority) -> None:
    """What the fuzz test relies on: a raw client with a good certificate reaches the frames."""
    receiver = lab.receiver(credentials=authority.host("b").load())
    tls = authority.host("a").load().tls
    assert tls is not None
    with socket.create_connection(receiver.address, timeout=20) as sock:
        channel = Channel(sock, 20.0)
        channel.secure(tls.client("127.0.0.1"))
        header, _ = channel.receive_frame(SHIPPER_HANDSHAKE)
        assert header.kind is Kind.CHALLENGE
