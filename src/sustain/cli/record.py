"""Records what a scheduler of this host sees, to be replayed anywhere with any policy: `sustain replay FILE`.

Only looks, and may run beside the agent. Ends after --for, or with Ctrl-C."""

import argparse
import signal
import time
from typing import Any

from sustain.cli.agent import add_config
from sustain.cli.output import add_json, duration_argument, emit, progress
from sustain.signal_event import SignalEvent
from sustain.units import format_duration

HELP = "record what a scheduler sees"

_STOP = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S = 1.0  # whether another thread has had a signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a new file: docs/formats/recording.md")
    add_config(parser)
    parser.add_argument(
        "--for", dest="span", type=duration_argument, metavar="TIME", help="how long (until Ctrl-C)"
    )
    parser.add_argument(
        "--period", type=duration_argument, metavar="TIME", help="between two looks (the scheduler's own)"
    )
    parser.add_argument(
        "--scheduler",
        choices=("guest-memory", "large-pages", "packages"),
        help="whose observations (guest-memory, or the one that is enabled)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.agent.config import load
    from sustain.clock import SystemClock
    from sustain.schedulers.loop import next_start
    from sustain.schedulers.recording import Recorder

    config = load(args.config)
    clock = SystemClock()
    section, scheduler = _scheduler(args, config, clock)
    period_s = args.period or section.period_s
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    # Threads from before, as numpy's, do not block them, and get one while this thread is not waiting.
    stop = SignalEvent()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in _STOP}
    try:
        with Recorder(args.file, _header(scheduler.name, section.policy, period_s)) as recorder:
            begun_s = start_s = clock.boottime_ns() / 1e9
            while True:
                recorder.write(scheduler.sense())
                now_s = clock.boottime_ns() / 1e9
                progress(f"{recorder.count} observations in {format_duration(now_s - begun_s)}")
                start_s, _ = next_start(start_s, period_s, now_s)
                if args.span is not None and start_s - begun_s > args.span:
                    break
                if _stopped(stop, start_s - now_s):
                    break
    finally:
        try:
            scheduler.close()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    progress("")
    data = {
        "file": args.file,
        "scheduler": scheduler.name,
        "observations": recorder.count,
        "period_s": period_s,
    }
    emit(args, data, lambda: f"{args.file}: {recorder.count} observations, {period_s:g} s apart")
    return 0


def _stopped(stop: SignalEvent, limit_s: float) -> bool:
    """Whether a signal comes within that time (they are blocked), or has come to another thread."""
    end_s = time.monotonic() + limit_s
    while not stop.is_set():
        left_s = max(0.0, end_s - time.monotonic())
        if signal.sigtimedwait(_STOP, min(left_s, _LOOK_EVERY_S)) is not None:
            return True
        if not left_s:
            return stop.is_set()
    return True


def _scheduler(args: argparse.Namespace, config: Any, clock: Any) -> tuple[Any, Any]:
    """The section and the scheduler that is to look."""
    from sustain.agent.build import enabled, guest_memory, large_pages, packages

    sections = {
        "guest-memory": (config.guest_memory, guest_memory),
        "large-pages": (config.large_pages, large_pages),
        "packages": (config.packages, packages),
    }
    first = next((name for name, (section, _) in sections.items() if section is not None), "guest-memory")
    section, make = sections[args.scheduler or first]
    if section is None and make is guest_memory:
        enabled(config, args.config)
    return section, make(config, clock)


def _header(name: str, policy: Any, period_s: float) -> Any:
    import os
    import platform
    from datetime import UTC, datetime

    import msgspec

    from sustain import __version__
    from sustain.schedulers.recording import Header

    return Header(
        scheduler=name,
        sustain=__version__,
        host=platform.node(),
        kernel=platform.release(),
        processors=os.cpu_count(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        period_s=period_s,
        policy=msgspec.to_builtins(policy),
    )
