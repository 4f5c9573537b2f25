"""`sustain handover` of a busy store: how long does the application pause, and what is the pause made of?

Two `sustain run` on this machine, each with a directory of its own on tmpfs and a `file://` lease. The store is
filled, so that its whole size lies in both images; then its command changes pages all over it, about a thousand
commits a second, and ends in good order at SIGTERM. The workload is moved to b, and once more back to a: the second
time no page of either is new. What is counted is the application's own pause: from the moment its last commit on the
one host was confirmed to the moment its first on the other was, by the machine's one clock. Beside it, what `sustain
handover` says, which compares no clocks and counts at most too much. There is no peer for it.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.harness import Answer, memory_dir, quiet_collector, say
from bench.pair import running_pair, ships

QUESTION = "pause of the application when a busy 1 GiB store is handed over"


def measured(size: int) -> list[dict[str, float]]:
    """Milliseconds of the parts of two handovers with `size` bytes of data."""
    with memory_dir() as directory, quiet_collector():
        return measure(directory, size)


def measure(directory: Path, size: int) -> list[dict[str, float]]:
    from sustain.demo.hosts import wait_for

    with running_pair(directory, "handover", size) as (a, b, lease):
        found = [_move(lease, a, b)]
        wait_for("host a to follow", lambda: ships(b, b.words()["committed"]), [a, b], 240, 0.01)
        found.append(_move(lease, b, a))
        return found


def _move(lease: Path, old: Any, new: Any) -> dict[str, float]:
    """Hand over; what the application saw, and what the command said."""
    from sustain.demo.hosts import wait_for

    before = sum(1 for _ in _firsts(new))
    words = [sys.executable, "-m", "sustain.cli", "handover", f"file://{lease}", "--to", new.name, "--json"]
    made = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    if made.returncode:
        raise RuntimeError(f"{made.stderr}\n{old.complaint()}\n{new.complaint()}")
    said = json.loads(made.stdout)
    wait_for("the first commit", lambda: sum(1 for _ in _firsts(new)) > before, [old, new], 60)
    first = list(_firsts(new))[-1]
    last = Path(f"{old.progress_path}.last").read_bytes()
    if int.from_bytes(last[8:16], "little") + 1 != first["number"]:
        raise RuntimeError(f"the last commit was {int.from_bytes(last[8:16], 'little')}, {first} came next")
    pause_ms = (first["committed_ns"] - int.from_bytes(last[:8], "little")) / 1e6
    parts = {key.removesuffix("_s"): (value or 0.0) * 1e3 for key, value in said["parts"].items()}
    return {"pause": pause_ms, "as said": said["pause_s"] * 1e3, **parts}


def _firsts(host: Any) -> list[dict[str, Any]]:
    lines = host.progress_path.read_text().splitlines() if host.progress_path.exists() else []
    return [each for each in map(json.loads, lines) if each["event"] == "first-commit"]


def answer(quick: bool = False) -> Answer:
    """Milliseconds."""
    size, rounds = (4, 1) if quick else (1024, 3)
    found: list[dict[str, float]] = []
    for number in range(rounds):
        say(f"  {size} MiB, round {number + 1}")
        found += measured(size << 20)
    parts = {part: statistics.median(run[part] for run in found) for part in found[0]}
    result = Answer(
        question=QUESTION,
        unit="ms",
        ours=parts["pause"],
        peers={},
        limit={},
        runs=rounds,
        details={f"{size} MiB (ms), medians": parts},
        quick=quick,
    )
    worst = max(run["pause"] for run in found)
    result.ask("at most 500 ms", parts["pause"], lambda pause: pause <= 500)
    result.ask("at most 500 ms, the longest of all", worst, lambda pause: pause <= 500)
    result.notes = [
        "all runs: " + json.dumps([{part: round(value) for part, value in run.items()} for run in found]),
        f"two handovers a round, to the standby and back; {2 * rounds} in all",
    ]
    return result
