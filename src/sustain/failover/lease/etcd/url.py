"""What `etcd://host:2379[,host…][/name][?option=value…]` names. Pure.

Options: `tls=1` (certificates of authorities that this host trusts), `ca=FILE` (of one's own authority), `cert=FILE`
and `key=FILE` (this host's, where etcd asks for one), `user=NAME` and `password-file=FILE`. All of it is in the URL,
so that whoever looks at a workload (`sustain status`) needs to be told one thing; secrets are in files, never in it.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from sustain.errors import ConfigError
from sustain.replication.urls import is_loopback, join

PORT = 2379
DEFAULT_NAME = "default"
_HINT = "write etcd://HOST:2379,HOST:2379/NAME, e.g. etcd://10.0.0.5:2379,10.0.0.6:2379,10.0.0.7:2379/app"
_OPTIONS = ("ca", "cert", "key", "user", "password-file", "tls")
_ENDPOINTS_LIMIT = 9


@dataclass(frozen=True, slots=True)
class Address:
    """One member of the etcd cluster."""

    host: str
    port: int

    def __str__(self) -> str:
        return join(self.host, self.port)


@dataclass(frozen=True, slots=True)
class EtcdUrl:
    """`name`: of the workload; its keys in etcd begin with `sustain/NAME/`."""

    url: str
    endpoints: tuple[Address, ...]
    name: str
    tls: bool
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None


def parse_etcd_url(text: str) -> EtcdUrl:
    """Raises ConfigError."""
    matched = re.fullmatch(r"etcd://([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?", text)
    if matched is None:
        raise ConfigError(f"lease {text!r} is not of an etcd", hint=_HINT)
    hosts, path, query = (part or "" for part in matched.groups())
    endpoints = tuple(_address(text, each) for each in hosts.split(","))
    if len(set(endpoints)) != len(endpoints) or len(endpoints) > _ENDPOINTS_LIMIT:
        raise ConfigError(
            f"lease {text!r} names a host twice, or more than {_ENDPOINTS_LIMIT}",
            hint="name each member of the cluster once",
        )
    name = path.strip("/") or DEFAULT_NAME
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"lease {text!r}: {name!r} cannot be a workload's name",
            hint="letters, digits, dot, dash; at most 64 of them",
        )
    options = _options(text, query)
    tls = _truth(text, options.get("tls", "1" if "ca" in options or "cert" in options else "0"))
    found = EtcdUrl(
        url=text,
        endpoints=endpoints,
        name=name,
        tls=tls,
        ca=options.get("ca"),
        cert=options.get("cert"),
        key=options.get("key"),
        user=options.get("user"),
        password_file=options.get("password-file"),
    )
    _check(found)
    return found


def _address(text: str, host: str) -> Address:
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"lease {text!r}: {error}", hint=_HINT) from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"lease etcd://…@{host.rpartition('@')[2]} has a user in its address, for every process list to show",
            hint="write etcd://HOST:2379/NAME?user=USER&password-file=FILE",
        )
    if not parts.hostname or port == 0 or re.search(r"\s", host):
        raise ConfigError(f"lease {text!r}: {host!r} is not HOST[:PORT]", hint=_HINT)
    return Address(parts.hostname, PORT if port is None else port)


def _options(text: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, value in pairs:
        if name not in _OPTIONS:
            raise ConfigError(
                f"lease {text!r}: unknown option {name!r}", hint=f"known: {', '.join(_OPTIONS)}"
            )
        if not value:
            raise ConfigError(f"lease {text!r}: {name} is empty", hint=f"write {name}=VALUE, or leave it out")
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ConfigError(f"lease {text!r} has an option twice", hint="give each once")
    return options


def _check(url: EtcdUrl) -> None:
    if (url.user is None) is not (url.password_file is None):
        raise ConfigError(
            f"lease {url.url!r}: user and password-file belong together", hint="give both, or neither"
        )
    if url.key is not None and url.cert is None:
        raise ConfigError(f"lease {url.url!r}: a key without its certificate", hint="add cert=FILE")
    if not url.tls and (url.ca or url.cert):
        raise ConfigError(f"lease {url.url!r}: certificates, but tls=0", hint="leave tls=0 out")
    open_to_all = [each for each in url.endpoints if not url.tls and not _local(each.host)]
    if url.user is not None and open_to_all:
        raise ConfigError(
            f"lease {url.url!r}: the password would go to {open_to_all[0]} in the clear",
            hint="use TLS: add ca=FILE with the certificate of the authority that signed etcd's (or tls=1)",
        )


def _local(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def _truth(text: str, value: str) -> bool:
    if value.lower() in ("1", "true", "yes"):
        return True
    if value.lower() in ("0", "false", "no"):
        return False
    raise ConfigError(
        f"lease {text!r}: tls={value!r} is neither 1 nor 0", hint="write tls=1, or leave it out"
    )
