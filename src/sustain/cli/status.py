"""A store as it is now, seen from outside its processes: positions, destinations and their lags, lease, who
is alive.

Reads the superblock, the control words and `PATH.run.json` (which `sustain run` keeps), and asks the lease store that
is named there; takes no lock and stops nobody. What cannot be known is "unknown" (null in JSON), never zero.
"""

import argparse
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sustain._native import Control, arrival_of, boottime_ns
from sustain.cli.output import add_json, duration_argument, emit, fields, or_unknown, printable, table
from sustain.errors import StoreIOError
from sustain.store.status import destination_status, power_status
from sustain.units import format_duration, format_size

if TYPE_CHECKING:
    from sustain._native import ControlWords, Superblock

HELP = "show a live store, region or workload: positions, destinations, lag, lease, members, power"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", help="the store, the region, or a lease (etcd://…, file:///dir): its workload, from any host"
    )
    parser.add_argument("--watch", action="store_true", help="show it again and again until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=duration_argument,
        default=1.0,
        metavar="TIME",
        help="with --watch: time between (1s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    pause = threading.Event()
    while True:
        data, text = _look(args.path)
        if args.watch and not args.json and sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        emit(args, data, lambda data=data, text=text: text(data))  # type: ignore[misc]
        if not args.watch:
            return 0
        pause.wait(args.interval)


def _look(path: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    """What is at the path, and how it is said to a person."""
    from sustain.cli.region_status import collect_region, describe_region, is_region
    from sustain.cli.workload_status import collect_workload, describe_workload, is_lease

    if is_lease(path):
        return collect_workload(path), describe_workload
    if is_region(path):
        return collect_region(path), describe_region
    return collect(path), describe


def collect(path: str) -> dict[str, Any]:
    """The JSON shape of `sustain status`. Raises NotAStore and the like."""
    from sustain.cli.workload_status import workload_of
    from sustain.failover import runfile
    from sustain.replication.archive import proofs

    control = Control(path)
    try:
        block, words, destinations = control.superblock(), control.words(), control.destinations()
        locks = {
            "writer": control.writer_locked(),
            "shipper": control.shipper_locked(),
            "supervisor": control.supervisor_locked(),
        }
    finally:
        control.close()
    committed = _committed(block, words)
    commit_time_ns = words["commit_time_ns"] if words else 0
    shown = [
        destination_status(
            each,
            committed=committed or 0,
            commit_time_ns=commit_time_ns,
            now_ns=boottime_ns(),
            shipper_alive=locks["shipper"],
        )
        for each in destinations
    ]
    tried = proofs.read(path)
    power = None if words is None else power_status(words, shown, boottime_ns())
    run = runfile.read(path)
    return {
        "path": path,
        "store_uuid": str(uuid.UUID(bytes=block["store_uuid"])),
        "epoch": block["epoch"],
        "durability": block["durability"],
        "incomplete": block["incomplete"],
        "arriving": _arriving(path) if block["arriving"] else None,
        "role": _role(words, locks["writer"]),
        "poisoned": None if words is None else words["poisoned"],
        "writer": _holder(locks["writer"], words["writer_pid"] if words else 0),
        "shipper": _holder(locks["shipper"], words["shipper_pid"] if words else 0),
        "supervisor": {"alive": locks["supervisor"]},
        "positions": _positions(block, words, committed),
        "log": {
            "size_bytes": block["log_size"],
            "used_bytes": words["appended"] - words["tail"] if words else None,
        },
        "lease": _lease(words, boottime_ns()),
        "primary": _primary(words, boottime_ns()),
        "power": None if power is None else asdict(power),
        "destinations": [asdict(each) | {"proof": tried.get(each.url)} for each in shown],
        "run": run,
        "workload": workload_of(run),
    }


def _arriving(path: str) -> dict[str, Any] | None:
    """How far the pages are; None when they have all come meanwhile."""
    try:
        arrival = arrival_of(path)
    except StoreIOError:  # somebody else's store: to be looked at only
        return {"pages": None, "here": None, "asked": None, "state": "unknown", "failure": None}
    if arrival is None:
        return None
    return {
        "pages": arrival["pages"],
        "here": arrival["here"],
        "asked": arrival["asked"],
        "state": arrival["state"],
        "failure": arrival["failure"] or None,
    }


def _proof_text(proof: dict[str, Any]) -> str:
    ago = format_duration(max(0.0, time.time() - proof["at_ns"] / 1e9))
    if proof["worked"]:
        return f"a restore worked {ago} ago, to position {proof['position']}"
    return f"the restore that was tried {ago} ago FAILED: {proof['why']}"


def _arriving_text(arriving: dict[str, Any]) -> str:
    if arriving["here"] is None:
        return "its pages are still coming; how many are here can be seen by who may write to it"
    text = f"{arriving['here']} of {arriving['pages']} pages are here, {arriving['asked']} came because they were used"
    return text + (f"; FAILED: {arriving['failure']}" if arriving["failure"] else "")


def describe(data: dict[str, Any]) -> str:
    """The same for a person."""
    from sustain.cli.workload_status import describe_workload

    text = _described(data)
    return text if data["workload"] is None else f"{text}\n\n{describe_workload(data['workload'])}"


def _described(data: dict[str, Any]) -> str:
    positions, log = data["positions"], data["log"]
    age = positions["last_commit_age_s"]
    last = "" if age is None else f", the last {format_duration(age)} ago"
    lines = [
        ("store", f"{data['path']}: {data['role']}, epoch {data['epoch']}, {data['durability']}"),
        ("writer", _alive(data["writer"])),
        ("shipper", _alive(data["shipper"])),
        ("supervisor", "running" if data["supervisor"]["alive"] else "none (no `sustain run`)"),
        ("lease", _lease_text(data["lease"])),
        ("committed", f"position {or_unknown(positions['committed'])}{last}"),
        ("commits", or_unknown(positions["commits"])),
        (
            "log",
            f"{or_unknown(log['used_bytes'], format_size)} in use of {format_size(log['size_bytes'])}",
        ),
    ]
    if data["run"] is not None:
        lines.insert(4, ("workload", run_text(data["run"], data["supervisor"]["alive"])))
    if data["power"] is not None:
        lines.append(("power", _power_text(data["power"])))
    if data["primary"] is not None:
        lines.append(("primary", _primary_text(data["primary"])))
    if data["poisoned"]:
        lines.append(("POISONED", "a write or flush failed: no more commits until the store is opened again"))
    if data["incomplete"]:
        lines.append(("INCOMPLETE", "a snapshot is being received: not usable yet"))
    if data["arriving"] is not None:
        lines.append(("ARRIVING", _arriving_text(data["arriving"])))
    text = fields(lines)
    if data["destinations"]:
        rows = [("DESTINATION", "STATE", "ACKNOWLEDGED", "LAG", "LAG TIME", "BANDWIDTH", "DRAIN TIME")]
        rows += [
            (
                each["url"] + ("" if each["required"] else " (not required)"),
                each["state"],
                or_unknown(each["acked"]),
                or_unknown(each["lag_bytes"], format_size),
                or_unknown(each["lag_s"], format_duration),
                or_unknown(each["bandwidth_bytes_per_s"], lambda rate: f"{format_size(rate)}/s"),
                or_unknown(each["drain_s"], format_duration),
            )
            for each in data["destinations"]
        ]
        alone = [
            f"{each['url']}: left alone for {format_duration(each['left_alone_s'])} more: "
            f"{printable(or_unknown(each['left_alone_why']))}"
            for each in data["destinations"]
            if each["left_alone_s"]
        ]
        tried = [
            f"{each['url']}: {_proof_text(each['proof'])}" for each in data["destinations"] if each["proof"]
        ]
        return "\n".join([f"{text}\n\n{table(rows)}", *alone, *tried])
    return text + "\n\nno destinations"


def _committed(block: "Superblock", words: "ControlWords | None") -> int | None:
    if words is not None:
        return words["committed"]
    return block["end"] if block["clean"] else None


def _role(words: "ControlWords | None", writer_alive: bool) -> str:
    if not writer_alive or words is None:
        return "not open"
    return {"application": "primary", "receiver": "standby"}.get(words["holder"], "not open")


def _holder(alive: bool, pid: int) -> dict[str, Any]:
    return {"alive": alive, "pid": pid if alive and pid else None}


def _positions(block: "Superblock", words: "ControlWords | None", committed: int | None) -> dict[str, Any]:
    if words is None:
        return {
            "committed": committed,
            "appended": None,
            "applied": None,
            "tail": block["tail"],
            "commits": None,
            "last_commit_age_s": None,
        }
    seen_ns = words["commit_time_ns"]
    return {
        "committed": committed,
        "appended": words["appended"],
        "applied": words["applied"],
        "tail": words["tail"],
        "commits": words["commit_seq"],
        "last_commit_age_s": max(0.0, (time.time_ns() - seen_ns) / 1e9) if seen_ns else None,
    }


def _lease(words: "ControlWords | None", now_ns: int) -> dict[str, Any]:
    if words is None:
        return {"governs": None, "epoch": None, "remaining_s": None, "fence_epoch": None}
    deadline_ns = words["lease_deadline_ns"]
    return {
        "governs": deadline_ns != 0,
        "epoch": words["lease_epoch"] if deadline_ns else None,
        "remaining_s": (deadline_ns - now_ns) / 1e9 if deadline_ns else None,
        "fence_epoch": words["fence_epoch"],
    }


def _primary(words: "ControlWords | None", now_ns: int) -> dict[str, Any] | None:
    """On a standby: how far the primary was when last heard."""
    if words is None or words["holder"] != "receiver" or not words["primary_heard_ns"]:
        return None
    return {
        "committed": words["primary_committed"],
        "heard_s_ago": max(0.0, (now_ns - words["primary_heard_ns"]) / 1e9),
        "behind_bytes": max(0, words["primary_committed"] - words["committed"]),
    }


def run_text(run: dict[str, Any], alive: bool) -> str:
    """What `sustain run` says of itself; of one that has ended, that it is the past."""
    parts = [f"{or_unknown(run.get('name'))}: {or_unknown(run.get('role'))}"]
    if run.get("lease"):
        held = f" held by {run['holder']}" if run.get("holder") else ""
        parts.append(f"lease {run['lease']}{held}")
    if run.get("lease_error"):
        parts.append(f"the lease cannot be reached: {run['lease_error']}")
    if run.get("restarts"):
        parts.append(f"{run['restarts']} restarts")
    if run.get("waiting_for"):
        parts.append(f"waiting: {run['waiting_for']}")
    return ", ".join(parts) + ("" if alive else " (when its supervisor ended)")


def _alive(holder: dict[str, Any]) -> str:
    if not holder["alive"]:
        return "none"
    return f"running, pid {or_unknown(holder['pid'])}"


def _lease_text(lease: dict[str, Any]) -> str:
    if lease["governs"] is None:
        return "unknown (not opened since this host started)"
    if not lease["governs"]:
        return "none governs this store"
    left = lease["remaining_s"]
    if left <= 0:
        return f"epoch {lease['epoch']}, passed {format_duration(-left)} ago: commits are refused"
    return f"epoch {lease['epoch']}, {format_duration(left)} left"


def _power_text(power: dict[str, Any]) -> str:
    """How long a drain would take, against how long the battery would last."""
    usable_s, drain_s = power["usable_s"], power["drain_s"]
    if usable_s is None:
        return f"{power['state']}; how long the battery lasts is unknown: there is no budget"
    held = {
        "free": "commits are not held back",
        "delayed": "commits are delayed",
        "waiting": "commits wait until less is unshipped",
    }[power["commits"]]
    if power["waiting_s"] is not None:
        held += f", one for {format_duration(power['waiting_s'])}"
    if power["commits"] == "alone":
        return f"{power['state']}, {format_duration(usable_s)} for a drain; no destination has a whole copy: no budget"
    budget = or_unknown(power["budget_bytes"], format_size)
    return (
        f"{power['state']}, {format_duration(usable_s)} for a drain, which would take "
        f"{or_unknown(drain_s, format_duration)}; budget {budget}: {held}"
    )


def _primary_text(primary: dict[str, Any]) -> str:
    return (
        f"at position {primary['committed']} when heard {format_duration(primary['heard_s_ago'])} ago, "
        f"{format_size(primary['behind_bytes'])} ahead of this replica"
    )
