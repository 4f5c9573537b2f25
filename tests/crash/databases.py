"""Numbered SQLite transactions whose whole effect can be recomputed: the oracle of the kills under SQLite.

`transaction(n, connection)` runs on a database in a store and, with an in-memory SQLite below, on the model. So a
database that says it has seen *n* is compared whole with what *n* must be; SQLite's own check looks at the rest.
"""

import contextlib

import apsw

import sustain

NAME = "main.db"
OTHER = "other.db"
ACCOUNTS = 200


def prepare(connection: apsw.Connection, other: str) -> None:
    """Attach the second database, and make the tables where there are none, in one transaction (number 0)."""
    connection.execute("ATTACH ? AS other", (other,))
    connection.pragma("cache_size", 8)  # pages: what is larger spills before its commit
    with connection:
        connection.execute("""
            CREATE TABLE IF NOT EXISTS seen (n INTEGER PRIMARY KEY);
            CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT);
            CREATE INDEX IF NOT EXISTS by_balance ON account (balance);
            CREATE TABLE IF NOT EXISTS piece (n INTEGER PRIMARY KEY, content BLOB);
            CREATE TABLE IF NOT EXISTS other.seen (n INTEGER PRIMARY KEY);
        """)


def transaction(n: int, connection: apsw.Connection) -> None:
    """Numbers, rows that come, change and go, pieces from nothing to 100 KB; some over both databases."""
    with connection:
        connection.execute("INSERT INTO main.seen VALUES (?)", (n,))
        connection.execute("DELETE FROM main.seen WHERE n <= ?", (n - 300,))
        connection.execute(
            "INSERT INTO account VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET balance = balance + excluded.balance, note = excluded.note",
            (n * 7919 % ACCOUNTS, n % 1000, f"note {n}" * (n % 40)),
        )
        connection.execute(
            "INSERT INTO piece VALUES (?, zeroblob(?))", (n, n * 31 % 2003 * (50 if n % 7 == 0 else 1))
        )
        connection.execute("DELETE FROM piece WHERE n <= ?", (n - 40,))
        if n % 29 == 0:
            connection.execute("UPDATE account SET balance = balance + 1, note = note || 'x'")
        if n % 5 == 0:
            connection.execute("INSERT INTO other.seen VALUES (?)", (n,))
            connection.execute("DELETE FROM other.seen WHERE n <= ?", (n - 1000,))


def in_vain(n: int, connection: apsw.Connection) -> None:
    """A large transaction that is rolled back."""

    class Enough(Exception):
        pass

    with contextlib.suppress(Enough), connection:
        connection.execute("UPDATE account SET balance = -1; DELETE FROM piece")
        connection.execute("INSERT INTO piece VALUES (?, randomblob(200000))", (n + 1_000_000,))
        raise Enough


def number(connection: apsw.Connection) -> int:
    """The last transaction that the database has seen."""
    if not connection.table_exists("main", "seen"):
        return 0
    return connection.execute("SELECT coalesce(max(n), 0) FROM main.seen").get  # type: ignore[no-any-return]


class Model:
    """What the databases must hold after transaction `n`."""

    def __init__(self) -> None:
        self.n = 0
        self._connection = apsw.Connection(":memory:")
        prepare(self._connection, ":memory:")

    def check(self, store: sustain.Store) -> int:
        """Compare the databases of `store` with what their number says; that number. AssertionError if not."""
        if NAME not in {name for name, _, _ in store.objects()}:
            return 0
        connection = store.sqlite(NAME)
        try:
            n = number(connection)
            assert n >= self.n, f"transaction {n} after {self.n}: a state went backwards"
            while self.n < n:
                self.n += 1
                transaction(self.n, self._connection)
            assert connection.pragma("integrity_check") == "ok"
            if OTHER not in {name for name, _, _ in store.objects()}:
                assert n == 0
                return 0
            connection.execute("ATTACH ? AS other", (OTHER,))
            assert connection.pragma("integrity_check", schema="other") == "ok"
            for table in ("main.seen", "main.account", "main.piece", "other.seen"):
                query = f"SELECT * FROM {table} ORDER BY 1"
                have, want = connection.execute(query).get, self._connection.execute(query).get
                assert have == want, f"transaction {n}: {table} differs"
            return n
        finally:
            connection.close()
