"""This host's certificate, and one end of a TLS connection without a socket.

Used by `credentials` (which files), `listener` and `dial` (who is at the other end) and `channel` (bytes in, bytes
out). Both ends show a certificate of the same CA, speak TLS 1.3 and nothing older, and take up no earlier session,
so that each connection looks at certificates anew. `Tls` looks at its files whenever a connection begins: what was
renewed is used from the next connection on, and files that do not fit together (one of two has been replaced so far)
leave what was read before in use. What is loaded is first proved to itself in memory, so that a certificate that no
peer would take is an error of the host that has it, when it starts.

A `TlsSession` takes and gives bytes, as the handshakes in `auth` do. The interpreter's `SSLSocket` was rejected: it
must not be read and written by two threads at once, keeps a started write's arguments, and hides what is pending from
whoever polls. Why the standard library's TLS at all: docs/decisions/0033-tls.md.
"""

import contextlib
import os
import ssl
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerUnreachable,
    ProtocolError,
    ReplicationError,
    SustainError,
    anew,
)
from sustain.replication.tls_errors import explain
from sustain.units import format_duration

ALPN = "sustain/1"  # so that a certificate for something else on this host is of no use here
HANDSHAKE_LIMIT_BYTES = 128 << 10  # certificates and all; from a peer that has proved nothing
FIRST_BYTES = (b"\x16\x03\x01", b"\x16\x03\x03")  # of a TLS client
_WARN_S = 14 * 86400.0
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

    server: ssl.SSLContext
    client: ssl.SSLContext
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
        return TlsSession(self._current().server.wrap_bio, server=True)

    def client(self, host: str) -> "TlsSession":
        """The end of whoever connects to `host`, which must be named in the other side's certificate."""
        return TlsSession(self._current().client.wrap_bio, server=False, host=host.partition("%")[0])

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
    """One end. Any number of threads may `encrypt`; one may `feed` and `read_into`. Errors do not name the peer."""

    def __init__(self, wrap: Callable[..., ssl.SSLObject], *, server: bool, host: str | None = None) -> None:
        """Raises ConfigError for a host name that no certificate can have."""
        self._lock = threading.Lock()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = server
        self._fed_bytes = 0
        self._shaken = False
        self._failed: ReplicationError | None = None  # raised once all before it was read
        try:
            self._ssl = wrap(self._in, self._out, server_side=server, server_hostname=host)
        except ValueError as error:
            raise ConfigError(f"host {host!r}: {error}", hint="name it by address") from None

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done. `outgoing` must be sent after each call, and after an error.

        Raises AuthenticationFailed, ProtocolError.
        """
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise explain(error, server=self._server) from None
        except ValueError as error:  # a certificate whose names cannot be read
            raise AuthenticationFailed(
                f"its certificate cannot be used: {error}", hint="make another"
            ) from None
        if self._ssl.selected_alpn_protocol() != ALPN:
            raise ProtocolError(
                "it speaks TLS, but not for Sustain", hint="check host and port: is that `sustain receive`?"
            )
        self._shaken = True
        return True

    def feed(self, data: bytes | memoryview) -> None:
        """Take what has come. Raises ProtocolError for what cannot be the beginning of TLS, or goes on without end."""
        if not self._shaken:
            if not self._fed_bytes and data[0] not in (_HANDSHAKE, _ALERT):
                raise _not_tls(self._server)
            self._fed_bytes += len(data)
            if self._fed_bytes > HANDSHAKE_LIMIT_BYTES:
                raise ProtocolError("a handshake without end", hint="the other side is not a Sustain peer")
        with self._lock:
            self._in.write(data)

    def outgoing(self) -> bytes:
        """What is to be sent now: of a handshake, or an alert."""
        with self._lock:
            return self._out.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """`data` as it is to be sent. Raises PeerUnreachable when the other side has ended the session."""
        with self._lock:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[self._ssl.write(rest) :]
            except ssl.SSLError as error:
                raise PeerUnreachable(
                    f"TLS has ended: {error.reason or error}", hint="it is tried again"
                ) from None
            return self._out.read()

    def read_into(self, view: memoryview) -> int | None:
        """Fill `view` as far as there is something: bytes, 0 at the end, None when more must be fed first.

        Raises AuthenticationFailed (the other side does not take our certificate: it says so now), ProtocolError.
        """
        got = 0
        with self._lock:
            while got < len(view) and self._failed is None:
                try:
                    more = cast(int, self._ssl.read(len(view) - got, view[got:]))
                except ssl.SSLWantReadError:
                    return got or None
                except ssl.SSLZeroReturnError:
                    return got
                except ssl.SSLError as error:
                    self._failed = explain(error, server=self._server)
                    break
                if not more:
                    break
                got += more
        if self._failed is not None and not got:
            raise anew(self._failed) from None
        return got

    def peer_certificate(self) -> dict[str, object]:
        """What the other side's certificate says, as `ssl` tells it."""
        return dict(self._ssl.getpeercert() or {})

    def pending(self) -> bool:
        """Whether something has come that was not read yet."""
        with self._lock:
            return bool(self._ssl.pending() or self._in.pending)


