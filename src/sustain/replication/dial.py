"""The connecting side: reaches a listener, and has both ends prove who they are. The counterpart of `listener`.

Used by `destination` and `outlet` (a store's shipper), and by `powerfail.regions.peer` (who saves or restores a
region). What follows the WELCOME is theirs.
"""

import socket
from collections.abc import Callable

from sustain.errors import AuthenticationFailed, PeerUnreachable, ProtocolError
from sustain.replication import wire
from sustain.replication.auth import H, Refused, Service, ShipperHandshake, W
from sustain.replication.channel import Channel
from sustain.replication.credentials import HINT, Credentials
from sustain.replication.urls import Peer, is_loopback
from sustain.replication.wire import Kind, Refuse


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


def challenge(channel: Channel, peer: Peer, credentials: Credentials, timeout_s: float) -> bytes:
    """What the listener begins with: the payload of its CHALLENGE, after TLS where there are certificates.

    Raises AuthenticationFailed, ProtocolError, PeerUnreachable. The time-out goes on for what follows.
    """
    if credentials.none and not is_loopback(channel.peer_address):
        raise AuthenticationFailed(
            "without a key or certificates only this host may be shipped to", hint=HINT
        )
    channel.set_deadline(timeout_s)
    if credentials.tls is not None:
        channel.secure(credentials.tls.client(peer.host))
    header, payload = channel.receive_frame(wire.SHIPPER_HANDSHAKE)
    if header.kind is Kind.REFUSE and len(payload) >= wire.SEAL_BYTES:
        refusal = wire.decode(Refuse, payload[wire.SEAL_BYTES :])
        if refusal.code == "protocol":  # not proved, and good for no more than this
            raise ProtocolError(f"the receiver says: {refusal.message}", hint=refusal.hint)
    if header.kind is not Kind.CHALLENGE:
        raise ProtocolError(f"it began with {header.kind.name}", hint="is that a Sustain receiver?")
    return payload


def introduce(
    channel: Channel,
    peer: Peer,
    credentials: Credentials,
    service: Service[H, W],
    hello: Callable[[], H],
    timeout_s: float,
) -> W:
    """The listener's WELCOME. `hello` is asked when its side has spoken.

    Raises Refused, AuthenticationFailed, ProtocolError, PeerUnreachable. The time-out is for the whole
    handshake; a listener that says that it is still busy (HEARTBEAT) after HELLO is waited for.
    """
    handshake = ShipperHandshake(credentials.key, service)
    try:
        payload = challenge(channel, peer, credentials, timeout_s)
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
