"""Our own side of the key-value questions: a map in a store, one commit per update."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.workload import VALUE_SIZE, Updates, Workload


class OurMap:
    """A store at `path` with one map, filled with the workload's keys."""

    def __init__(
        self, path: Path, work: Workload, durability: str, size: str = "64MiB", log_size: str = "64MiB"
    ) -> None:
        import sustain

        self.store: Any = sustain.create(str(path), size=size, log_size=log_size, durability=durability)
        self.map: Any = self.store.map("bench")
        for key in work.keys:
            self.map[key] = bytes(VALUE_SIZE)
        self.position: int = self.store.commit()

    def run(self, updates: Updates) -> float:
        """Seconds for one commit per update."""
        entries, commit = self.map, self.store.commit
        begun = time.perf_counter()
        for key, value in updates:
            entries[key] = value
            commit()
        return time.perf_counter() - begun

    def run_each(self, updates: Updates) -> list[int]:
        """Nanoseconds of each update with its commit, sorted."""
        entries, commit, clock = self.map, self.store.commit, time.perf_counter_ns
        spent = [0] * len(updates)
        for number, (key, value) in enumerate(updates):
            begun = clock()
            entries[key] = value
            commit()
            spent[number] = clock() - begun
        spent.sort()
        return spent

    def run_threads(self, updates: Updates, threads: int) -> float:
        """Seconds for one commit per update, the updates dealt out over `threads` threads."""
        return timed_threads([partial(self.run, updates[n::threads]) for n in range(threads)])

    def log_bytes(self, updates: Updates) -> int:
        """Log bytes that one update with its commit takes (the least of a few: page sums may join in)."""
        sizes: list[int] = []
        for key, value in updates[:100]:
            self.map[key] = value
            position = self.store.commit()
            sizes.append(position - self.position)
            self.position = position
        return min(sizes[1:])

    def close(self) -> None:
        self.store.close()


def timed_threads(jobs: list[Callable[[], object]]) -> float:
    """Seconds from the first job's begin to the last one's end, each in a thread. A job's error is raised.

    The threads themselves look at the clock: whoever waits for them may get the interpreter lock late.
    """
    barrier = threading.Barrier(len(jobs))
    spans: list[tuple[float, float]] = []
    errors: list[Exception] = []

    def body(job: Callable[[], object]) -> None:
        try:
            barrier.wait()
            begun = time.perf_counter()
            job()
            spans.append((begun, time.perf_counter()))
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=body, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return max(end for _, end in spans) - min(begin for begin, _ in spans)
