"""A small CA of one's own: makes it, makes certificates of it for hosts, and says what a certificate is for.

Used by `sustain keys`, and by tests. The only importer of `cryptography` (docs/decisions/0033-tls.md): connections need
the native module alone. The CA's key signs and does nothing else, so it need not lie on any host that runs a
workload. A host's certificate is good for both ends of a connection, because hosts of a workload change roles.

What is there already is not replaced: a second CA of the same name would shut out all hosts of the first. A renewal
replaces the key first and the certificate after it; a process that looks between the two keeps what it has.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sustain import wholefile
from sustain.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS, HOST_DAYS = 3650, 397
_EARLIER = timedelta(minutes=10)  # it begins so long before now: clocks differ
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_INSTALL = "pip install 'sustain[keys]', or make certificates with tools that you have: docs/operating/tls.md"


@dataclass(frozen=True)
class Shown:
    """What a certificate says."""

    path: str
    name: str
    issuer: str
    is_ca: bool
    addresses: tuple[str, ...]
    begins: datetime
    ends: datetime
    fingerprint: str  # SHA-256, in hex

    @classmethod
    def of(cls, path: Path, found: "x509.Certificate") -> "Shown":
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        addresses: tuple[str, ...] = ()
        is_ca = False
        for each in found.extensions:
            if isinstance(each.value, x509.SubjectAlternativeName):
                addresses = tuple(str(name.value) for name in each.value)
            if isinstance(each.value, x509.BasicConstraints):
                is_ca = each.value.ca
        return cls(
            str(path),
            _common_name(found.subject),
            _common_name(found.issuer),
            is_ca,
            addresses,
            found.not_valid_before_utc,
            found.not_valid_after_utc,
            found.fingerprint(hashes.SHA256()).hex(),
        )


def make_ca(directory: Path, name: str, days: int = CA_DAYS, now: datetime | None = None) -> Shown:
    """`ca.pem` and `ca.key` in `directory`, which is made if need be. Raises ConfigError, also where one is."""
    _need_library()
    from cryptography import x509

    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    for each in (cert_path, key_path):
        if each.exists():
            raise ConfigError(f"{each} is there already", hint="use that CA, or name another --dir")
    begins, ends = _times(days, now)
    key = _new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        _builder(subject, subject, key.public_key(), begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _write(directory, cert_path, key_path, made, key, key)


def make_host(
    directory: Path,
    name: str,
    addresses: list[str],
    days: int = HOST_DAYS,
    *,
    renew: bool = False,
    now: datetime | None = None,
) -> Shown:
    """`NAME.pem` and `NAME.key` in the CA's `directory`, good for `name` and `addresses` (IP addresses, host names).

    With `renew` those that are there are replaced; without `addresses` the new one is for the old one's. It ends with
    the CA at the latest. Raises ConfigError.
    """
    _need_library()
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if not _NAME.fullmatch(name) or name == "ca":
        raise ConfigError(
            f"{name!r} cannot be a host's name", hint="letters, digits, dot, dash, underscore; not `ca`"
        )
    ca, ca_key = _authority(directory)
    cert_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    for each in (cert_path, key_path):
        if each.exists() and not renew:
            raise ConfigError(f"{each} is there already", hint="--renew makes it anew")
    if renew and not addresses and cert_path.exists():
        addresses = list(show(cert_path).addresses)
    begins, ends = _times(days, now)
    if ca.not_valid_after_utc <= begins + _EARLIER:
        raise ConfigError(f"{directory / 'ca.pem'} has expired", hint="make a new CA in another --dir")
    key = _new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = list(dict.fromkeys(_general_name(each) for each in [*_own_name(name), *addresses]))
    made = (
        _builder(subject, ca.subject, key.public_key(), begins, min(ends, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _write(directory, cert_path, key_path, made, key, ca_key)


def show(path: Path) -> Shown:
    """What the (first) certificate in a PEM file says. Raises ConfigError."""
    _need_library()
    return Shown.of(path, _read_certificate(path))


def _need_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError("`sustain keys` needs the package cryptography", hint=_INSTALL) from None


def _new_key() -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _times(days: int, now: datetime | None) -> tuple[datetime, datetime]:
    if not 0 < days <= 36500:
        raise ConfigError(f"--days {days} is out of range", hint="1 to 36500; 397 serves most hosts")
    now = now or datetime.now(UTC)
    return now - _EARLIER, now + timedelta(days=days)


def _builder(
    subject: "x509.Name",
    issuer: "x509.Name",
    public: "ec.EllipticCurvePublicKey",
    begins: datetime,
    ends: datetime,
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _usage(*, signs: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _own_name(name: str) -> list[str]:
    """The host's name, where that can be one on a network."""
    return [name] if _DNS.fullmatch(name) else []


def _general_name(text: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not _DNS.fullmatch(text):
        raise ConfigError(
            f"--address {text!r} is neither an IP address nor a host name",
            hint="as peers name it in tcp://HOST:PORT, without the port; once for each",
        )
    return x509.DNSName(text)


def _authority(directory: Path) -> "tuple[x509.Certificate, ec.EllipticCurvePrivateKey]":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    found = _read_certificate(cert_path)
    try:
        key = load_pem_private_key(_read(key_path), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key_path} cannot be used: {error}", hint="it is the CA's key, in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != found.public_key():
        raise ConfigError(f"{key_path} is not the key of {cert_path}", hint="`sustain keys ca` makes both")
    return found, key


def _read_certificate(path: Path) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate: {error}", hint="a PEM file is needed") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="`sustain keys ca` makes a CA in --dir") from None


def _common_name(name: "x509.Name") -> str:
    from cryptography import x509

    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _write(
    directory: Path,
    cert_path: Path,
    key_path: Path,
    made: "x509.CertificateBuilder",
    key: "ec.EllipticCurvePrivateKey",
    signer: "ec.EllipticCurvePrivateKey",
) -> Shown:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    signed = made.sign(signer, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (key_path.with_name(f"{key_path.name}.new")).unlink(missing_ok=True)  # it might be open to others
        wholefile.replace(key_path, secret, durable=True, mode=0o600)
        wholefile.replace(cert_path, signed.public_bytes(Encoding.PEM), durable=True, mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"{directory}: {error.strerror}", hint="name a --dir that this user may write"
        ) from None
    return Shown.of(cert_path, signed)
