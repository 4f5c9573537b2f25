"""LMDB as a key-value peer: writable map, no sync, no read-ahead, one write transaction per update.

That is its fastest documented set-up, and what it promises then is what `memory` durability promises: a
commit survives the death of the process.
"""

import time
from pathlib import Path

import lmdb

from bench.peers.workload import VALUE_SIZE, Updates, Workload


class LmdbMap:
    """An environment in directory `path`, filled with the workload's keys."""

    def __init__(
        self, path: Path, keys: list[bytes], value_size: int = VALUE_SIZE, map_size: int = 1 << 30
    ) -> None:
        self.environment = lmdb.open(
            str(path),
            map_size=map_size,
            writemap=True,
            sync=False,
            metasync=False,
            map_async=True,
            readahead=False,
        )
        ordered = sorted(keys)
        with self.environment.begin(write=True) as transaction:
            cursor = transaction.cursor()
            cursor.putmulti([(key, bytes(value_size)) for key in ordered], append=True)

    @classmethod
    def of(cls, path: Path, work: Workload) -> "LmdbMap":
        return cls(path, work.keys)

    def run(self, updates: Updates) -> float:
        """Seconds for one commit per update."""
        begin = self.environment.begin
        begun = time.perf_counter()
        for key, value in updates:
            transaction = begin(write=True)
            transaction.put(key, value)
            transaction.commit()
        return time.perf_counter() - begun

    def run_batch(self, updates: Updates) -> float:
        """Seconds for all updates in one commit."""
        begun = time.perf_counter()
        with self.environment.begin(write=True) as transaction:
            put = transaction.put
            for key, value in updates:
                put(key, value)
        return time.perf_counter() - begun

    def close(self) -> None:
        self.environment.close()
