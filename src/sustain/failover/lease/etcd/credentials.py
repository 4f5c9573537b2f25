"""What shows an etcd who asks, and shows us that it is the right etcd: certificates, user and password.

Used by `endpoint` and `client`. The files are read again for every connection and every log-in: what was replaced
holds from the next one on, without a restart.
"""

import os
import ssl
import stat

from sustain.errors import LeaseError
from sustain.failover.lease.etcd.url import EtcdUrl


def tls_context(url: EtcdUrl) -> ssl.SSLContext | None:
    """None: without TLS. Raises LeaseError for files that cannot be used."""
    if not url.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=url.ca)
    except (OSError, ssl.SSLError) as error:
        raise LeaseError(
            f"{url.ca}: {_words(error)}", hint="ca= names the certificate, in PEM, of who signed etcd's"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if url.cert is not None:
        try:
            # A key that wants a pass phrase is an error, not a question on a terminal that nobody looks at.
            context.load_cert_chain(url.cert, url.key, password=lambda: b"")
        except (OSError, ssl.SSLError, ValueError) as error:
            raise LeaseError(
                f"{url.cert}: {_words(error)}",
                hint="cert= and key= name this host's certificate and its key, in PEM, without a pass phrase",
            ) from error
    return context


def password(url: EtcdUrl) -> str:
    """Raises LeaseError."""
    path = url.password_file
    assert path is not None
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LeaseError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            hint=f"password-file= names a file with the password of etcd's user {url.user}",
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise LeaseError(f"{path} is open to everybody", hint=f"chmod 600 {path}")
    return text


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM file ({error.reason or error})"
    return getattr(error, "strerror", None) or str(error)
