"""`sustain pages run`: the prioritiser in the foreground, and what it came to.

Used by `pages`. A metric of the workload is the number that a command of the user prints: taken before anything is
done, and again while everything is still mapped as it was last, so what is put back at the end is not in it.
"""

import argparse
import shlex
import signal
import subprocess
import threading
from typing import Any

from sustain.cli.agent import tell
from sustain.cli.output import emit, fields, or_unknown
from sustain.errors import ConfigError, SustainError
from sustain.units import format_size

_METRIC_S = 600.0
_STOP_S = 60.0


def run(args: argparse.Namespace, config: Any) -> int:
    from sustain.agent.build import schedulers
    from sustain.clock import SystemClock
    from sustain.schedulers.loop import Loop

    before = None if args.metric is None else metric(args.metric)
    clock = SystemClock()
    (scheduler,) = schedulers(config, clock)
    loop: Any = Loop(scheduler, clock, act=not args.dry_run, tell=tell)
    thread = threading.Thread(target=loop.run, name=scheduler.name, daemon=True)
    stop = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        thread.start()
        if args.span is None:
            signal.sigwait(stop)
        else:
            signal.sigtimedwait(stop, args.span)
        after = None if args.metric is None else metric(args.metric)
        tick = loop.good
    finally:
        loop.stop()
        thread.join(_STOP_S)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if thread.is_alive():
        raise SustainError(
            "what was mapped is still being put back",
            hint=f"`sustain agent restore --config {args.config}` goes on with it",
        )
    if tick is None:
        raise SustainError(loop.failure or "nothing was seen", hint="give it more time: --for")
    data = {
        "ticks": loop.counts.ticks,
        "actions": loop.counts.actions,
        "refused": loop.counts.refused,
        "totals": scheduler.ask("plan", {}, tick)["plan"]["totals"],
        "metric": None if args.metric is None else {"command": args.metric, "before": before, "after": after},
        "left": loop.left,
    }
    emit(args, data, lambda: _text(data))
    return 1 if loop.left else 0


def metric(command: str) -> float:
    """The number that it prints, in its last word. Raises ConfigError."""
    try:
        made = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=_METRIC_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--metric {command!r}: {error}", hint="a command that prints one number") from None
    words = made.stdout.split()
    try:
        if made.returncode:
            raise ValueError
        return float(words[-1])
    except (ValueError, IndexError):
        raise ConfigError(
            f"--metric {command!r}: exit status {made.returncode}, and no number at the end of what it printed",
            hint="a command that prints one number, such as requests in a second",
        ) from None


def _text(data: dict[str, Any]) -> str:
    totals = data["totals"]
    rows = [
        ("ticks", str(data["ticks"])),
        ("actions", f"{data['actions']}, of which {data['refused']} did not come off"),
        ("large", f"{totals['large']} of {totals['blocks']} blocks at the end"),
        ("coverage", f"{or_unknown(totals['coverage'], '{:.1%}'.format)} of accessed pages, by estimate"),
        ("bloat", format_size(int(totals["bloat_bytes"]))),
    ]
    found = data["metric"]
    if found is not None:
        change = "" if not found["before"] else f" ({found['after'] / found['before'] - 1:+.1%})"
        rows.append(("metric", f"{found['before']:g} before, {found['after']:g} after{change}"))
    return "\n".join((fields(rows), *data["left"]))
