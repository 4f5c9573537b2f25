"""Shipping to one loopback peer, steady: what part of raw loopback TCP?

A store's log is filled and pinned, the writer is killed; then `sustain ship` sends it all to a `sustain
receive` that has the store as it was before. Both are on tmpfs, both are the processes that an operator
starts. Timed from the first byte acknowledged to the last, so that the start of the processes is not in
it. Peer: two processes, one sends a buffer of the same size (the shipper's chunk) again and again, the
other receives it and throws it away. Not equal, and in the peer's favour: ours verifies every record,
copies it into a ring log, applies it to the image, and acknowledges. *array* is a log of whole pages,
the one judged; *map* a log of small commits.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.harness import Answer, interleave, medians, memory_dir
from bench.hosts import Started, Writer, acked, receiver, shipper, streaming, until
from bench.peers.raw import RawTcp

QUESTION = "shipping to one loopback peer, steady, GB/s"
CHUNK = 1 << 20


class Backlog:
    """A store and its replica at the same position; each `ship` makes a backlog and times its way over."""

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        what: str,
        log_bytes: int,
        name: str = "",
        ours: tuple[str, ...] = (),
        theirs: tuple[str, ...] = (),
    ) -> None:
        """`ours` and `theirs` are options of `ship` and `receive`: credentials."""
        from sustain._native import Control, Engine

        self.what, self.log_bytes, self.options = what, log_bytes, ours
        name = name or what
        self.here = directory / f"{name}.sus"
        Engine.format(str(self.here), 2 * log_bytes, log_bytes, "memory")
        self.control: Any = Control(str(self.here))
        stack.callback(self.control.close)
        self.receiving, self.port = receiver(directory / f"{name}-there.sus", "memory", *theirs)
        stack.enter_context(self.receiving)

    def shipper(self) -> Started:
        return shipper(self.here, self.port, "--chunk", str(CHUNK), *self.options)

    def ship(self) -> float:
        """GB/s of log from the first acknowledgement to the last."""
        control = self.control
        with Writer(self.what, self.here, str(self.log_bytes * 3 // 4)) as writer:
            writer.ready()
            with self.shipper() as shipping:  # the replica has all that lies before the backlog
                until(
                    lambda: streaming(control) and acked(control) >= committed(control),
                    shipping,
                    self.receiving,
                )
            begin = committed(control)
            writer.go()
            writer.ready()
        end = committed(control)
        with self.shipper() as shipping:
            until(lambda: acked(control) > begin, shipping, self.receiving)
            first, begun = acked(control), time.perf_counter()
            until(lambda: acked(control) >= end, shipping, self.receiving)
            spent = time.perf_counter() - begun
            if control.destinations()[0]["snapshot_total_bytes"]:
                raise RuntimeError("the backlog went over as a snapshot, not as log")
        return (end - first) / spent / 1e9


def committed(control: Any) -> int:
    position: int = control.words()["committed"]
    return position


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    log_bytes, rounds = (32 << 20, 2) if quick else (512 << 20, 7)
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        array, small = (
            Backlog(stack, directory, "array", log_bytes),
            Backlog(stack, directory, "map", log_bytes // 4),
        )
        raw = RawTcp(CHUNK, log_bytes)
        stack.callback(raw.close)
        for backlog in (array, small):  # twice: steady means that the rings and images have their memory
            backlog.ship()
            backlog.ship()
        found = medians(
            interleave(rounds, {"array": array.ship, "map": small.ship, "raw": lambda: raw.run() / 1e9})
        )
    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=found["array"],
        peers={},
        limit={"raw loopback TCP": found["raw"]},
        runs=rounds,
        quick=quick,
    )
    result.details["logs"] = {
        "whole pages": {"GB/s": found["array"]},
        "small commits": {"GB/s": found["map"]},
    }
    result.ask(
        "at least 60% of raw loopback TCP", result.ratio["raw loopback TCP"], lambda ratio: ratio >= 0.6
    )
    return result
