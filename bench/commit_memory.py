"""One 64-byte map update + commit from Python, `memory` durability: what does it cost?

Compared: the same 16-byte keys and 64-byte values, in the same random order, one commit each,
everything on tmpfs.
- LMDB: writable map, sync off. SQLite: WAL, synchronous=OFF, prepared statement. Both from Python, as
  we are.
- libpmemobj: from C, the value found by index. See `peers/pmemobj.py` for its set-ups. Equal: a commit
  that returned survives the death of the process and not more. Not equal: ours leaves behind a log that
  a replica can follow; the peers don't. libpmemobj has no interpreter to pass and no key to look up.
"""

import operator
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from bench.harness import Answer, interleave, medians, memory_dir
from bench.peers import pmemobj
from bench.peers.lmdb_map import LmdbMap
from bench.peers.ours import OurMap
from bench.peers.sqlite import SqliteMap
from bench.peers.workload import Workload

QUESTION = "one 64-byte map update + commit from Python, memory durability"


def answer(quick: bool = False) -> Answer:
    """Microseconds of one update with its commit."""
    count, rounds = (500, 3) if quick else (60_000, 15)
    work = Workload()
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        ours = OurMap(directory / "ours.sus", work, "memory")
        stack.callback(ours.close)
        sqlite = SqliteMap(directory / "sqlite.db", work, "OFF")
        stack.callback(sqlite.close)
        lmdb = LmdbMap.of(directory / "lmdb", work)
        stack.callback(lmdb.close)
        contenders: dict[str, Callable[[], float]] = {
            "sustain": lambda: ours.run(work.updates(count)) / count * 1e6,
            "LMDB": lambda: lmdb.run(work.updates(count)) / count * 1e6,
            "SQLite": lambda: sqlite.run(work.updates(count)) / count * 1e6,
        }
        try:
            program = pmemobj.build(directory)
            for name, setup in pmemobj.SETUPS.items():
                peer = pmemobj.PmemobjMap(program, directory / f"{name}.pool", setup)
                contenders[name] = partial(peer.run, count)
        except pmemobj.PeerMissing as error:
            missing["libpmemobj"] = str(error)

        # Until our log has gone round, so that all of its pages are mapped; the same for all: page faults and caches
        # are not what is asked.
        for contender in list(contenders.values()) * (1 if quick else 7):
            contender()
        found = medians(interleave(rounds, contenders))
        log_bytes = ours.log_bytes(work.updates(100))

    result = Answer(
        question=QUESTION,
        unit="µs/commit",
        ours=found.pop("sustain"),
        peers={**found, **dict.fromkeys(missing)},
        limit={},
        runs=rounds,
        missing=missing,
        quick=quick,
    )
    for name, bound, text in (
        ("LMDB", 1 / 3, "at least 3x faster than LMDB (ours / LMDB ≤ 0.333)"),
        ("SQLite", 1 / 10, "at least 10x faster than SQLite (ours / SQLite ≤ 0.1)"),
        ("libpmemobj", 1.0, "no slower than libpmemobj from C (ours / libpmemobj ≤ 1)"),
    ):
        value = None
        with suppress(KeyError):
            value = result.ratio[name]
        result.ask(text, value, partial(operator.ge, bound))
    result.details["log"] = {"bytes of log for one update": log_bytes}
    result.notes = [
        "libpmemobj is C and finds its entry by index; the Python contenders look a key up",
        "'no flush' leaves cache lines unwritten, all that memory durability needs; 'msync' is the default",
    ]
    return result
