"""Kill of the primary to the first commit on the standby, the wait for the lease taken out: does size matter?

Two `sustain run` on this machine, each with a directory of its own on tmpfs and a `file://` lease. The
store's array is filled through a writer first, so that the whole size has been shipped and lies in both
images. Then all processes of the primary are killed with SIGKILL and the standby's command notes the
moment after its first commit. What is counted: from the moment the lease was free (by the takeover's
report) to that first commit: taking the lease, stopping the receiver, opening the new epoch, starting
Python and opening the store. There is no peer for it.
"""

import json
import statistics
from pathlib import Path

from bench.harness import Answer, memory_dir, quiet_collector, say
from bench.pair import HandedOver, running_pair

QUESTION = "kill of the primary to first commit on the standby, lease time excluded"


def measured(size: int, ttl: str) -> dict[str, float]:
    """`measure`, again when the machine was too slow for it."""
    for _ in range(5):
        with memory_dir() as directory, quiet_collector():
            try:
                return measure(directory, size, ttl)
            except HandedOver:
                say("  the lease lapsed before the kill: once more")
    raise RuntimeError("the lease lapsed before the kill five times in a row: this machine is too busy")


def measure(directory: Path, size: int, ttl: str) -> dict[str, float]:
    """Milliseconds of the parts of one takeover with `size` bytes of data, and leases of `ttl`. Raises HandedOver."""
    from sustain.demo.hosts import wait_for

    with running_pair(directory, "takeover", size, "--ttl", ttl) as (a, b, _):
        killed_ns, _ = a.kill()
        wait_for("the first commit on b", lambda: b.progress("first-commit") is not None, [b], 60)
        wait_for("the report", lambda: b.event("takeover") is not None, [b], 60)
        first = (b.progress("first-commit") or {})["boottime_ns"]
        begun = (b.progress("started") or {})["boottime_ns"]
        report = b.event("takeover") or {}
        free = report["lease_free_boottime_ns"]
        if free is None or first < killed_ns:
            raise HandedOver
        return {
            "kill to first commit": (first - killed_ns) / 1e6,
            "lease": (free - killed_ns) / 1e6,
            "without the lease": (first - free) / 1e6,
            "lease taken": (report["acquired_boottime_ns"] - free) / 1e6,
            "promotion": (report["promoted_boottime_ns"] - report["acquired_boottime_ns"]) / 1e6,
            "start of Python": (begun - report["promoted_boottime_ns"]) / 1e6,
            "open and commit": (first - begun) / 1e6,
        }


def answer(quick: bool = False) -> Answer:
    """Milliseconds."""
    # A smoke run is for busy machines, too, which stall; what the lease takes is not counted.
    sizes, rounds, ttl = ((4,), 1, "4s") if quick else ((64, 256, 1024, 4096), 3, "1s")
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            say(f"  {size} MiB")
            found[size].append(measured(size << 20, ttl))
    medians = {
        size: {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        for size, runs in found.items()
    }
    times = {size: parts["without the lease"] for size, parts in medians.items()}
    result = Answer(
        question=QUESTION,
        unit="ms",
        ours=max(times.values()),
        peers={},
        limit={},
        runs=rounds,
        details={f"{size} MiB (ms)": parts for size, parts in medians.items()},
        quick=quick,
    )
    result.ask("at most 200 ms, whatever the size", max(times.values()), lambda worst: worst <= 200)
    growth = max(times.values()) / min(times.values())
    result.ask("independent of the size: largest time / smallest ≤ 1.5", growth, lambda ratio: ratio <= 1.5)
    result.notes = [
        f"all runs, {size} MiB: " + json.dumps([round(run["without the lease"]) for run in runs])
        for size, runs in found.items()
    ]
    return result
