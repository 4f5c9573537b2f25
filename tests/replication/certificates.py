"""CAs and certificates for tests, and the ends of raw TLS connections that no Sustain peer would make."""

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sustain.replication import tls
from sustain.replication.authority import make_ca, make_host
from sustain.replication.credentials import CredentialFiles, Credentials

ALPN = "sustain/1"
HANDSHAKE_LIMIT_BYTES = 128 << 10


@dataclass(frozen=True)
class Authority:
    """A CA in a directory."""

    directory: Path

    @classmethod
    def made(cls, directory: Path, name: str = "test CA") -> "Authority":
        make_ca(directory, name)
        return cls(directory)

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def host(
        self,
        name: str,
        *addresses: str,
        days: int = 30,
        renew: bool = False,
        begins_in_days: float = 0.0,
        ca: Path | None = None,
    ) -> CredentialFiles:
        """A certificate that is good for 127.0.0.1 unless other addresses are given; with `ca` as what is trusted."""
        now = datetime.now(UTC) + timedelta(days=begins_in_days)
        make_host(self.directory, name, list(addresses or ("127.0.0.1",)), days, renew=renew, now=now)
        return CredentialFiles(
            None,
            str(self.directory / f"{name}.pem"),
            str(self.directory / f"{name}.key"),
            str(ca or self.ca),
        )


def unproved(files: CredentialFiles, monkeypatch: pytest.MonkeyPatch) -> Credentials:
    """Credentials that no peer may take any more: they were good when this process read them."""
    with monkeypatch.context() as patch:
        patch.setattr(tls, "_prove", lambda *_: 0.0)
        return files.load()


def client_context(ca: Path, files: CredentialFiles | None = None) -> ssl.SSLContext:
    """Of a client that says nothing of Sustain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    if files is not None:
        assert files.tls_cert is not None
        context.load_cert_chain(files.tls_cert, files.tls_key)
    return context


def connect(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connected, as far as the client can tell. Raises ssl.SSLError."""
    sock = socket.create_connection(address, timeout=20)
    try:
        return context.wrap_socket(sock, server_hostname=address[0])
    except BaseException:
        sock.close()
        raise


def bundle(path: Path, *parts: Path) -> Path:
    """A file that holds several PEM files."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
