"""This host's certificate, and one end of a TLS connection without a socket.

Used by `credentials` (which files), `listener` and `dial` (who is at the other end) and `channel` (bytes in, bytes
out). Both ends show a certificate of the same CA, speak TLS 1.3 and nothing older, and take up no earlier session,
so that each connection looks at certificates anew. `Tls` looks at its files whenever a connection begins: what was
renewed is used from the next connection on, and files that do not fit together (one of two has been replaced so far)
leave what was read before in use. What is loaded is first looked at as a peer would, so that a certificate that no
peer would take is an error of the host that has it, when it starts.

The protocol itself is the native module's (`crates/tls`), without the interpreter's lock and many records a call. A
`TlsSession` takes and gives bytes, or is lent the descriptor of a socket that never waits; the interpreter's `ssl` was
rejected: docs/decisions/0033-tls.md.
"""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sustain._native import TlsEnd, TlsIdentity
from sustain.errors import ConfigError, PeerUnreachable
from sustain.replication.tls_errors import TlsFault, explain
from sustain.units import format_duration

FIRST_BYTES = (b"\x16\x03\x01", b"\x16\x03\x03")  # of a TLS client
_WARN_S = 14 * 86400.0
_FILE_LIMIT_BYTES = 1 << 20
_HANDSHAKE, _ALERT = 0x16, 0x15  # what a TLS record may begin with before anything is agreed


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the host's certificate (with what leads to the CA), its key, and the CAs that are trusted."""

    cert: str
    key: str
    ca: str


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files held."""

    identity: TlsIdentity
    ends_s: float  # seconds since 1970


class Tls:
    """Gives the ends of connections. May be used by any number of threads."""

    def __init__(self, files: TlsFiles, report: Callable[[str], None] = _silent) -> None:
        """Raises ConfigError for files that cannot be used. `report` takes a line for the operator."""
        self._files = files
        self._report = report
        self._lock = threading.Lock()
        self._seen = _signature(files)
        self._loaded = _load(files)
        self._warn()

    @property
    def ends_s(self) -> float:
        """When this host's certificate ends; seconds since 1970."""
        return self._loaded.ends_s

    def server(self) -> "TlsSession":
        """The end of whoever was connected to."""
        return TlsSession(self._current().identity.server(), server=True)

    def client(self, host: str) -> "TlsSession":
        """The end of whoever connects to `host`, which must be named in the other side's certificate.

        Raises ConfigError for a host that no certificate can name.
        """
        try:
            return TlsSession(self._current().identity.client(host.partition("%")[0]), server=False)
        except TlsFault as fault:
            raise ConfigError(f"host {host!r}: {fault.words}", hint="name it by address") from None

    def _current(self) -> _Loaded:
        """What the files hold now, or held when they could last be used."""
        with self._lock:
            seen = _signature(self._files)
            if seen != self._seen:
                self._seen = seen
                try:
                    self._loaded = _load(self._files)
                except ConfigError as error:
                    self._report(f"{error}; what was read before stays in use ({error.hint})")
                else:
                    left = format_duration(self._loaded.ends_s - time.time())
                    self._report(f"certificate {self._files.cert} was read again: it is good for {left}")
            return self._loaded

    def _warn(self) -> None:
        left_s = self._loaded.ends_s - time.time()
        if left_s < _WARN_S:
            self._report(f"certificate {self._files.cert} ends in {format_duration(left_s)}: renew it")


