"""The listening side: accepts connections, makes each prove who it is, hands it on.

Used by `receive.Receiver` (a standby), `door.Doorkeeper` (a host that is itself the primary) and
`powerfail.regions.serve` (a keeper of regions). Everything before the proof is bounded: frame length, time,
number of connections. Each connection has a thread; there are a handful of peers, and the session that a
connection becomes blocks in the engine or on a disk anyway.
"""

import contextlib
import functools
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic

from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerUnreachable,
    ProtocolError,
    SustainError,
    unexpected,
)
from sustain.replication import wire
from sustain.replication.auth import H, ReceiverHandshake, Service, W
from sustain.replication.channel import Channel
from sustain.replication.credentials import HINT, Credentials
from sustain.replication.tls import FIRST_BYTES
from sustain.replication.urls import is_loopback, join
from sustain.replication.wire import Refuse

HANDSHAKES_AT_ONCE = 16
HANDSHAKES_FROM_ONE = 8  # address, so that one that holds all it can get does not lock the others out
_ACCEPT_PAUSE_S = 0.05
_SILENCE_S = 3.0  # a TLS client speaks at once


class Listener(Generic[H, W]):
    """Listens from `start` to `stop`. `serve(channel, handshake, hello)` runs in the connection's own
    thread."""

    def __init__(
        self,
        address: tuple[str, int],
        credentials: Credentials,
        service: Service[H, W],
        serve: Callable[[Channel, ReceiverHandshake[H, W], H], None],
        *,
        timeout_s: float,
        handshake_timeout_s: float,
        rejected: Callable[[str, SustainError], None],
    ) -> None:
        self._address = self._bound = address
        self._credentials = credentials
        self._service = service
        self._serve = serve
        self._timeout_s = timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self._rejected = rejected
        self._lock = threading.Lock()
        self._shaking: Counter[str] = Counter()  # by address
        self._open: dict[Channel, None] = {}  # and not a set: ended in the order in which they came
        self._threads: list[threading.Thread] = []
        self._sock: socket.socket | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        """Bind and begin to accept. Raises ConfigError when the address cannot be had, or is open to
        others without credentials."""
        host, port = self._address
        shown = join(host, port)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {shown}: {error.strerror}", hint="name an address of this host"
            ) from None
        family, _, _, _, target = found[0]
        if self._credentials.none and not is_loopback(str(target[0])):
            raise ConfigError(
                f"without a key or certificates only the loopback interface is listened on, not {shown}",
                hint=f"{HINT}; or listen on 127.0.0.1",
            )
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
            sock.listen(HANDSHAKES_AT_ONCE)
        except OSError as error:
            sock.close()
            hint = "another process listens there, or the address is not this host's"
            raise ConfigError(f"cannot listen on {shown}: {error.strerror}", hint=hint) from None
        self._sock = sock
        self._bound = (str(sock.getsockname()[0]), int(sock.getsockname()[1]))
        self._spawn(self._accept, "accept")

    @property
    def address(self) -> tuple[str, int]:
        """Where it really listens (the port that the system chose, when 0 was asked)."""
        return self._bound

    def stop(self, limit_s: float = 10.0) -> None:
        """Accept no more, end every connection, wait for their threads."""
        with self._lock:
            self._stop.set()
            channels = list(self._open)
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        for channel in channels:
            channel.close()
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(limit_s)
        if self._sock is not None:
            self._sock.close()

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=f"sustain-{name}", daemon=True)
        with self._lock:
            self._threads = [*(each for each in self._threads if each.is_alive()), thread]
            thread.start()

    def _accept(self) -> None:
        assert self._sock is not None
        while True:
            try:
                sock, (address, *_) = self._sock.accept()
            except OSError:
                # Descriptors ran out, and it would fail at once again; or the peer gave up while it queued.
                if self._stop.wait(_ACCEPT_PAUSE_S):
                    return
                continue
            if self._stop.is_set():
                sock.close()
                return
            if not self._begin(address):
                sock.close()
                continue
            channel = Channel(sock, self._timeout_s)
            self._spawn(functools.partial(self._run, channel, address), "connection")

    def _begin(self, address: str) -> bool:
        """Whether there is room for another handshake."""
        with self._lock:
            shaking = self._shaking
            if shaking.total() >= HANDSHAKES_AT_ONCE or shaking[address] >= HANDSHAKES_FROM_ONE:
                return False
            shaking[address] += 1
            return True

    def _end(self, address: str) -> None:
        with self._lock:
            self._shaking[address] -= 1
            self._shaking += Counter()  # forgets those of none

    def _run(self, channel: Channel, address: str) -> None:
        with self._lock:
            self._open[channel] = None
        try:
            try:
                handshake, hello = self._shake(channel)
            finally:
                self._end(address)
            if not self._stop.is_set():
                self._serve(channel, handshake, hello)
        except SustainError as error:
            self._rejected(channel.peer, error)
        except Exception as error:  # noqa: BLE001 - one peer's doing must not look like everybody's end
            self._rejected(channel.peer, SustainError(unexpected(error)))
        finally:
            with self._lock:
                self._open.pop(channel, None)
            channel.release()

    def _shake(self, channel: Channel) -> tuple[ReceiverHandshake[H, W], H]:
        channel.set_deadline(self._handshake_timeout_s)
        credentials = self._credentials
        if credentials.none and not is_loopback(channel.peer_address):
            raise AuthenticationFailed("without a key or certificates only this host may connect", hint=HINT)
        handshake = ReceiverHandshake(credentials.key, self._service)
        if credentials.tls is not None:
            self._insist_on_tls(channel, handshake)
            channel.secure(credentials.tls.server())
        channel.send_raw([handshake.challenge()])
        try:
            if credentials.tls is None and channel.peek(3) in FIRST_BYTES:
                raise ProtocolError(
                    "it speaks TLS, and this host has no certificate",
                    hint="give this host --tls-cert, --tls-key and --tls-ca, or that one none of them",
                )
            _, payload = channel.receive_frame(wire.RECEIVER_HANDSHAKE)
            hello = handshake.hello(payload)
        except (AuthenticationFailed, ProtocolError) as error:
            code = "authentication" if isinstance(error, AuthenticationFailed) else "protocol"
            with contextlib.suppress(PeerUnreachable):
                channel.send_raw([handshake.refuse(Refuse(code, str(error)[:500], error.hint))])
            raise
        channel.set_deadline(None)
        return handshake, hello

    def _insist_on_tls(self, channel: Channel, handshake: ReceiverHandshake[H, W]) -> None:
        """A shipper without certificates waits to be spoken to, as this side does with TLS: tell it. Raises
        ProtocolError."""
        if channel.ready(min(_SILENCE_S, self._handshake_timeout_s / 2)):
            return
        error = ProtocolError(
            "it has said nothing; this host asks for TLS",
            hint="give that side certificates: --tls-cert, --tls-key, --tls-ca (`sustain keys` makes them)",
        )
        with contextlib.suppress(PeerUnreachable):
            told = Refuse("protocol", "this host asks for TLS", error.hint.replace("that side", "this side"))
            channel.send_raw([handshake.refuse(told)])
        raise error


def refuse(channel: Channel, handshake: ReceiverHandshake[Any, Any], refusal: Refuse) -> None:
    """Say no, and leave the other side the time to read it."""
    channel.send_raw([handshake.refuse(refusal)])
