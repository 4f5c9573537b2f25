"""A socket that carries frames: bounded, with a time-out, and easy to end from another thread.

Used by `destination` and `intake`. The socket is non-blocking and polled by hand: a receive first tries, so a
busy stream costs no poll, and `ready()` can ask whether more is there, which is how the receiver knows when
to stop gathering and make durable what it has.

Ending: `stop_reading()` lets the reading thread finish what has arrived and then see the end of the stream;
`close()` from any thread wakes every other one.

After `secure()` what is sent and received goes through a TLS session; the socket stays ours. An end of the stream that
TLS did not announce is not told from one that it did: nothing here takes an end for success.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Sequence

from sustain.errors import AuthenticationFailed, PeerUnreachable, ProtocolError
from sustain.replication import wire
from sustain.replication.tls import TlsSession
from sustain.replication.urls import join
from sustain.replication.wire import FrameReader, Header, Kind

_SHAKE_BYTES = 16 << 10  # received at once from a peer that has proved nothing
_PIECE_BYTES = 64 << 10  # of a payload, received at once
_NOTHING = memoryview(b"")
_HINT_GONE = "the other side ended, or the link was cut; it is tried again"


class ConnectionEnded(PeerUnreachable):
    """The other side closed the connection between two frames."""


class Channel:
    """One connection. Any number of threads may send; one may receive."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
        self._sock = sock
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._send_lock = threading.Lock()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)
        self._closed = False
        self._header = bytearray(wire.HEADER_BYTES)
        self._piece = _NOTHING
        self._tls: TlsSession | None = None
        self.peer = _name(sock)
        self.heard = time.monotonic()  # when the last byte came
        self.said = time.monotonic()  # when the last frame went

    @property
    def peer_address(self) -> str:
        """The numeric address at the other end."""
        try:
            return str(self._sock.getpeername()[0])
        except OSError:
            return ""

    def set_deadline(self, seconds: float | None) -> None:
        """Everything until then, together, must take at most `seconds` (a handshake); None: no such limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def secure(self, session: TlsSession) -> None:
        """Shake hands by TLS; from then on everything goes through `session`. Before the first frame, by one thread.

        Raises AuthenticationFailed, ProtocolError (the other side has been told, if it listens), PeerUnreachable.
        """
        piece = memoryview(bytearray(_SHAKE_BYTES))
        try:
            while not session.shake():
                self._write([memoryview(session.outgoing())])
                got = self._receive(piece)
                if got == 0:
                    raise PeerUnreachable(f"{self.peer} hung up during the handshake", hint=_HINT_GONE)
                session.feed(piece[:got])
        except (AuthenticationFailed, ProtocolError):
            with contextlib.suppress(PeerUnreachable):
                self._write([memoryview(session.outgoing())])
            raise
        self._write([memoryview(session.outgoing())])
        self._tls = session

    # sending

    def send(self, kind: Kind, a: int = 0, b: int = 0, c: int = 0, payload: bytes | memoryview = b"") -> None:
        """Send one frame. Raises PeerUnreachable."""
        header = wire.pack_header(kind, len(payload), a, b, c)
        self.send_raw((header, payload) if payload else (header,))

    def send_raw(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send whole frames that are packed already."""
        with self._send_lock:
            pending = [memoryview(part) for part in parts]
            if self._tls is None:
                self._write(pending)
            else:
                self._write_sealed(self._tls, pending)
            self.said = time.monotonic()

    def _write(self, pending: list[memoryview]) -> None:
        while pending:
            try:
                sent = self._sock.sendmsg(pending)
            except BlockingIOError:
                self._wait(self._writable)
                continue
            except OSError as error:
                raise self._lost(error) from None
            while pending and sent >= len(pending[0]):
                sent -= len(pending.pop(0))
            if sent:
                pending[0] = pending[0][sent:]

    def _write_sealed(self, tls: TlsSession, pending: list[memoryview]) -> None:
        *short, rest = pending
        for part in short:  # headers: they go with what follows
            while part := part[tls.seal(part) :]:
                self._send_sealed(tls, _NOTHING)
        self._send_sealed(tls, rest)

    def _send_sealed(self, tls: TlsSession, rest: memoryview) -> None:
        while True:
            try:
                taken, gone = tls.send_from(self._sock.fileno(), rest)
            except OSError as error:
                raise self._lost(error) from None
            rest = rest[taken:]
            if gone and not rest:
                return
            if not gone:
                self._wait(self._writable)

    # receiving

    def ready(self, within_s: float = 0.0) -> bool:
        """Whether bytes (or the end) can be read without waiting, or within that time."""
        if self._tls is not None and self._tls.pending():
            return True
        return bool(self._readable.poll(within_s * 1000))

    def peek(self, count: int) -> bytes:
        """What comes first, up to `count` bytes, which stay to be read. Before `secure`. Raises PeerUnreachable."""
        while True:
            try:
                return self._sock.recv(count, socket.MSG_PEEK)
            except BlockingIOError:
                self._wait(self._readable)
            except OSError as error:
                raise self._lost(error) from None

    def receive_header(self, allowed: frozenset[Kind]) -> Header:
        """The next frame's header. Raises ConnectionEnded between frames, PeerUnreachable, ProtocolError."""
        view = memoryview(self._header)
        got = self.receive_some(view)
        if got == 0:
            raise ConnectionEnded(f"{self.peer} closed the connection", hint=_HINT_GONE)
        if got < len(view):
            self.receive_into(view[got:])
        return wire.unpack_header(view, allowed)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`. Raises PeerUnreachable when the connection ends before."""
        while view:
            got = self.receive_some(view)
            if got == 0:
                raise PeerUnreachable(f"{self.peer} closed the connection inside a frame", hint=_HINT_GONE)
            view = view[got:]

    def receive_payload(self, header: Header) -> bytes:
        """The payload behind `header`, whose length was checked against its type's limit."""
        data = bytearray(header.length)
        self.receive_into(memoryview(data))
        return bytes(data)

    def receive_frame(self, allowed: frozenset[Kind]) -> tuple[Header, bytes]:
        """The next whole frame, as `FrameReader` reads it."""
        reader = FrameReader(allowed)
        size = min(_PIECE_BYTES, max(wire.PAYLOAD_LIMIT[kind] for kind in allowed) or 32)
        if len(self._piece) < size:
            self._piece = memoryview(bytearray(size))
        piece = self._piece
        while True:
            got = self.receive_some(piece[: min(reader.wanted, len(piece))])
            if got == 0:
                raise ConnectionEnded(f"{self.peer} closed the connection", hint=_HINT_GONE)
            frame = reader.feed(piece[:got])
            if frame is not None:
                return frame

    def receive_some(self, view: memoryview) -> int:
        """Put what is there into `view`, at least a byte; 0 at the end of the stream. Raises
        PeerUnreachable; with TLS also AuthenticationFailed and ProtocolError."""
        tls = self._tls
        if tls is None:
            return self._receive(view)
        while True:
            try:
                got, came = tls.receive_into(self._sock.fileno(), view)
            except OSError as error:
                raise self._lost(error) from None
            if came:
                self.heard = time.monotonic()
            if got is not None:
                return got
            if not came:
                self._wait(self._readable)

    def _receive(self, view: memoryview) -> int:
        while True:
            try:
                got = self._sock.recv_into(view)
            except BlockingIOError:
                self._wait(self._readable)
                continue
            except OSError as error:
                raise self._lost(error) from None
            self.heard = time.monotonic()
            return got

    def _wait(self, poll: select.poll) -> None:
        """Wait until the socket is ready, as long as the other side is heard within the time-out."""
        began = time.monotonic()
        while not self._closed:
            limit = max(self.heard, began) + self._timeout_s
            if self._deadline is not None:
                limit = min(limit, self._deadline)
            left_s = limit - time.monotonic()
            if left_s <= 0:
                raise PeerUnreachable(
                    f"{self.peer} was not heard for {self._timeout_s:g} s",
                    hint="check the peer and the network",
                )
            if poll.poll(min(left_s, 1.0) * 1000):
                return
        raise PeerUnreachable(f"the connection to {self.peer} was closed", hint="")

    def _lost(self, error: OSError) -> PeerUnreachable:
        return PeerUnreachable(f"connection to {self.peer} lost: {error.strerror or error}", hint=_HINT_GONE)

    # ending

    def stop_reading(self) -> None:
        """Let the reading thread take what has arrived, and then see the end of the stream."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def bye(self, code: str, message: str = "") -> None:
        """Say why the connection ends, if the other side still listens; never waits, never raises."""
        text = wire.encode(wire.Bye(code, message[:1000]))
        if self._send_lock.acquire(timeout=0.05):
            try:
                with contextlib.suppress(OSError, PeerUnreachable):
                    frame = wire.pack_header(Kind.BYE, len(text)) + text
                    if self._tls is None:
                        self._sock.send(frame)
                    elif self._tls.seal(frame) == len(frame):
                        self._tls.send(self._sock.fileno())
            finally:
                self._send_lock.release()

    def close(self) -> None:
        """End the connection and wake whoever waits in it. May be called again, and from any thread."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give the descriptor back: only by the last thread that uses the channel."""
        self.close()
        self._sock.close()


def _name(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "a peer that has gone"
    return join(str(host), int(port))
