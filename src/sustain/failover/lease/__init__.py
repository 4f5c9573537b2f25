"""Leases by URL: `file:///dir`, a directory that all hosts share; `etcd://host:2379,…/name`, an etcd cluster."""

from urllib.parse import unquote, urlsplit

from sustain.clock import Clock
from sustain.errors import ConfigError
from sustain.failover.lease.base import Lease
from sustain.failover.lease.record import (
    RATE_MARGIN,
    Candidate,
    CandidateView,
    LeaseGrant,
    LeaseRecord,
    LeaseState,
    LeaseView,
    Rank,
)
from sustain.failover.lease.request import HandoverRequest, RequestState

__all__ = [
    "RATE_MARGIN",
    "Candidate",
    "CandidateView",
    "HandoverRequest",
    "Lease",
    "LeaseGrant",
    "LeaseRecord",
    "LeaseState",
    "LeaseView",
    "Rank",
    "RequestState",
    "open_lease",
]

KINDS = "file:///dir, etcd://host:2379,…/name"


def open_lease(url: str, instance: str, clock: Clock, ttl_s: float) -> Lease:
    """The lease store at `url` for one run of a supervisor, `instance`. Nothing is read yet.

    Raises ConfigError for a URL that names no lease store.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"lease {url!r}: {error}", hint=f"known: {KINDS}") from None
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise ConfigError(
                f"lease {url!r} is not an absolute path", hint="write file:///shared/dir, three slashes"
            )
        from sustain.failover.lease.file import FileLease

        return FileLease(path, instance, clock, ttl_s)
    if parts.scheme == "etcd":
        from sustain.failover.lease.etcd import EtcdLease, parse_etcd_url

        return EtcdLease(parse_etcd_url(url), instance, clock, ttl_s)
    raise ConfigError(f"lease {url!r} is of an unknown kind", hint=f"known: {KINDS}")
