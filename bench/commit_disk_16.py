"""The same update + commit, `disk` durability, 16 threads: do they share flushes?

Our 16 threads change the same map and call commit; a commit that finds a flush under way joins the next
one. The reach compares with our own rate with one thread, in the same rounds. Peers with 16 threads:
raw writers that share nothing but the file, each with its own `fdatasync` (what a kernel makes of it by
itself), and SQLite FULL with a connection each (one writer at a time, by its design). The Python of all
of them holds one interpreter lock.
"""

from collections.abc import Callable
from contextlib import ExitStack

from bench.commit_disk_1 import LOG_SIZE
from bench.harness import Answer, disk_dir, filesystem_of, interleave, medians
from bench.peers.ours import OurMap
from bench.peers.raw import RawLog
from bench.peers.sqlite import SqliteMap
from bench.peers.workload import Workload

QUESTION = "the same with 16 threads that share flushes"
THREADS = 16


def answer(quick: bool = False) -> Answer:
    """Commits per second."""
    # Long enough that threads beginning and ending count for little; SQLite is too slow for as many.
    count, rounds = (THREADS * 2, 3) if quick else (THREADS * 400, 11)
    alone, slow = max(10, count // 6), min(count, THREADS * 10)
    work = Workload()
    with ExitStack() as stack:
        directory = stack.enter_context(disk_dir())
        ours = OurMap(directory / "ours.sus", work, "disk", log_size="64MiB")
        stack.callback(ours.close)
        raw = RawLog(directory / "raw", 4 << 20 if quick else LOG_SIZE, ours.log_bytes(work.updates(100)))
        stack.callback(raw.close)
        sqlite = SqliteMap(directory / "sqlite.db", work, "FULL")
        stack.callback(sqlite.close)
        contenders: dict[str, Callable[[], float]] = {
            "sustain": lambda: count / ours.run_threads(work.updates(count), THREADS),
            "one thread": lambda: alone / ours.run(work.updates(alone)),
            "raw": lambda: count / raw.run_threads(count, THREADS),
            "SQLite": lambda: slow / sqlite.run_threads(work.updates(slow), THREADS),
        }
        for contender in contenders.values():
            contender()
        found = medians(interleave(rounds, contenders))
        filesystem = filesystem_of(directory)

    result = Answer(
        question=QUESTION,
        unit="commits/s",
        ours=found["sustain"],
        peers={
            "sustain, one thread": found["one thread"],
            "pwrite+fdatasync, 16 threads": found["raw"],
            "SQLite WAL FULL, 16 threads": found["SQLite"],
        },
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.ask(
        "at least 6x the one-thread rate", result.ratio["sustain, one thread"], lambda ratio: ratio >= 6
    )
    result.details["file"] = {"file system": filesystem}
    return result
