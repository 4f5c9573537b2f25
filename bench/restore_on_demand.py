"""A host without a copy takes over: from the start of `sustain restore` to the first commit, on demand against in full.

The source is a `sustain receive` on this machine, the copy on tmpfs; so the network is the loopback and the reach is
about the shape, not about a link. The application (this process) opens the store as soon as it can be opened, changes
an array item in the middle and a map entry, and commits. On demand the rest streams in meanwhile and takes its share
of the processors. Both ways begin with the start of a Python process for the restore, which is in both figures.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.harness import Answer, memory_dir, quiet_collector, say

QUESTION = "start of a restore to the first commit on a host that has no copy: does the size matter?"


def make(path: Path, size: int) -> None:
    """A store full of an array of `size` bytes."""
    import numpy as np

    import sustain

    items = size // 8
    with sustain.create(str(path), size=size + (16 << 20), log_size="64MiB", durability="memory") as store:
        array = store.array("cells", (items,), "i8")
        for first in range(0, items, 1 << 20):
            array[first : first + (1 << 20)] = np.arange(first, min(first + (1 << 20), items)) + 1
            store.commit()
        users = store.map("users")
        for number in range(1000):
            users[b"%d" % number] = b"value %d" % number
        store.commit()
        del array


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    pause = threading.Event()
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        pause.wait(0.0005)


def restored(url: str, path: Path, *, on_demand: bool) -> dict[str, float]:
    """Seconds to the first commit and to the end of one restore, and pages that accesses waited for."""
    import sustain
    from sustain._native import arrival_of

    ready = path.with_suffix(".ready")
    words = ["restore", url, str(path), "--ready-file", str(ready), *(["--on-demand"] if on_demand else [])]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sustain.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(ready, process)
        can_be_opened = time.monotonic()
        with sustain.open(str(path)) as store:
            array = store.array("cells")
            array[len(array) // 2] = -1
            store.map("users")[b"first"] = b"commit"
            store.commit()
            committed = time.monotonic()
            arrival = arrival_of(str(path))
            del array
            process.wait(600)
        ended = time.monotonic()
    finally:
        process.kill()
        process.wait()
    return {
        "can be opened": (can_be_opened - begun) * 1e3,
        "first commit": (committed - begun) * 1e3,
        "all is here": (ended - begun) * 1e3,
        "pages waited for": float(arrival["asked"]) if arrival is not None else 0.0,
    }


def measure(size: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Both ways, in turns."""
    found: dict[str, list[dict[str, float]]] = {"on demand": [], "in full": []}
    with memory_dir() as directory:
        make(directory / "source.sus", size)
        port = directory / "port"
        words = [
            "receive",
            "--store",
            directory / "source.sus",
            "--listen",
            "127.0.0.1:0",
            "--port-file",
            port,
        ]
        source = subprocess.Popen(
            [sys.executable, "-m", "sustain.cli", *map(str, words)], stderr=subprocess.DEVNULL
        )
        try:
            wait_for(port, source)
            url = f"tcp://127.0.0.1:{port.read_text().strip()}"
            for _ in range(rounds):
                for way, runs in found.items():
                    path = directory / "new.sus"
                    with quiet_collector():
                        runs.append(restored(url, path, on_demand=way == "on demand"))
                    for each in directory.glob("new.*"):
                        each.unlink()
        finally:
            source.kill()
            source.wait()
    return found


def answer(quick: bool = False) -> Answer:
    """Milliseconds."""
    sizes, rounds = ((8, 32), 1) if quick else ((64, 1024), 3)
    found = {}
    for size in sizes:
        say(f"  {size} MiB")
        found[size] = measure(size << 20, rounds)
    medians = {
        (size, way): {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        for size, ways in found.items()
        for way, runs in ways.items()
    }
    small, large = sizes
    ours = medians[large, "on demand"]["first commit"]
    result = Answer(
        question=QUESTION,
        unit="ms",
        ours=ours,
        peers={"restored in full first": medians[large, "in full"]["first commit"]},
        limit={},
        runs=rounds,
        details={f"{size} MiB, {way} (ms, pages)": parts for (size, way), parts in medians.items()},
        quick=quick,
    )
    growth = ours / medians[small, "on demand"]["first commit"]
    result.ask(f"{large} MiB / {small} MiB, on demand ≤ 1.5", growth, lambda ratio: ratio <= 1.5)
    share = ours / medians[large, "in full"]["first commit"]
    result.ask(f"on demand / in full, {large} MiB ≤ 0.5", share, lambda ratio: ratio <= 0.5)
    result.notes = [
        f"all first commits, {size} MiB, {way}: " + json.dumps([round(run["first commit"]) for run in runs])
        for size, ways in found.items()
        for way, runs in ways.items()
    ]
    return result
