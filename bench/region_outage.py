"""At an outage: how long from the order to the seal, and how many bytes, when a share of the region changed?

A program with a 1 GiB region in memory changes 1% of its pages after everything has been pre-copied; then the
pre-copier is told to finish. Beside it the same with 10%, and `everything`: `sustain save` of the whole region into
nothing, which is what an outage would take without pre-copying (the start of that process included, less than half a
second). Time and bytes must follow the share that changed, not the size.

The pre-copier's periodic harvests are left in place, so a part of the 1% may be away when the order comes; the bytes
that are counted are those sent from the change on, in both phases. The destination is a directory in memory.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import Answer, interleave, medians, memory_dir
from sustain.powerfail.regions.track import environment

QUESTION = "an outage with 1% of a region changed: seconds from the order to the seal"
_UUID = "00000000000000000000000000000002"
_PAGE = 4096
# Maps the region; for each line with a seed and a count it changes so many pages and answers.
_PROGRAM = """
import mmap, os, random, sys
view = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
pages = len(view) // 4096
print("ready", flush=True)
for line in sys.stdin:
    seed, count = map(int, line.split())
    mark = seed.to_bytes(8, "little")
    for page in random.Random(seed).sample(range(pages), count):
        view[page * 4096 : page * 4096 + 8] = mark
    print("done", flush=True)
"""


class _Host:
    """A program and its pre-copier."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.region, self.saved = directory / "region", directory / "saved"
        self.pages = size_bytes // _PAGE
        block = random.Random(1).randbytes(1 << 20)
        with self.region.open("wb") as file:
            for _ in range(size_bytes >> 20):
                file.write(block)
        self._seed = 0
        self._program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self.region)],
            env={**os.environ, **environment(self.region)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._hear()
        self._status = directory / "region.region.json"
        words = [
            *(sys.executable, "-m", "sustain.cli", "ship", "--region", str(self.region)),
            *("--region-name", "bench", "--region-uuid", _UUID, "--epoch", "1", "--name", "bench"),
            *("--peer", f"file://{self.saved}", "--pids-of", str(self._program.pid)),
            *("--rate", "8GiB", "--scan-rate", "8GiB"),
        ]
        self._ship = subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def _hear(self) -> None:
        assert self._program.stdout is not None
        self._program.stdout.readline()

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._status.read_text())
        except OSError:
            return {}
        return found if found["pid"] == self._ship.pid else {}

    def until(self, phase: str, state: str, quiet: bool = False) -> dict[str, Any]:
        deadline = time.monotonic() + 300
        while True:
            found = self.status()
            if found and found["phase"] == phase and found["destinations"][0]["state"] == state:
                behind = found["destinations"][0]["behind_bytes"] or found["dirty_bytes"]
                first = found["tracker_why"] in ("not looked at yet", "this is the first look")
                if not quiet or (not behind and not first):
                    return found
            if self._ship.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the pre-copier does not get {phase}: {found}")
            time.sleep(0.002)

    def outage(self, share: float) -> tuple[float, float]:
        """(seconds, bytes) of an outage after that share of the pages changed."""
        before = self.until("precopy", "streaming", quiet=True)["destinations"][0]["sent_bytes"]
        self._seed += 1
        assert self._program.stdin is not None
        self._program.stdin.write(f"{self._seed} {int(self.pages * share)}\n")
        self._program.stdin.flush()
        self._hear()
        begun = time.perf_counter()
        self._ship.send_signal(signal.SIGUSR1)
        done = self.until("sealed", "sealed")
        spent = time.perf_counter() - begun
        self._ship.send_signal(signal.SIGUSR2)
        return spent, float(done["destinations"][0]["sent_bytes"] - before)

    def close(self) -> None:
        self._ship.terminate()
        self._ship.wait()
        self._program.kill()
        self._program.wait()
        for pipe in (self._program.stdin, self._program.stdout):
            assert pipe is not None
            pipe.close()


def _everything(host: _Host, directory: Path) -> float:
    """Seconds of a save of the whole region, into nothing, while the program stands still."""
    target = directory / f"whole-{time.monotonic_ns()}"
    words = [
        sys.executable,
        "-m",
        "sustain.cli",
        "save",
        "--region",
        str(host.region),
        "--to",
        f"file://{target}",
    ]
    begun = time.perf_counter()
    subprocess.run([*words, "--name", "bench"], check=True, stdout=subprocess.DEVNULL)
    spent = time.perf_counter() - begun
    subprocess.run(["rm", "-r", str(target)], check=True)
    return spent


def answer(quick: bool = False) -> Answer:
    """Seconds, median of the outages."""
    size_bytes, rounds = (32 << 20, 1) if quick else (1 << 30, 7)
    sent: dict[str, list[float]] = {}
    with memory_dir() as directory:
        host = _Host(directory, size_bytes)
        try:

            def outage(name: str, share: float) -> float:
                spent, bytes_sent = host.outage(share)
                sent.setdefault(name, []).append(bytes_sent)
                return spent

            found = medians(
                interleave(
                    rounds,
                    {
                        "1%": lambda: outage("1%", 0.01),
                        "10%": lambda: outage("10%", 0.1),
                        "everything": lambda: _everything(host, directory),
                    },
                )
            )
        finally:
            host.close()
    bytes_of = medians(sent)
    result = Answer(
        question=QUESTION,
        unit="s",
        ours=found["1%"],
        peers={"saving everything": found["everything"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["outages"] = {
        name: {"seconds": found[name], "share of the region sent": bytes_of[name] / size_bytes}
        for name in ("1%", "10%")
    } | {"everything": {"seconds": found["everything"], "share of the region sent": 1.0}}
    result.ask("bytes: at most 1.5% of the region", bytes_of["1%"] / size_bytes, lambda share: share <= 0.015)
    result.ask(
        "time: at most 0.25 of saving everything", result.ratio["saving everything"], lambda r: r <= 0.25
    )
    result.notes.append(
        f"a region of {size_bytes >> 20} MiB; seconds include freezing and both processes' waking up"
    )
    return result
