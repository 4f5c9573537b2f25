"""`sustain pages run`: the prioritiser in the foreground, and what it came to.

Used by `pages`. A metric of the workload is the number that a command of the user prints: taken before anything is
done, and again while everything is still mapped as it was last, so what is put back at the end is not in it.
"""

import argparse
import shlex
import subprocess
import threading
import time
from typing import Any

from sustain.cli import _foreground
from sustain.cli._foreground import Mask, unblocked
from sustain.cli.agent import tell
from sustain.cli.output import emit, fields, or_unknown
from sustain.errors import ConfigError
from sustain.units import format_size

_METRIC_S = 600.0
_LOOK_EVERY_S = 1.0  # whether it goes on


def run(args: argparse.Namespace, config: Any) -> int:
    from sustain.agent.build import schedulers
    from sustain.clock import SystemClock
    from sustain.schedulers.loop import Loop

    before = None if args.metric is None else metric(args.metric)
    clock = SystemClock()
    (scheduler,) = schedulers(config, clock)
    loop: Any = Loop(scheduler, clock, act=not args.dry_run, tell=tell)
    after: float | None = None

    def last(mask: Mask) -> None:
        nonlocal after
        if args.metric is not None:
            with unblocked(mask) as interrupted:
                after = metric(args.metric, interrupted)

    tick = _foreground.run(loop, args.config, args.span, last)
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


def metric(command: str, interrupted: threading.Event | None = None) -> float:
    """The number that it prints, in its last word. Raises ConfigError, or KeyboardInterrupt when `interrupted` is set
    meanwhile."""
    try:
        made = _made(shlex.split(command), interrupted or threading.Event())
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


def _made(words: list[str], interrupted: threading.Event) -> subprocess.CompletedProcess[str]:
    """As subprocess.run."""
    pipe = subprocess.PIPE
    end_s = time.monotonic() + _METRIC_S
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while True:
                try:
                    out, error = process.communicate(timeout=_LOOK_EVERY_S)
                    if interrupted.is_set() and process.returncode:  # a terminal sends it the same
                        raise KeyboardInterrupt
                    return subprocess.CompletedProcess(words, process.returncode, out, error)
                except subprocess.TimeoutExpired:
                    if interrupted.is_set():
                        raise KeyboardInterrupt from None
                    if time.monotonic() >= end_s:
                        raise subprocess.TimeoutExpired(words, _METRIC_S) from None
        except BaseException:
            process.kill()
            raise


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
