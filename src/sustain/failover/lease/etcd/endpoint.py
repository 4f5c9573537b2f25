"""One member of an etcd cluster, asked over its JSON gateway by a thread of its own.

Used by `client`. Whoever asks waits as long as it likes and no longer: looking up a name, connecting, a handshake or
an answer that comes byte by byte hold up only this thread. What nobody waits for any more is abandoned by shutting
the connection down. An answer is whatever came, or why nothing came, in words; nothing is raised.

One connection, kept. Where a kept one turns out to be closed, the question is asked once more on a new one: all
questions may be asked twice (`lease`).
"""

import contextlib
import errno
import http.client
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sustain.errors import LeaseError
from sustain.failover.lease.etcd.url import Address

_ANSWER_LIMIT_BYTES = 4 << 20
_TLS_HINT = (
    "ca= must name the authority that signed the certificate of this etcd, and that must name its host"
)
_CLOSES = "closes the connection"
_NO_ETCD = "is it the port for etcd's clients (2379), and is its JSON gateway on (--enable-grpc-gateway)?"


@dataclass(frozen=True, slots=True)
class Question:
    """`until_s`: of time.monotonic(); nobody waits for an answer then."""

    path: str
    body: bytes
    token: str
    until_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` when it is JSON of an etcd; otherwise `failure` says in words why there is none. `may_pass`: it is that of
    a member that has not started yet, or cannot be reached now."""

    status: int = 0
    body: dict[str, Any] | None = None
    failure: str = ""
    hint: str = ""
    took_s: float = 0.0
    may_pass: bool = False


class Endpoint:
    """Asks one at a time; `ask`, `abandon` and `close` return at once."""

    def __init__(
        self, address: Address, tls: Callable[[], ssl.SSLContext | None], closing_hint: str = ""
    ) -> None:
        """`closing_hint`: what it may mean that this one closes new connections."""
        self.address = address
        self._closing_hint = closing_hint
        self._tls = tls
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[Question, Callable[[Answer], None]] | None] = queue.SimpleQueue()
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None  # also while it is being connected
        self._thread: threading.Thread | None = None
        self._given_up = False  # nobody waits for what is under way

    def ask(self, question: Question, tell: Callable[[Answer], None]) -> None:
        """`tell` is called in this endpoint's thread, once, however late."""
        self._tasks.put((question, tell))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"etcd-{self.address}", daemon=True)
            self._thread.start()

    def abandon(self) -> None:
        """End what is under way; the next question gets a new connection."""
        with self._lock:
            self._given_up = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which changes what the reading thread uses.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.abandon()
        self._tasks.put(None)

    # in the thread

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            question, tell = task
            with self._lock:
                self._given_up = False
            tell(self._answer(question))
        self._drop()

    def _answer(self, question: Question) -> Answer:
        began_s = time.monotonic()
        if began_s >= question.until_s:
            return Answer(failure="was still busy with an earlier question", may_pass=True)
        try:
            status, text = self._exchange(question)
        except Exception as error:  # noqa: BLE001 whatever it is, whoever asked must hear of it
            self._drop()
            failure, hint = _why(error)
            if failure == _CLOSES:
                hint = self._closing_hint
            took_s = time.monotonic() - began_s
            # A proxy that has no etcd behind it yet closes connections, too.
            may_pass = failure == _CLOSES or _may_pass(error)
            return Answer(failure=failure, hint=hint, took_s=took_s, may_pass=may_pass)
        return _understood(status, text, time.monotonic() - began_s)

    def _exchange(self, question: Question) -> tuple[int, bytes]:
        kept = self._connection is not None
        try:
            return self._once(question)
        except (http.client.RemoteDisconnected, ConnectionError):
            if not kept or self._given_up or time.monotonic() >= question.until_s:
                raise
            self._drop()
            return self._once(question)

    def _once(self, question: Question) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect(question.until_s)
        connection = self._connection
        connection.sock.settimeout(_left_s(question.until_s))
        headers = {"Content-Type": "application/json"}
        if question.token:
            headers["Authorization"] = question.token
        connection.request("POST", question.path, question.body, headers)
        response = connection.getresponse()
        text = response.read(_ANSWER_LIMIT_BYTES + 1)
        if len(text) > _ANSWER_LIMIT_BYTES:
            raise http.client.HTTPException("the answer has no end")
        if response.will_close:
            self._drop()
        return response.status, text

    def _connect(self, until_s: float) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        context = self._tls()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError | None = None
        for at, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            with self._lock:
                self._socket = sock
            try:
                sock.settimeout(_left_s(until_s) / (len(found) - at))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(_left_s(until_s))
                if context is not None:
                    sock = context.wrap_socket(sock, server_hostname=host)
                    with self._lock:
                        self._socket = sock
            except OSError as failure:
                error = failure
                sock.close()
                if self._given_up:
                    break
                continue
            connection = http.client.HTTPConnection(host, port)
            connection.auto_open = 0
            connection.sock = sock
            return connection
        raise error or OSError("its name has no address")

    def _drop(self) -> None:
        with self._lock:
            sock, self._socket = self._socket, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if sock is not None:
            sock.close()


def _left_s(until_s: float) -> float:
    return max(until_s - time.monotonic(), 0.001)


def _understood(status: int, text: bytes, took_s: float) -> Answer:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict) and (status != http.HTTPStatus.OK or isinstance(body.get("header"), dict)):
        return Answer(status, body, took_s=took_s)
    return Answer(status, failure=f"is no etcd (HTTP status {status})", hint=_NO_ETCD, took_s=took_s)


def _why(error: Exception) -> tuple[str, str]:
    """In words, and what to do."""
    if isinstance(error, LeaseError):  # a file of ours
        return str(error), error.hint
    if isinstance(error, socket.gaierror):
        return (
            f"its name is not known ({error.strerror})",
            "is the name right, and does this host's resolver answer?",
        )
    if isinstance(error, TimeoutError):
        return "does not answer", ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}", _TLS_HINT
    if isinstance(error, ssl.SSLEOFError) and getattr(error, "reason", None) is None:  # after the handshake
        return _CLOSES, ""
    if isinstance(error, ssl.SSLError):
        return _tls_failure(error)
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return _CLOSES, ""
    if isinstance(error, http.client.HTTPException):
        return "is no etcd (what it answers is no HTTP)", _NO_ETCD
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower(), ""
    from sustain.errors import unexpected

    return unexpected(error), ""


def _may_pass(error: Exception) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    away = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
    return isinstance(error, TimeoutError | ConnectionRefusedError) or (
        isinstance(error, OSError) and error.errno in away
    )


def _tls_failure(error: ssl.SSLError) -> tuple[str, str]:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "certificate required" in reason or "bad certificate" in reason or "unknown ca" in reason:
        return (
            f"does not accept this host's certificate ({reason})",
            "cert= and key= must name one that is signed by an authority that this etcd trusts",
        )
    if "wrong version" in reason or "record layer" in reason or "unexpected eof" in reason:
        return f"does not speak TLS ({reason})", "is it started with --cert-file and an https:// client URL?"
    return f"TLS fails ({reason})", _TLS_HINT
