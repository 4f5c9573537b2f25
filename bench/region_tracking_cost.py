"""What does a memory-bound program lose while its region is pre-copied, with each way to find changed pages?

A program in C stores to random cache lines all over a file in memory, as fast as it can: after each harvest it meets a
write fault at every page again, and what it changes never ends. Beside it `sustain ship --region` at its default rates,
to a directory in memory, which costs this machine what otherwise another one would pay. Judged: the way that `auto`
chooses, against the same program alone. `library` is the program with the tracking library and nobody who harvests.

Each figure is of its own run of program and pre-copier, taken after the first complete copy; they go on in turns.
Beside stores per second there are those per second of the program's own processor time, which other load on the
machine does not touch: they hold faults and crowded memory, and not what the pre-copier takes of a processor that both
need.
"""

import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from bench.harness import Answer, interleave, medians, memory_dir
from sustain.host import pagemap
from sustain.powerfail.regions.status import read_json
from sustain.powerfail.regions.track import Way, environment

QUESTION = "a memory-bound program while its region is pre-copied, million stores/s"
_UUID = "00000000000000000000000000000001"


def answer(quick: bool = False) -> Answer:
    """Million stores per second, median of the runs."""
    size_bytes, seconds, rounds = (64 << 20, 0.5, 1) if quick else (512 << 20, 14.0, 5)
    with memory_dir() as directory:
        program = directory / "stores"
        source = Path(__file__).parent / "peers/stores.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        region = directory / "region"
        with region.open("wb") as file:
            file.truncate(size_bytes)
        saved = directory / "saved"

        own: dict[str, list[float]] = {}

        def measure(name: str, way: Way | None, ship: bool) -> float:
            env = {} if way is None else environment(region, way)
            with _running([str(program), str(region)], env) as running:
                assert running.stdout is not None
                running.stdout.readline()
                with _shipping(region, saved, running.pid, str(way)) if ship else nullcontext():
                    rate, of_its_time = _rate(region, running.pid, seconds)
                own.setdefault(name, []).append(of_its_time)
                return rate

        contenders = {
            "alone": lambda: measure("alone", None, False),
            "library": lambda: measure("library", Way.AUTO, False),
            "auto": lambda: measure("auto", Way.AUTO, True),
            "content": lambda: measure("content", Way.CONTENT, True),
        }
        if pagemap.has_soft_dirty():
            contenders["soft-dirty"] = lambda: measure("soft-dirty", Way.SOFT_DIRTY, True)
        found = medians(interleave(rounds, contenders))
        own_time = medians(own)
    result = Answer(
        question=QUESTION,
        unit="million stores/s",
        ours=found["auto"],
        peers={"the program alone": found["alone"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["share of the speed alone"] = {
        name: {
            "million stores/s": rate,
            "share": rate / found["alone"],
            "million stores per s of its own time": own_time[name],
            "share of that": own_time[name] / own_time["alone"],
        }
        for name, rate in found.items()
    }
    result.ask(
        "at least 0.95 of the speed alone", result.ratio["the program alone"], lambda share: share >= 0.95
    )
    result.notes.append("the destination lies in the same memory; over a network it would cost less here")
    return result


def _rate(region: Path, pid: int, seconds: float) -> tuple[float, float]:
    """Million stores of the program that maps the region, per second, and per second of its processor time."""
    with region.open("rb") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ) as page:
        begun, used, before = time.perf_counter(), _processor_s(pid), struct.unpack_from("<Q", page)[0]
        time.sleep(seconds)
        spent, busy = time.perf_counter() - begun, _processor_s(pid) - used
        stores = (struct.unpack_from("<Q", page)[0] - before) / 1e6
    return stores / spent, stores / max(busy, 0.01)


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _running(words: list[str], env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        words, env={**os.environ, **env}, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def _shipping(region: Path, saved: Path, group: int, way: str) -> Iterator[None]:
    """A pre-copier at its default rates, from the moment when it has copied everything once."""
    status = region.with_name("region.region.json")
    words = [
        *(sys.executable, "-m", "sustain.cli", "ship", "--region", str(region), "--region-name", "bench"),
        *("--region-uuid", _UUID, "--epoch", "1", "--name", "bench", "--peer", f"file://{saved}"),
        *("--pids-of", str(group), "--track", way),
    ]
    with ExitStack() as stack:
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGTERM)
        deadline = time.monotonic() + 300
        copied = region.stat().st_size
        while True:
            found = read_json(status) or {}
            sent = [
                each["sent_bytes"] for each in found.get("destinations", []) if found["pid"] == process.pid
            ]
            if sent and min(sent) >= copied:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the pre-copier does not get on")
            time.sleep(0.05)
        yield
