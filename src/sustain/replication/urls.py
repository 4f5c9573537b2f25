"""Where to ship to, where to listen: `tcp://host:port?required=1`, `host:port`. Pure.

Used by the command line and the supervisor. `file://` and `s3://` destinations (archives) are known by name,
so that asking for one says "not yet" and not "what is that?".
"""

import ipaddress
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from sustain.errors import ConfigError

URL_LIMIT_BYTES = 96  # what a destination slot in the control words holds
_HINT = "write tcp://HOST:PORT, e.g. tcp://10.0.0.2:7411?required=1"
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


def parse_peer(text: str) -> Peer:
    """The destination that `text` names. Raises ConfigError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"destination {text!r}: {error}", hint=_HINT) from None
    if parts.scheme in ("file", "s3"):
        raise ConfigError(f"destination {text!r}: archives cannot be shipped to in this version", hint=_HINT)
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
