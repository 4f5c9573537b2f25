"""The drain at an outage: what part of the link does it use?

A store's log is full of what its replica lacks, its writer is killed; `sustain ship --until-drained`, the process
that brings it away, sends it over a link of 1 Gbit/s (loopback behind tc tbf) to a `sustain receive` that verifies
and applies it. Timed from the first byte acknowledged to the last. Limit: raw TCP over the same link, one buffer sent
again and again, and thrown away by the other side.
"""

from contextlib import ExitStack

from bench.harness import Answer, interleave, medians, memory_dir
from bench.links import throttled_loopback
from bench.peers.raw import RawTcp
from bench.ship_throughput import CHUNK, Backlog

QUESTION = "draining a store over a link of 1 Gbit/s, MB/s"
LINK_BITS_PER_S = 1_000_000_000


def answer(quick: bool = False) -> Answer:
    """MB/s."""
    log_bytes, rounds = (32 << 20, 1) if quick else (256 << 20, 3)
    try:
        with ExitStack() as stack:
            stack.enter_context(throttled_loopback(LINK_BITS_PER_S))
            directory = stack.enter_context(memory_dir())
            backlog = Backlog(stack, directory, "array", log_bytes)
            raw = RawTcp(CHUNK, log_bytes // 2)
            stack.callback(raw.close)
            backlog.ship()  # the rings and images have their memory
            found = medians(
                interleave(rounds, {"ours": lambda: backlog.ship() * 1e3, "raw": lambda: raw.run() / 1e6})
            )
    except OSError as error:
        nothing = Answer(QUESTION, "MB/s", None, {}, {}, 0, quick=quick)
        nothing.missing["a throttled link"] = str(error)
        nothing.ask("at least 80% of the link", None, lambda ratio: ratio >= 0.8)
        return nothing
    result = Answer(
        question=QUESTION,
        unit="MB/s",
        ours=found["ours"],
        peers={},
        limit={"raw TCP on this link": found["raw"], "the link": LINK_BITS_PER_S / 8e6},
        runs=rounds,
        quick=quick,
    )
    result.notes.append("bytes of log; TCP, IP and frame headers take about 0.1% of loopback's large packets")
    result.ask("at least 80% of the link", result.ratio["the link"], lambda ratio: ratio >= 0.8)
    return result
