"""One 64-byte map update + commit, `disk` durability, one thread: how far above the raw cost?

Compared, in the same directory: `pwrite` + `fdatasync` of as many bytes as our commit adds to its log,
onto a file of the log's size that was written through before (no block is allocated any more), called
from Python as ours is; SQLite in WAL with synchronous=FULL. Equal: a commit that returned survives a
power failure. Not equal: the raw writer keeps no structure at all; that is why it is called a limit.
"""

from collections.abc import Callable
from contextlib import ExitStack

from bench.harness import Answer, disk_dir, filesystem_of, interleave, medians
from bench.peers.ours import OurMap
from bench.peers.raw import RawLog
from bench.peers.sqlite import SqliteMap
from bench.peers.workload import Workload

QUESTION = "one 64-byte map update + commit from Python, disk durability, one thread"
LOG_SIZE = 64 << 20


def answer(quick: bool = False) -> Answer:
    """Microseconds of one update with its commit."""
    count, rounds = (20, 3) if quick else (250, 21)
    work = Workload()
    with ExitStack() as stack:
        directory = stack.enter_context(disk_dir())
        ours = OurMap(directory / "ours.sus", work, "disk", log_size="64MiB")
        stack.callback(ours.close)
        log_bytes = ours.log_bytes(work.updates(100))
        raw = RawLog(directory / "raw", 4 << 20 if quick else LOG_SIZE, log_bytes)
        stack.callback(raw.close)
        sqlite = SqliteMap(directory / "sqlite.db", work, "FULL")
        stack.callback(sqlite.close)
        contenders: dict[str, Callable[[], float]] = {
            "sustain": lambda: ours.run(work.updates(count)) / count * 1e6,
            "raw": lambda: raw.run(count) / count * 1e6,
            "SQLite": lambda: sqlite.run(work.updates(count)) / count * 1e6,
        }
        for contender in contenders.values():
            contender()
        found = medians(interleave(rounds, contenders))
        filesystem = filesystem_of(directory)

    result = Answer(
        question=QUESTION,
        unit="µs/commit",
        ours=found["sustain"],
        peers={"SQLite WAL FULL": found["SQLite"]},
        limit={"pwrite+fdatasync": found["raw"]},
        runs=rounds,
        quick=quick,
    )
    result.ask(
        "at most 1.15x the raw cost (ours / raw)",
        result.ratio["pwrite+fdatasync"],
        lambda ratio: ratio <= 1.15,
    )
    result.details["file"] = {"file system": filesystem, "bytes of log for one update": log_bytes}
    return result