def _not_tls(server: bool) -> ProtocolError:
    if server:
        return ProtocolError(
            "it does not speak TLS, which this host asks for",
            hint="give it a certificate: --tls-cert, --tls-key, --tls-ca (`sustain keys` makes them)",
        )
    return ProtocolError(
        "it does not speak TLS, and this host does",
        hint="start `sustain receive` there with --tls-cert, --tls-key and --tls-ca; and check the port",
    )


# loading


def _load(files: TlsFiles) -> _Loaded:
    _check_files(files)
    server = _context(files, ssl.PROTOCOL_TLS_SERVER)
    client = _context(files, ssl.PROTOCOL_TLS_CLIENT)
    itself = _context(files, ssl.PROTOCOL_TLS_CLIENT)
    itself.check_hostname = False  # it is looked at by its own host, which may have any name
    return _Loaded(server, client, _prove(files, server, itself))


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is taken up again
    try:
        context.load_verify_locations(cafile=files.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"CA file {files.ca} cannot be used: {_why(error)}",
            hint="a PEM file; `sustain keys ca` makes one",
        ) from None
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_passphrase)
    except (OSError, ssl.SSLError) as error:
        fits = "KEY_VALUES_MISMATCH" in str(error)
        why = "they do not belong together" if fits else _why(error)
        raise ConfigError(
            f"certificate {files.cert} with key {files.key} cannot be used: {why}",
            hint="two PEM files that were made together; `sustain keys host` makes them",
        ) from None
    return context


def _check_files(files: TlsFiles) -> None:
    """Raises ConfigError for a file that cannot be read, and for a key that everybody may read."""
    for what, name in (("CA file", files.ca), ("certificate", files.cert), ("key", files.key)):
        try:
            with open(name, "rb") as file:
                mode, text = os.fstat(file.fileno()).st_mode, file.read(1 << 20)
        except OSError as error:
            raise ConfigError(
                f"{what} {name}: {error.strerror}", hint="`sustain keys` makes a CA and certificates"
            ) from None
        if name != files.key:
            continue
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(f"key {name} is open to everybody on this host", hint=f"chmod 600 {name}")
        if b"ENCRYPTED" in text:
            raise ConfigError(
                f"key {name} is encrypted, and nobody is there to type the passphrase",
                hint=f"openssl pkey -in {name} -out PLAIN, readable by this user alone",
            )


def _no_passphrase() -> str:
    return ""


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def _prove(files: TlsFiles, server: ssl.SSLContext, client: ssl.SSLContext) -> float:
    """See that a peer with the same CA would take this certificate, at both ends; when it ends (s since 1970).

    Raises ConfigError.
    """
    ends = [TlsSession(server.wrap_bio, server=True), TlsSession(client.wrap_bio, server=False)]
    shown: list[SustainError] = []
    done = [False, False]
    for _ in range(8):
        for at, end in enumerate(ends):
            try:
                done[at] = done[at] or end.shake()
            except SustainError as error:
                shown.append(error)
            data = end.outgoing()
            if data:
                with contextlib.suppress(SustainError):
                    ends[1 - at].feed(data)
        if shown or all(done):
            break
    if shown:
        raise ConfigError(
            f"certificate {files.cert} is of no use with CA file {files.ca}: {shown[0]}", hint=shown[0].hint
        )
    found = ends[1].peer_certificate()
    return ssl.cert_time_to_seconds(str(found["notAfter"]))


def _signature(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stat(path) for path in (files.cert, files.key, files.ca))


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
