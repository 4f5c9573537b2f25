"""Commit latency with a shipper attached: how much does the application notice?

The same store, the same updates, each commit timed by itself, in turns: with `sustain ship` and
`sustain receive` running on the same machine, and without either. `memory` durability on tmpfs, where a
commit is shortest and the shipper's touch shows most. The writer goes *flat out* (judged), which on a
machine of few processors also measures the fight for them, and *paced*, one commit each 20 µs.
"""

import time
from contextlib import ExitStack

from bench.harness import Answer, interleave, medians, memory_dir, percentile
from bench.hosts import receiver, shipper, streaming, until
from bench.peers.ours import OurMap
from bench.peers.workload import Updates, Workload

QUESTION = "commit latency with a shipper attached, against without"
PACE_NS = 20_000


def paced(ours: OurMap, updates: Updates) -> list[int]:
    """Nanoseconds of each update with its commit, one begun each `PACE_NS`; sorted."""
    entries, commit, clock = ours.map, ours.store.commit, time.perf_counter_ns
    spent = []
    due = clock()
    for key, value in updates:
        due += PACE_NS
        while clock() < due:
            pass
        begun = clock()
        entries[key] = value
        commit()
        spent.append(clock() - begun)
    spent.sort()
    return spent


def answer(quick: bool = False) -> Answer:
    """Microseconds, median of the commits."""
    from sustain._native import Control

    count, rounds = (500, 2) if quick else (50_000, 11)
    work = Workload()
    tails: dict[str, list[float]] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        here = directory / "here.sus"
        ours = OurMap(here, work, "memory", log_size="256MiB")
        stack.callback(ours.close)
        control = Control(str(here))
        stack.callback(control.close)
        receiving, port = receiver(directory / "there.sus")
        stack.enter_context(receiving)

        def measure(name: str) -> float:
            updates = work.updates(count)
            spent = paced(ours, updates) if name.startswith("paced") else ours.run_each(updates)
            tails.setdefault(name, []).append(percentile(spent, 99) / 1e3)
            return percentile(spent, 50) / 1e3

        def attached(name: str) -> float:
            with shipper(here, port) as shipping:
                until(lambda: streaming(control), shipping, receiving)
                return measure(name)

        contenders = {
            "with": lambda: attached("with"),
            "without": lambda: measure("without"),
            "paced with": lambda: attached("paced with"),
            "paced without": lambda: measure("paced without"),
        }
        measure("warm-up")
        found = medians(interleave(rounds, contenders))
    tail = medians(tails)
    result = Answer(
        question=QUESTION,
        unit="µs, p50",
        ours=found["with"],
        peers={"without a shipper": found["without"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["percentiles (µs)"] = {
        name: {"p50": found[name], "p99": tail[name]}
        for name in ("with", "without", "paced with", "paced without")
    }
    ratio = result.ratio["without a shipper"]
    result.ask("p50 at most 1.15x that without one, flat out", ratio, lambda ratio: ratio <= 1.15)
    result.ask(
        "p50 at most 1.15x, paced", found["paced with"] / found["paced without"], lambda ratio: ratio <= 1.15
    )
    return result
