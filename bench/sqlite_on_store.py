"""SQLite on a store against plain SQLite: what do its transactions cost, alone and with a copy elsewhere?

The same transactions like TPC-B's, the same binding (apsw), page size and cache, in the same directory, each on the
disk when its COMMIT returns:
- *ours*: `store.sqlite`, `disk` durability; *ours, shipped*: with `sustain ship` to a `sustain receive` on this
  machine, which has each transaction a moment later, on the disk too.
- *WAL FULL*: SQLite with journal_mode=WAL, synchronous=FULL; *WAL FULL, copied*: while another process makes one
  copy of the database by SQLite's online backup, on the disk as well. It has the transactions of one moment of the
  round; what came after it is lost with the host.
- *DELETE FULL*: SQLite as it is without being asked.

Not equal: with plain SQLite several processes may write. The receiver flushes each transaction to the same disk, which
a second host would do on its own; the backup is flushed once. Ours writes only what differs, and its file system calls
are Python's.
"""

import random
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import apsw

from bench.harness import Answer, disk_dir, filesystem_of, interleave, medians
from bench.hosts import receiver, shipper, streaming, until
from bench.peers import tpcb

QUESTION = "SQLite's transactions on a store, against plain SQLite and against a copying backup"


def plain(path: Path, journal_mode: str) -> apsw.Connection:
    """A filled database, as SQLite has it."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", journal_mode)
    connection.pragma("synchronous", "full")
    return connection


def answer(quick: bool = False) -> Answer:
    """Microseconds of one transaction."""
    import sustain
    from sustain._native import Control

    count, rounds, accounts = (100, 2, 10_000) if quick else (2_000, 11, tpcb.ACCOUNTS)
    dice = random.Random(1)
    copies: list[float] = []
    lags: list[float] = []
    with ExitStack() as stack:
        directory = stack.enter_context(disk_dir())
        here = directory / "here.sus"
        store = sustain.create(here, size="256MiB", log_size="64MiB", durability="disk")
        stack.callback(store.close)
        control = Control(str(here))
        stack.callback(control.close)
        receiving, port = receiver(directory / "there.sus", "disk")
        stack.enter_context(receiving)
        connections = {
            "ours": store.sqlite("main.db"),
            "WAL FULL": plain(directory / "wal.db", "wal"),
            "DELETE FULL": plain(directory / "delete.db", "delete"),
        }
        for connection in connections.values():
            stack.callback(connection.close)
            tpcb.fill(connection, accounts)
        backup = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "bench.peers.tpcb", directory / "wal.db", directory / "copy.db"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(backup.terminate)

        def timed(name: str) -> float:
            return tpcb.run(connections[name], count, dice, accounts) / count * 1e6

        def copied() -> float:
            assert backup.stdin is not None
            assert backup.stdout is not None
            backup.stdin.write("copy\n")
            backup.stdin.flush()
            spent = timed("WAL FULL")
            copies.append(float(backup.stdout.readline()) * 1e3)
            return spent

        def shipped() -> float:
            with shipper(here, port) as shipping:
                until(lambda: streaming(control), shipping, receiving)
                spent = timed("ours")
                lags.extend(
                    each.lag_s * 1e3 for each in store.status().destinations if each.lag_s is not None
                )
                return spent

        contenders = {
            "ours": lambda: timed("ours"),
            "ours, shipped": shipped,
            "WAL FULL": lambda: timed("WAL FULL"),
            "WAL FULL, copied": copied,
            "DELETE FULL": lambda: timed("DELETE FULL"),
        }
        for contender in contenders.values():
            contender()
        before = store.position
        timed("ours")
        log_bytes = (store.position - before) / count
        found = medians(interleave(rounds, contenders))
        for name, connection in connections.items():
            assert tpcb.balanced(connection), f"{name}: the sums do not agree"
        pages = connections["ours"].pragma("page_count")
        filesystem = filesystem_of(directory)

    result = Answer(
        question=QUESTION,
        unit="µs/transaction",
        ours=found["ours"],
        peers={name: found[name] for name in ("WAL FULL", "DELETE FULL")},
        limit={},
        runs=rounds,
        quick=quick,
    )
    shipped_ratio = found["ours, shipped"] / found["WAL FULL, copied"]
    result.ask("at most 1.15x WAL FULL", result.ratio["WAL FULL"], lambda ratio: ratio <= 1.15)
    result.ask("shipped, at most WAL FULL beside a copying backup", shipped_ratio, lambda ratio: ratio <= 1)
    result.details["with a copy elsewhere (µs/transaction)"] = {
        "ours, shipped": found["ours, shipped"],
        "WAL FULL, copied": found["WAL FULL, copied"],
        "ratio": shipped_ratio,
        "behind at the end of a round, ours (ms)": statistics.median(lags),
        "one copy takes (ms)": statistics.median(copies),
    }
    result.details["what was written"] = {
        "file system": filesystem,
        "database (MB)": pages * 4096 / 1e6,
        "transactions a round": count,
        "bytes of log for a transaction": log_bytes,
    }
    result.notes.append("what came after its moment a copying backup lacks, until the next one")
    return result