class TlsSession:
    """One end. Any number of threads may seal and send, in turns; one may read. Errors do not name the peer."""

    def __init__(self, end: TlsEnd, *, server: bool) -> None:
        self._end = end
        self._server = server
        self._begun = False

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done. `outgoing` must be sent after each call, and after an error.

        Raises AuthenticationFailed, ProtocolError.
        """
        try:
            return self._end.shake()
        except TlsFault as fault:
            raise explain(fault, server=self._server) from None

    def feed(self, data: bytes | memoryview) -> None:
        """Take what has come. Raises ProtocolError for what cannot be the beginning of TLS, or goes on without end."""
        if not self._begun and data[0] not in (_HANDSHAKE, _ALERT):
            raise explain(TlsFault("plain", ""), server=self._server)
        self._begun = True
        try:
            self._end.feed(data)
        except TlsFault as fault:
            raise explain(fault, server=self._server) from None

    def outgoing(self) -> bytes:
        """What is to be sent now, and is not kept: of a handshake, an alert, or what was sealed."""
        return self._end.outgoing()

    def seal(self, data: bytes | memoryview) -> int:
        """Have `data` wait to be sent, as much as is worth a call: bytes of it, some if nothing waits already.

        Raises PeerUnreachable when the session has failed."""
        try:
            return self._end.seal(data)
        except TlsFault as fault:
            raise _over(fault) from None

    def send(self, socket: int) -> bool:
        """Send what waits to a non-blocking socket; whether all of it went. Raises OSError, as a socket does."""
        return self._end.send(socket)

    def send_from(self, socket: int, data: memoryview) -> tuple[int, bool]:
        """Seal `data` and send it, piece after piece, until the socket takes no more: (bytes of it, all has gone).

        Raises OSError, as a socket does, and PeerUnreachable when the session has failed."""
        try:
            return self._end.send_from(socket, data)
        except TlsFault as fault:
            raise _over(fault) from None

    def receive_into(self, socket: int, view: memoryview) -> tuple[int | None, int]:
        """Fill `view` as far as a non-blocking socket has something: (bytes, 0 at the end, None when more must come
        first; bytes that the socket had).

        Raises AuthenticationFailed (the other side does not take our certificate: it says so now), ProtocolError, and
        OSError, as a socket does.
        """
        try:
            return self._end.receive_into(socket, view)
        except TlsFault as fault:
            raise explain(fault, server=self._server) from None

    def pending(self) -> bool:
        """Whether something has come whole that was not read yet."""
        return self._end.pending()


def _over(fault: TlsFault) -> PeerUnreachable:
    return PeerUnreachable(f"TLS has ended: {fault.words or fault.code}", hint="it is tried again")


# loading


def _load(files: TlsFiles) -> _Loaded:
    certificate, key, ca = _contents(files)
    try:
        identity = TlsIdentity(certificate, key, ca)
        return _Loaded(identity, _prove(identity, files))
    except TlsFault as fault:
        if fault.code == "ca":
            raise ConfigError(
                f"CA file {files.ca} cannot be used: {fault.words}",
                hint="a PEM file; `sustain keys ca` makes one",
            ) from None
        raise ConfigError(
            f"certificate {files.cert} with key {files.key} cannot be used: {fault.words}",
            hint="two PEM files that were made together; `sustain keys host` makes them",
        ) from None


def _prove(identity: TlsIdentity, files: TlsFiles) -> float:
    """See that a peer with the same CA would take this certificate, at both ends; when it ends (s since 1970).

    Raises ConfigError.
    """
    try:
        return float(identity.prove())
    except TlsFault as fault:
        shown = explain(fault, server=True)
        raise ConfigError(
            f"certificate {files.cert} is of no use with CA file {files.ca}: {shown}", hint=shown.hint
        ) from None


def _contents(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """Of certificate, key and CA file. Raises ConfigError for one that cannot be read, and for a key that others may
    read or change."""
    certificate, _ = _read("certificate", files.cert)
    key, mode = _read("key", files.key)
    ca, _ = _read("CA file", files.ca)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"key {files.key} is open to everybody on this host", hint=f"chmod 600 {files.key}")
    if b"ENCRYPTED" in key:
        raise ConfigError(
            f"key {files.key} is encrypted, and nobody is there to type the passphrase",
            hint=f"openssl pkey -in {files.key} -out PLAIN, readable by this user alone",
        )
    return certificate, key, ca


def _read(what: str, name: str) -> tuple[bytes, int]:
    """Content and mode. Raises ConfigError."""
    try:
        with open(name, "rb") as file:
            return file.read(_FILE_LIMIT_BYTES), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(
            f"{what} {name}: {error.strerror}", hint="`sustain keys` makes a CA and certificates"
        ) from None


def _signature(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stat(path) for path in (files.cert, files.key, files.ca))


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
