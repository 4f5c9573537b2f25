"""SQLite as a key-value peer: WAL, autocommit, one prepared UPDATE by primary key (a WITHOUT ROWID table).

`synchronous=OFF` for `memory` durability, `FULL` for `disk`. The statement cache of the standard module
keeps the statement prepared; each thread has its own connection, as SQLite asks.
"""

import sqlite3
import time
from functools import partial
from pathlib import Path

from bench.peers.ours import timed_threads
from bench.peers.workload import VALUE_SIZE, Updates, Workload

UPDATE = "UPDATE entries SET value = ? WHERE key = ?"


class SqliteMap:
    """A database at `path`, filled with the workload's keys."""

    def __init__(self, path: Path, work: Workload, synchronous: str) -> None:
        self.path, self.synchronous = path, synchronous
        self.connection = self.connect()
        self.connection.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self.connection.execute("BEGIN")
        self.connection.executemany(
            "INSERT INTO entries VALUES (?, ?)", [(key, bytes(VALUE_SIZE)) for key in work.keys]
        )
        self.connection.execute("COMMIT")

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self.synchronous}")
        return connection

    def run(self, updates: Updates) -> float:
        """Seconds for one commit per update."""
        return self._run(self.connection, updates)

    def run_threads(self, updates: Updates, threads: int) -> float:
        """Seconds for one commit per update, dealt out over threads with a connection each."""
        connections = [self.connect() for _ in range(threads)]
        try:
            return timed_threads(
                [
                    partial(self._run, connection, updates[n::threads])
                    for n, connection in enumerate(connections)
                ]
            )
        finally:
            for connection in connections:
                connection.close()

    @staticmethod
    def _run(connection: sqlite3.Connection, updates: Updates) -> float:
        execute = connection.execute
        begun = time.perf_counter()
        for key, value in updates:
            execute(UPDATE, (value, key))
        return time.perf_counter() - begun

    def close(self) -> None:
        self.connection.close()
