"""Where to ship to, where to listen: `tcp://host:port?required=1`, `host:port`. Pure.

Used by the command line and the supervisor. A destination is a peer, or an archive: `file:///dir`,
`s3://bucket/prefix`, with options about how it is kept.
"""

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sustain.errors import ConfigError
from sustain.units import parse_duration, parse_size

DESTINATIONS_LIMIT = 16  # slots in the control words
URL_LIMIT_BYTES = 96  # what a destination slot in the control words holds
_HINT = "write tcp://HOST:PORT, e.g. tcp://10.0.0.2:7411?required=1"
_ARCHIVE_HINT = "write file:///DIR or s3://BUCKET/PREFIX, e.g. file:///backup/app?every=10s&keep=7d"
_ARCHIVE_OPTIONS = "known: required, segment, every, snapshot, keep, verify"
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True)
class Peer:
    """A destination of the log."""

    host: str
    port: int
    required: bool = False

    @property
    def url(self) -> str:
        """As it is shown: without options."""
        return f"tcp://{join(self.host, self.port)}"


@dataclass(frozen=True)
class ArchiveUrl:
    """An archive of the log. `where`: the directory, or BUCKET/PREFIX. Sizes in bytes, times in seconds."""

    kind: str  # "file", "s3"
    where: str
    required: bool = False
    segment_bytes: int = 16 << 20  # a segment is put when it has so much
    every_s: float = 10.0  # or when its oldest commit is so old
    snapshot_s: float = 6 * 3600.0  # between two snapshots, at least
    keep_s: float = 7 * 86400.0  # how far back a restore can go, at least
    verify_s: float | None = None  # how often a restore is tried; None: when somebody asks

    @property
    def url(self) -> str:
        """As it is shown: without options."""
        return f"{self.kind}://{self.where}"


def parse_destination(text: str) -> Peer | ArchiveUrl:
    """The destination that `text` names. Raises ConfigError."""
    return parse_archive(text) if text.startswith(("file:", "s3:")) else parse_peer(text)


def parse_archive(text: str) -> ArchiveUrl:
    """The archive that `text` names. Raises ConfigError."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"archive {text!r}: {error}", hint=_ARCHIVE_HINT) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    default = ArchiveUrl("", "", every_s=1.0 if parts.scheme == "file" else 10.0)
    archive = ArchiveUrl(
        parts.scheme,
        _archive_where(text, parts),
        required=_truth(text, options.pop("required", "0")),
        segment_bytes=parse_size(options.pop("segment", str(default.segment_bytes))),
        every_s=parse_duration(options.pop("every", f"{default.every_s:g}s")),
        snapshot_s=parse_duration(options.pop("snapshot", f"{default.snapshot_s:g}s")),
        keep_s=parse_duration(options.pop("keep", f"{default.keep_s:g}s")),
        verify_s=parse_duration(options.pop("verify")) if "verify" in options else None,
    )
    if options:
        raise ConfigError(f"archive {text!r}: unknown option {min(options)!r}", hint=_ARCHIVE_OPTIONS)
    if not 4096 <= archive.segment_bytes <= 1 << 30:
        raise ConfigError(f"archive {text!r}: segment= is not within 4KiB and 1GiB", hint="16MiB serves most")
    if len(archive.url.encode()) > URL_LIMIT_BYTES:
        raise ConfigError(
            f"archive {text!r} is longer than {URL_LIMIT_BYTES} bytes", hint="name a shorter path, or a link"
        )
    return archive


def _archive_where(text: str, parts: SplitResult) -> str:
    path = unquote(parts.path)
    if parts.fragment or "\0" in path:
        raise ConfigError(f"archive {text!r} has what no archive has", hint=_ARCHIVE_HINT)
    if parts.scheme == "file" and not parts.netloc and path.startswith("/") and path.strip("/"):
        return "/" + path.strip("/")
    if parts.scheme == "s3" and parts.netloc:
        return "/".join(part for part in (parts.netloc, path.strip("/")) if part)
    raise ConfigError(f"{text!r} is not an archive", hint=_ARCHIVE_HINT)


def parse_peer(text: str) -> Peer:
    """The peer that `text` names. Raises ConfigError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"destination {text!r}: {error}", hint=_HINT) from None
    if parts.scheme in ("file", "s3"):
        raise ConfigError(f"{text!r} is an archive, and a host is needed here", hint=_HINT)
    if parts.scheme != "tcp" or not parts.hostname or not port or parts.username or parts.fragment:
        raise ConfigError(f"destination {text!r} is not tcp://HOST:PORT", hint=_HINT)
    if parts.path not in ("", "/"):
        raise ConfigError(f"destination {text!r} has a path; a peer has none", hint=_HINT)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    required = _truth(text, options.pop("required", "0"))
    if options:
        raise ConfigError(f"destination {text!r}: unknown option {min(options)!r}", hint="known: required=1")
    peer = Peer(parts.hostname, port, required)
    if len(peer.url.encode()) > URL_LIMIT_BYTES:
        raise ConfigError(
            f"destination {text!r} is longer than {URL_LIMIT_BYTES} bytes", hint="name it by address"
        )
    return peer


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`; port 0 lets the system choose. Raises ConfigError."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"address {text!r}: {error}", hint="write HOST:PORT, e.g. 127.0.0.1:7411") from None
    if not parts.hostname or port is None or parts.path or parts.query or parts.username:
        raise ConfigError(f"address {text!r} is not HOST:PORT", hint="write HOST:PORT, e.g. 127.0.0.1:7411")
    return parts.hostname, port


def join(host: str, port: int) -> str:
    """`host:port`, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether a numeric address (as `getpeername` gives it) is on the loopback interface."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def _truth(text: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ConfigError(f"destination {text!r}: required={value!r} is neither 1 nor 0", hint=_HINT)
