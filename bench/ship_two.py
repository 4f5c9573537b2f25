"""Commit latency with two destinations: how much does the application notice of them?

As `commit_with_shipper`, with two receivers on the same machine and one `sustain ship` for both: the same store, the
same updates, each commit timed by itself, in turns with two destinations, with one, and with none. `memory`
durability on tmpfs, where a commit is shortest and a shipper's touch shows most. The writer goes *paced*, one commit
each 20 µs, and *flat out*, which on a machine of few processors also measures the fight for them: four processes
beside the writer. Both are judged.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commit_with_shipper import paced
from bench.harness import Answer, interleave, medians, memory_dir, percentile
from bench.hosts import receiver, shipper, until
from bench.peers.ours import OurMap
from bench.peers.workload import Workload

if TYPE_CHECKING:
    from sustain._native import Control

QUESTION = "commit latency with two destinations, against none"
REACH = 1.15
COUNTS = {"two": 2, "one": 1, "none": 0}


def all_streaming(control: "Control", count: int) -> bool:
    """Whether so many destinations take the log as it comes."""
    return sum(each["state"] == "streaming" for each in control.destinations()) == count


def answer(quick: bool = False) -> Answer:
    """Microseconds, median of the commits, paced."""
    from sustain._native import Control

    count, rounds = (500, 2) if quick else (50_000, 9)
    work = Workload()
    tails: dict[str, list[float]] = {}
    with ExitStack() as stack:
        directory: Path = stack.enter_context(memory_dir())
        here = directory / "here.sus"
        ours = OurMap(here, work, "memory", log_size="256MiB")
        stack.callback(ours.close)
        control = Control(str(here))
        stack.callback(control.close)
        receivers = [receiver(directory / f"there{number}.sus") for number in range(2)]
        for receiving, _ in receivers:
            stack.enter_context(receiving)

        def measure(name: str) -> float:
            updates = work.updates(count)
            spent = paced(ours, updates) if name.startswith("paced") else ours.run_each(updates)
            tails.setdefault(name, []).append(percentile(spent, 99) / 1e3)
            return percentile(spent, 50) / 1e3

        def attached(name: str, destinations: int) -> float:
            if destinations == 0:
                return measure(name)
            ports = [port for _, port in receivers[:destinations]]
            others = [word for port in ports[1:] for word in ("--peer", f"tcp://127.0.0.1:{port}")]
            with shipper(here, ports[0], *others) as shipping:
                until(lambda: all_streaming(control, destinations), shipping)
                return measure(name)

        names = {f"{how} {name}": held for how in ("paced", "flat out") for name, held in COUNTS.items()}
        measure("warm-up")
        found = medians(
            interleave(rounds, {name: lambda n=name, h=held: attached(n, h) for name, held in names.items()})
        )
    tail = medians(tails)
    result = Answer(
        question=QUESTION,
        unit="µs, p50",
        ours=found["paced two"],
        peers={"one destination": found["paced one"], "none": found["paced none"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["percentiles (µs)"] = {name: {"p50": found[name], "p99": tail[name]} for name in names}
    for how in ("paced", "flat out"):
        ratio = found[f"{how} two"] / found[f"{how} none"]
        result.ask(f"p50 at most {REACH}x that without any, {how}", ratio, lambda ratio: ratio <= REACH)
    return result
