"""The connecting side: reaches a listener, and has both ends prove the key. The counterpart of `listener`.

Used by `destination` and `outlet` (a store's shipper), and by `powerfail.regions.peer` (who saves or restores a
region). What follows the WELCOME is theirs.
"""

import socket
from collections.abc import Callable

from sustain.errors import AuthenticationFailed, PeerUnreachable, ProtocolError
from sustain.replication import wire
from sustain.replication.auth import H, Refused, Service, ShipperHandshake, W
from sustain.replication.channel import Channel
from sustain.replication.urls import Peer, is_loopback
from sustain.replication.wire import Kind


def dial(peer: Peer, *, connect_timeout_s: float, timeout_s: float) -> Channel:
    """A connection to `peer`. Raises PeerUnreachable."""
    try:
        sock = socket.create_connection((peer.host, peer.port), connect_timeout_s)
    except OSError as error:
        raise PeerUnreachable(
            f"{peer.url} cannot be reached: {error.strerror or error}",
            hint="is `sustain receive` running there, and is the port open?",
        ) from None
    return Channel(sock, timeout_s)


def introduce(
    channel: Channel, peer: Peer, key: bytes, service: Service[H, W], hello: Callable[[], H], timeout_s: float
) -> W:
    """The listener's WELCOME. `hello` is asked when its side has spoken.

    Raises Refused, AuthenticationFailed, ProtocolError, PeerUnreachable. The time-out is for the whole
    handshake; a listener that says that it is still busy (HEARTBEAT) after HELLO is waited for.
    """
    if not key and not is_loopback(channel.peer_address):
        raise AuthenticationFailed(
            f"{channel.peer}: without a key only this host may be shipped to",
            hint="give both sides a --key-file",
        )
    channel.set_deadline(timeout_s)
    handshake = ShipperHandshake(key, service)
    header, payload = channel.receive_frame(wire.SHIPPER_HANDSHAKE)
    if header.kind is not Kind.CHALLENGE:
        raise ProtocolError(
            f"{channel.peer} began with {header.kind.name}", hint="is that a Sustain receiver?"
        )
    try:
        channel.send_raw([handshake.hello(payload, hello())])
        while True:
            header, payload = channel.receive_frame(service.answers)
            if header.kind is not Kind.HEARTBEAT:
                break
            channel.set_deadline(None)
        welcome = handshake.answer(header.kind, payload)
    except Refused:
        raise
    except (AuthenticationFailed, ProtocolError) as error:
        raise type(error)(f"{peer.url}: {error}", hint=error.hint) from None
    channel.set_deadline(None)
    return welcome
