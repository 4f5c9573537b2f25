"""Leases by URL. `file:///dir` is built in; the interface (`base.Lease`) is made for others."""

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

__all__ = [
    "RATE_MARGIN",
    "Candidate",
    "CandidateView",
    "Lease",
    "LeaseGrant",
    "LeaseRecord",
    "LeaseState",
    "LeaseView",
    "Rank",
    "open_lease",
]


def open_lease(url: str, instance: str, clock: Clock, ttl_s: float) -> Lease:
    """The lease store at `url` for one run of a supervisor, `instance`. Nothing is read yet.

    Raises ConfigError for a URL that names no lease store.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise ConfigError(
                f"lease {url!r} is not an absolute path", hint="write file:///shared/dir, three slashes"
            )
        from sustain.failover.lease.file import FileLease

        return FileLease(path, instance, clock, ttl_s)
    raise ConfigError(f"lease {url!r} is of an unknown kind", hint="known: file:///dir")
