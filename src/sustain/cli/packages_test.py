"""`sustain packages test`: which idle states are independent, found out by trying.

Used by `packages`. Keeps cores of one package busy and leaves the others empty, in turns; for that the host has to be
nearly idle. What is found is kept for this host with this firmware, where the scheduler finds it.
"""

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from sustain.cli.output import duration_argument, emit, fields, progress, table
from sustain.errors import ConfigError
from sustain.units import format_duration


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--window", type=duration_argument, metavar="TIME", help="of each measurement (4s)")
    verb.add_argument("--repeats", type=int, metavar="N", help="times that each is made (5)")


def run(args: argparse.Namespace, config: Any) -> int:
    import msgspec

    from sustain.agent.build import packages_sensor
    from sustain.clock import SystemClock
    from sustain.schedulers.packages import active

    window_s = active.WINDOW_S if args.window is None else args.window
    repeats = active.REPEATS if args.repeats is None else args.repeats
    if window_s < 1 or repeats < 1:
        raise ConfigError("--window, --repeats: too short to measure anything", hint="4s and 5 are usual")
    clock = SystemClock()
    sensor = packages_sensor(config, config.packages, clock)
    host = active.ThisHost(clock, time.sleep)
    try:
        tested = active.run(
            host,
            virtual=sensor.host.virtual,
            window_s=window_s,
            repeats=repeats,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            say=progress,
        )
        progress("")
        sensor.findings.add(tested.findings)
    finally:
        progress("")
        host.close()
        sensor.close()
    data = {
        "host": sensor.host.title,
        "findings": msgspec.to_builtins(tested.findings),
        "windows": len(tested.windows),
        "window_s": window_s,
        "disturbed": tested.disturbed,
        "kept": str(sensor.findings.path),
    }
    emit(args, data, lambda: text(data))
    return 0


def text(data: dict[str, Any]) -> str:
    """For people."""
    rows = [("package", "state", "found", "parking it saves", "")]
    for each in data["findings"]:
        error = "" if each["parked_error_w"] is None else f" ± {each['parked_error_w']:.1f}"
        saves = "unknown" if each["parked_w"] is None else f"{each['parked_w']:.1f}{error} W"
        rows.append((str(each["package"]), each["state"], each["independence"], saves, each["detail"]))
    again = f", {data['disturbed']} of them made again" if data["disturbed"] else ""
    about = [
        ("host", data["host"]),
        ("measured", f"{data['windows']} windows of {format_duration(data['window_s'])}{again}"),
        ("kept", data["kept"]),
    ]
    return "\n".join((fields(about), "", table(rows)))
