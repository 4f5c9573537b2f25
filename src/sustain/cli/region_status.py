"""A region as it is now: what was opened here, what is received here, what its pre-copier says, who is alive.

Used by `sustain status` for a path that is no store. Reads the small files beside the region (docs/json.md), takes no
lock. Where a file is of a process that has ended, it tells the past, and that is said.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from sustain.cli.output import fields, or_unknown, table
from sustain.units import format_duration, format_size


def is_region(path: str) -> bool:
    """Whether `sustain run --region`, or its pre-copier, has left its files beside `path`."""
    return os.path.exists(f"{path}.region") or os.path.exists(f"{path}.region.json")


def collect_region(path: str) -> dict[str, Any]:
    """The JSON shape of `sustain status` of a region."""
    from sustain.cli.workload_status import workload_of
    from sustain.failover import runfile
    from sustain.host.processes import start_ticks

    own, status = _read(f"{path}.region"), _read(f"{path}.region.json")
    power, run = _read(f"{path}.power.json"), runfile.read(path)
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    pid = None if status is None else status.get("pid")
    supervisor = None if run is None else run.get("pid")
    return {
        "path": path,
        "kind": "region",
        "region_uuid": None if own is None else own.get("uuid"),
        "name": None if own is None else own.get("name"),
        "size_bytes": None if own is None else own.get("size_bytes"),
        "epoch": None if own is None else own.get("epoch"),
        "seal": None if status is None else status.get("seal"),
        "phase": None if status is None else status.get("phase"),
        "tracker": None if status is None else status.get("tracker"),
        "unsaved_bytes": None if status is None else status.get("dirty_bytes"),
        "budget_bytes": None if status is None else status.get("budget_bytes"),
        "usable_s": None if power is None else power.get("usable_s"),
        "power": None if power is None else power.get("state"),
        "precopier": {"alive": pid is not None and start_ticks(pid) is not None, "pid": pid},
        "supervisor": {"alive": supervisor is not None and start_ticks(supervisor) is not None},
        "status_age_s": None
        if status is None or not status.get("updated_boottime_ns")
        else max(0.0, (now_ns - status["updated_boottime_ns"]) / 1e9),
        "destinations": [_destination(each) for each in (status or {}).get("destinations", ())],
        "run": run,
        "workload": workload_of(run),
    }


def describe_region(data: dict[str, Any]) -> str:
    """The same for a person."""
    from sustain.cli.workload_status import describe_workload

    text = _described(data)
    return text if data["workload"] is None else f"{text}\n\n{describe_workload(data['workload'])}"


def _described(data: dict[str, Any]) -> str:
    from sustain.cli.status import run_text

    size = or_unknown(data["size_bytes"], format_size)
    alive = data["precopier"]["alive"]
    rows = [
        ("region", f"{data['path']}: {or_unknown(data['name'])}, {size}, epoch {or_unknown(data['epoch'])}"),
        ("pre-copier", f"running, pid {data['precopier']['pid']}" if alive else "none"),
        ("supervisor", "running" if data["supervisor"]["alive"] else "none (no `sustain run`)"),
    ]
    if data["run"] is not None:
        rows.append(("workload", run_text(data["run"], data["supervisor"]["alive"])))
    if data["phase"] is not None:
        past = "" if alive else ", when its pre-copier ended"
        rows.append(("phase", f"{data['phase']}, seal {or_unknown(data['seal'])}{past}"))
        rows.append(("changes", f"found by {or_unknown(data['tracker'])}"))
        rows.append(("not saved yet", or_unknown(data["unsaved_bytes"], format_size)))
    if data["power"] is not None:
        usable = or_unknown(data["usable_s"], format_duration)
        rows.append(("power", f"{data['power']}, {usable} of battery for a save"))
        rows.append(("budget", or_unknown(data["budget_bytes"], format_size)))
    text = fields(rows)
    if not data["destinations"]:
        return f"{text}\n\nno destinations"
    lines = [("DESTINATION", "STATE", "SEALED", "BEHIND", "BANDWIDTH", "DRAIN TIME")]
    lines += [
        (
            each["url"],
            each["state"] + (f": {each['error']}" if each["error"] else ""),
            "-" if each["acked"] is None else f"seal {each['acked']}",
            or_unknown(each["behind_bytes"], format_size),
            or_unknown(each["bandwidth_bytes_per_s"], lambda rate: f"{format_size(int(rate))}/s"),
            or_unknown(each["drain_s"], format_duration),
        )
        for each in data["destinations"]
    ]
    return f"{text}\n\n{table(lines)}"


def _destination(held: dict[str, Any]) -> dict[str, Any]:
    behind, rate = held.get("behind_bytes"), held.get("bandwidth_bytes_per_s")
    return {
        "url": held.get("url"),
        "state": held.get("state"),
        "acked": held.get("acked"),
        "behind_bytes": behind,
        "bandwidth_bytes_per_s": rate,
        "drain_s": behind / rate if behind is not None and rate else None,
        "error": held.get("error") or None,
    }


def _read(path: str) -> dict[str, Any] | None:
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # there is none, or it is just being replaced
    return held if isinstance(held, dict) else None
