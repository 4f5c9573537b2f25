"""What a power source says, and what Sustain makes of it: to try a source out before relying on it."""

import argparse
import sys
import threading
from typing import Any

from sustain.cli.output import add_json, duration_argument, emit, fields, or_unknown
from sustain.units import format_duration

HELP = "ask a power source (UPS, battery, file) and show what it means"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="nut://HOST[:PORT]/UPS, acpi: or file:///PATH")
    parser.add_argument("--watch", action="store_true", help="a line at every change, until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=duration_argument,
        default=1.0,
        metavar="TIME",
        help="with --watch: time between two readings (1s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.clock import SystemClock
    from sustain.errors import PowerSourceError
    from sustain.powerfail.decide import PowerMemory, PowerPolicy, decide
    from sustain.powerfail.sources import open_source

    clock = SystemClock()
    source = open_source(args.source, clock)
    memory, policy = PowerMemory(), PowerPolicy()
    pause = threading.Event()
    shown: object = None
    try:
        while True:
            reading = source.read()
            if reading.problem and not args.watch:
                raise PowerSourceError(reading.problem, hint="`sustain power --watch` waits for it to return")
            memory = decide(reading, memory, policy, clock.boottime_ns())
            data = _report(args.source, memory, reading.problem, clock.boottime_ns())
            if not args.watch:
                emit(args, data, lambda data=data: _describe(data))  # type: ignore[misc]
                return 0
            now = (memory.power, data["status"], reading.problem)
            if now != shown:
                emit(args, data, lambda data=data: _line(data))  # type: ignore[misc]
                sys.stdout.flush()
                shown = now
            pause.wait(args.interval)
    finally:
        source.close()


def _report(url: str, memory: Any, problem: str, now_ns: int) -> dict[str, Any]:
    from sustain.powerfail.budget import BudgetPolicy, usable_s

    good = memory.good
    seconds, why = usable_s(memory, BudgetPolicy(), now_ns)
    return {
        "source": url,
        "power": str(memory.power),
        "reason": memory.reason,
        "problem": problem or None,
        "status": None if good is None else good.status,
        "on_battery": None if good is None else good.on_battery,
        "charge_percent": None if good is None else good.charge_percent,
        "runtime_s": None if good is None else good.runtime_s,
        "runtime_low_s": None if good is None else good.runtime_low_s,
        "usable_s": seconds,
        "usable_reason": why,
    }


def _describe(data: dict[str, Any]) -> str:
    return fields(
        [
            ("power", f"{data['power']}: {data['reason']}"),
            ("status", data["status"] or "unknown"),
            ("charge", or_unknown(data["charge_percent"], lambda value: f"{value:.0f} %")),
            ("runtime", or_unknown(data["runtime_s"], format_duration)),
            ("low below", or_unknown(data["runtime_low_s"], format_duration)),
            ("for a drain", f"{or_unknown(data['usable_s'], format_duration)}: {data['usable_reason']}"),
        ]
    )


def _line(data: dict[str, Any]) -> str:
    said = data["problem"] or f"{data['status']}, runtime {or_unknown(data['runtime_s'], format_duration)}"
    return f"{data['power']}: {data['reason']} ({said})"
