"""Random work on a database in a store and on one of SQLite's own, in memory: after each step they hold the same.

Transactions, savepoints and rollbacks of all sizes beside a cache of a few pages, so that most of them spill; VACUUM,
page sizes, reopened connections, and the store's own commits and rollbacks between them.
"""

import random

import apsw
import pytest

import sustain
from tests.crash.processes import rounds, seed

STEPS = 60


class Twins:
    """The database in `store`, and the model."""

    def __init__(self, store: sustain.Store, dice: random.Random) -> None:
        self.store, self.dice = store, dice
        self.model = apsw.Connection(":memory:")
        self.ours = self.opened()
        self.depth = 0
        self.both("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c BLOB); CREATE INDEX by_b ON t (b)")

    def opened(self) -> apsw.Connection:
        connection = self.store.sqlite("main.db")
        connection.pragma("cache_size", self.dice.choice([1, 5, 50]))
        if self.dice.random() < 0.3:
            connection.pragma("journal_mode", self.dice.choice(["delete", "truncate", "persist"]))
        if self.dice.random() < 0.3:
            connection.pragma("locking_mode", "exclusive")
        connection.pragma("synchronous", self.dice.choice(["off", "normal", "full"]))
        return connection

    def both(self, statement: str, *bindings: object) -> None:
        for connection in (self.ours, self.model):
            connection.execute(statement, bindings or None)  # type: ignore[arg-type]

    def change(self) -> None:
        first, many = self.dice.randrange(500), self.dice.choice([1, 1, 5, 100])
        content = self.dice.randbytes(self.dice.choice([0, 10, 500, 3000, 20_000]))
        match self.dice.randrange(4):
            case 0:
                self.both(
                    "WITH RECURSIVE n(x) AS (SELECT ?1 UNION ALL SELECT x + 1 FROM n WHERE x < ?1 + ?2 - 1) "
                    "INSERT OR REPLACE INTO t SELECT x, x * 7 % 31, ?3 FROM n",
                    *(first, min(many, 30), content),
                )
            case 1:
                self.both("UPDATE t SET b = b + 1 WHERE a >= ? AND a < ?", first, first + many)
            case 2:
                self.both(
                    "UPDATE t SET c = CAST(substr(c, 1, length(c) / 2) || 'x' AS BLOB) WHERE a % 3 = ?",
                    first % 3,
                )
            case 3:
                self.both("DELETE FROM t WHERE a >= ? AND a < ?", first, first + many)

    def end(self) -> None:
        """Of the transaction or of a savepoint of it."""
        keep = self.dice.random() < 0.5
        self.depth -= 1
        if self.depth:
            if not keep:
                self.both(f"ROLLBACK TO s{self.depth}")
            self.both(f"RELEASE s{self.depth}")
        else:
            self.both("COMMIT" if keep else "ROLLBACK")

    def step(self) -> None:
        kind = self.dice.random()
        if kind < 0.55:
            self.change()
        elif kind < 0.7:
            self.both(f"SAVEPOINT s{self.depth}" if self.depth else "BEGIN")
            self.depth += 1
        elif kind < 0.85 and self.depth:
            self.end()
        elif kind < 0.9:
            self.store.map("beside")[b"k"] = self.dice.randbytes(8)
            (self.store.commit if self.dice.random() < 0.5 else self.store.rollback)()
        elif not self.depth:
            self.alone()

    def alone(self) -> None:
        """What is not for the middle of a transaction."""
        if self.dice.random() < 0.5:
            self.ours.pragma("page_size", self.dice.choice([512, 4096, 16_384]))
            self.ours.execute("VACUUM")
        else:
            self.ours.close()
            self.ours = self.opened()

    def check(self) -> None:
        query = "SELECT * FROM t ORDER BY a"
        assert self.ours.execute(query).get == self.model.execute(query).get


@pytest.mark.parametrize("number", range(rounds(12)))
def test_the_same_as_sqlite_by_itself(store: sustain.Store, number: int) -> None:
    chosen = seed() + number
    print(f"SUSTAIN_CRASH_SEED={chosen}, the first")
    twins = Twins(store, random.Random(chosen))
    for _ in range(STEPS):
        twins.step()
        twins.check()
    while twins.depth:
        twins.end()
    twins.check()
    assert twins.ours.pragma("integrity_check") == "ok"
    twins.ours.close()
    with sustain.open(store.path, readonly=True) as reader:
        twins.ours = reader.sqlite("main.db")
        twins.check()
        twins.ours.close()
