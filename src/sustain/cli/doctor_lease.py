"""What `sustain doctor --lease URL` finds: whether this host can use the lease, and how long a look at it takes."""

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sustain.cli.doctor import Finding, check_directory
from sustain.errors import SustainError
from sustain.units import format_duration

if TYPE_CHECKING:
    from sustain.failover.lease.etcd.endpoint import Answer

_NAME = "lease"
_TTL_S = 5.0  # of the access only: how long is waited for answers


def lease_findings(url: str) -> list[Finding]:
    """Nothing is changed in the lease."""
    if url.startswith("file://"):
        return [check_directory(_NAME, Path(url.removeprefix("file://")))]
    if url.startswith("etcd://"):
        return _etcd(url)
    from sustain.failover.lease import KINDS

    return [Finding(_NAME, "missing", url, f"not a kind of lease: known are {KINDS}")]


def _etcd(url: str) -> list[Finding]:
    from sustain.clock import SystemClock
    from sustain.failover.lease.etcd import Client, EtcdLease, parse_etcd_url
    from sustain.failover.lease.etcd.client import Limits

    try:
        parsed = parse_etcd_url(url)
    except SustainError as error:
        return [Finding(_NAME, "missing", str(error), "the URL names no lease", error.hint)]
    client, lease = Client(parsed, Limits.of(_TTL_S)), EtcdLease(parsed, "doctor", SystemClock(), _TTL_S)
    try:
        members = [_member(address, answer) for address, answer in client.survey()]
        lease.look()
        times_s = []
        for _ in range(5):
            began_s = time.perf_counter()
            lease.look()
            times_s.append(time.perf_counter() - began_s)
    except SustainError as error:
        return [Finding(_NAME, "missing", str(error), "this host cannot use the lease", error.hint)]
    finally:
        client.close()
        lease.close()
    typical = format_duration(statistics.median(times_s))
    whole = Finding(
        _NAME, "ok", f"etcd answers in {typical} (median of 5)", "a renewal takes that and a flush of etcd's"
    )
    if len(members) < 3:
        means = "works; a lease that outlives the loss of an etcd member needs three of them"
        whole = Finding(_NAME, "reduced", whole.found, means, "name all members of the cluster in the URL")
    return [whole, *members]


def _member(address: str, answer: "Answer") -> Finding:
    name = f"etcd {address}"
    if answer.body is None or answer.status != 200:
        said = answer.failure or str((answer.body or {}).get("message", "")) or f"HTTP status {answer.status}"
        return Finding(name, "reduced", said, "the others are asked instead", answer.hint)
    leader = answer.body.get("leader", "0")
    if leader == "0":
        return Finding(name, "reduced", "it has no leader", "it sees no majority of its cluster")
    header = answer.body["header"]
    leads = ", leads" if header.get("member_id") == leader else ""
    return Finding(
        name, "ok", f"version {answer.body.get('version', 'unknown')}{leads}", "a member of the cluster"
    )
