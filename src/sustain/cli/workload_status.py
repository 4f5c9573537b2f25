"""A workload as its lease store knows it: who has it, and where each of its members is. From any host.

Used by `sustain status` for a lease's URL, and beside what a store or region on this host says. Only reads. The lease
store is given a few seconds and no more: a directory on a server that is gone would hold up the whole look.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sustain.cli.output import fields, or_unknown, table
from sustain.errors import LeaseError, SustainError
from sustain.units import format_duration

T = TypeVar("T")
_WITHIN_S = 4.0
_TTL_S = 3.0  # of the access only; the workload's own is in its record


def is_lease(text: str) -> bool:
    """Whether it is a lease's URL, and no path."""
    return text.startswith(("etcd://", "file://"))


def collect_workload(url: str) -> dict[str, Any]:
    """The JSON shape of `sustain status URL`. Raises LeaseError, ConfigError."""
    from sustain.clock import SystemClock
    from sustain.failover.lease import open_lease

    lease = open_lease(url, "status", SystemClock(), _TTL_S)
    try:
        view, members, request = within(_WITHIN_S, url, lease.look)
    finally:
        lease.close()
    record, now_ns = view.record, time.time_ns()
    notes = sorted((each.candidate for each in members), key=lambda each: each.name)
    return {
        "lease": url,
        "state": str(record.state),
        "holder": record.holder or None,
        "epoch": record.epoch or None,
        "ttl_s": record.ttl_s or None,
        "store_uuid": record.store_uuid or None,
        "left": {"position": record.position, "epoch": record.position_epoch, "reason": record.reason}
        if record.state.left
        else None,
        "members": [
            {
                "name": each.name,
                "role": each.role or None,
                "epoch": each.rank.log_epoch or None,
                "position": each.rank.end if each.rank.log_epoch else None,
                "can_take_over": each.usable,
                "said_s_ago": max(0.0, (now_ns - each.realtime_ns) / 1e9) if each.realtime_ns else None,
            }
            for each in notes
        ],
        "handover": None
        if request is None or request.state.over or request.epoch != record.epoch
        else {"id": request.id, "state": str(request.state), "to": request.successor or request.to or None},
        "error": None,
    }


def workload_of(run: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same of what `sustain run` on this host is part of; with `error`, and all else unknown, when it fails."""
    url = None if run is None else run.get("lease")
    if not isinstance(url, str):
        return None
    try:
        return collect_workload(url)
    except SustainError as error:
        unknown = dict.fromkeys(("state", "holder", "epoch", "ttl_s", "store_uuid", "left", "handover"))
        return {"lease": url, **unknown, "members": [], "error": f"{error}"}


def describe_workload(data: dict[str, Any]) -> str:
    """The same for a person."""
    if data["error"] is not None:
        return fields([("workload", f"unknown: {data['error']}")])
    lines = [("workload", data["lease"]), ("owner", _owner(data))]
    if data["handover"] is not None:
        lines.append(("handover", f"{data['handover']['state']}, to {data['handover']['to'] or 'a standby'}"))
    if data["store_uuid"]:
        lines.append(("state of", data["store_uuid"]))
    text = fields(lines)
    if not data["members"]:
        return f"{text}\n\nno members have said anything"
    rows = [("MEMBER", "ROLE", "EPOCH", "POSITION", "CAN TAKE OVER", "SAID")]
    rows += [
        (
            each["name"],
            _role(each, data["holder"]),
            or_unknown(each["epoch"]),
            or_unknown(each["position"]),
            "-" if each["role"] == "primary" else "yes" if each["can_take_over"] else "no",
            or_unknown(each["said_s_ago"], lambda said_s: f"{format_duration(said_s)} ago"),
        )
        for each in data["members"]
    ]
    return f"{text}\n\n{table(rows)}"


def _role(member: dict[str, Any], holder: str | None) -> str:
    """As it last said; of a primary that another host has followed since, that it was one."""
    was = member["role"] == "primary" and member["name"] != holder
    return "was primary" if was else or_unknown(member["role"])


def _owner(data: dict[str, Any]) -> str:
    if data["state"] == "absent":
        return "none: nobody has run it yet"
    text = f"{data['holder']}: {data['state']}, epoch {data['epoch']}"
    if data["left"] is None:
        return text
    position = or_unknown(data["left"]["position"])
    return f"{text} ended at position {position}" + (
        f": {data['left']['reason']}" if data["left"]["reason"] else ""
    )


def within(limit_s: float, url: str, work: Callable[[], T]) -> T:
    """What `work` gives, in a thread that may be left behind."""
    done: list[T] = []
    failed: list[SustainError] = []

    def run() -> None:
        try:
            done.append(work())
        except SustainError as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not done:
        raise LeaseError(
            f"{url}: does not answer within {limit_s:g} s", hint="is its file system's server there?"
        )
    return done[0]
