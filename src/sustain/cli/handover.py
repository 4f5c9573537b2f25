"""Move a workload on purpose, from the host that runs it to one that stands by. Nothing is lost, and no commit refused.

Its primary is asked beside the lease, from any host. It goes on until the standby has caught up, ends its command in
good order, brings the rest away, and gives the lease to that standby, which starts the command. If that cannot be done
the workload stays where it is.
"""

import argparse
import os
from typing import TYPE_CHECKING, Any

from sustain.cli.output import add_json, duration_argument, emit, fields, or_unknown, progress
from sustain.errors import ConfigError, HandoverFailed
from sustain.units import format_duration

if TYPE_CHECKING:
    from sustain.failover.asking import Moved

HELP = "move a workload to a standby, on purpose"

_TTL_S = 3.0  # of the access only; the workload's own is in its record
_ANSWERS_S = 5.0  # or nothing is asked: a directory on a server that is gone would hold us for ever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workload",
        help="its lease (etcd://…, file:///dir), from any host; or the store or region that `sustain run` has here",
    )
    parser.add_argument("--to", default="", metavar="HOST", help="by its --name (whoever holds most)")
    parser.add_argument(
        "--limit",
        type=duration_argument,
        default=30.0,
        metavar="TIME",
        help="for the standby to catch up; then the workload stays where it is (30s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import uuid

    from sustain.cli.workload_status import within
    from sustain.clock import SystemClock
    from sustain.failover.asking import Watcher, ask
    from sustain.failover.lease import open_lease

    if args.limit <= 0:
        raise ConfigError("--limit is nothing", hint="leave it out: 30s")
    url = _lease_of(args.workload)
    lease = open_lease(url, f"handover-{uuid.uuid4().hex[:12]}", SystemClock(), _TTL_S)
    try:
        within(_ANSWERS_S, url, lease.read)
        moved = Watcher(lease, ask(lease, args.to, args.limit), progress).run()
    finally:
        progress("")
        lease.close()
    data = collect(url, moved)
    emit(args, data, lambda: describe(data))
    return 0


def _lease_of(workload: str) -> str:
    from sustain.cli.workload_status import is_lease
    from sustain.failover import runfile

    if is_lease(workload):
        return workload
    entry = runfile.read(os.path.abspath(workload))
    url = None if entry is None else entry.get("lease")
    if not isinstance(url, str):
        raise HandoverFailed(
            f"{workload}: no such workload: no `sustain run` has it on this host",
            hint="name its lease: sustain handover etcd://HOST:2379/NAME, or file:///DIR",
        )
    return url


def collect(url: str, moved: "Moved") -> dict[str, Any]:
    """The JSON shape of `sustain handover`."""
    request = moved.request
    gave, took = request.gave, request.took
    started = (None, None) if took is None else (took.start_s, took.first_commit_s)
    return {
        "lease": url,
        "id": request.id,
        "from": request.holder,
        "to": request.successor,
        "old_epoch": request.epoch,
        "epoch": moved.epoch,
        "position": moved.position,
        "pause_s": request.pause_s,
        "parts": {
            "before_stop_s": None if gave is None else gave.before_stop_s,
            "command_end_s": None if gave is None else gave.command_end_s,
            "drain_s": None if gave is None else gave.drain_s,
            "lease_s": _sum(None if gave is None else gave.release_s, None if took is None else took.claim_s),
            "takeover_s": None if took is None else took.promote_s,
            "command_start_s": _sum(*started),
        },
    }


def _sum(*parts: float | None) -> float | None:
    known = [each for each in parts if each is not None]
    return sum(known) if len(known) == len(parts) else None


_PARTS = (
    ("before_stop_s", "the command's last commit, before it was told to stop"),
    ("command_end_s", "the command's end"),
    ("drain_s", "the rest to {to}"),
    ("lease_s", "the lease"),
    ("takeover_s", "the new epoch"),
    ("command_start_s", "the command's start, to its first commit"),
)


def describe(data: dict[str, Any]) -> str:
    """The same for a person."""
    pause = or_unknown(data["pause_s"], format_duration)
    lines = [
        ("moved", f"to {data['to']}, epoch {data['epoch']}, from {data['from']}, epoch {data['old_epoch']}"),
        ("position", or_unknown(data["position"])),
        ("pause", f"{pause}, from the last commit on {data['from']} to the first on {data['to']}"),
    ]
    lines += [
        ("", f"{or_unknown(data['parts'][key], format_duration):>8}  {text.format(to=data['to'])}")
        for key, text in _PARTS
        if data["parts"][key] != 0.0
    ]
    return fields(lines)
