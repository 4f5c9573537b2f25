"""Transactions like those of TPC-B (pgbench's), on any SQLite connection of apsw: the same statements for everyone.

A transaction changes a random account, its teller and its branch by an amount, reads the account, and adds a row to
the history. Not TPC-B by its rules: one branch has fewer accounts, so that the database is some 14 MB.
"""

import random
import time

import apsw

BRANCHES = 10
TELLERS = 10 * BRANCHES
ACCOUNTS = 10_000 * BRANCHES
_FILLER = "x" * 84


def fill(connection: apsw.Connection, accounts: int = ACCOUNTS) -> None:
    """Make the tables, in transactions of 10,000 accounts."""
    connection.execute("""
        CREATE TABLE branch (id INTEGER PRIMARY KEY, balance INTEGER, filler TEXT);
        CREATE TABLE teller (id INTEGER PRIMARY KEY, branch INTEGER, balance INTEGER, filler TEXT);
        CREATE TABLE account (id INTEGER PRIMARY KEY, branch INTEGER, balance INTEGER, filler TEXT);
        CREATE TABLE history (teller INTEGER, branch INTEGER, account INTEGER, delta INTEGER, at REAL, filler TEXT);
    """)
    with connection:
        connection.executemany(
            "INSERT INTO branch VALUES (?, 0, ?)", ((each, _FILLER) for each in range(BRANCHES))
        )
        connection.executemany(
            "INSERT INTO teller VALUES (?, ?, 0, ?)", ((each, each // 10, _FILLER) for each in range(TELLERS))
        )
    for first in range(0, accounts, 10_000):
        with connection:
            connection.executemany(
                "INSERT INTO account VALUES (?, ?, 0, ?)",
                ((each, each * BRANCHES // accounts, _FILLER) for each in range(first, first + 10_000)),
            )


def run(connection: apsw.Connection, count: int, dice: random.Random, accounts: int = ACCOUNTS) -> float:
    """Seconds for `count` transactions, one after the other."""
    execute = connection.execute
    begun = time.perf_counter()
    for _ in range(count):
        account, teller, delta = (
            dice.randrange(accounts),
            dice.randrange(TELLERS),
            dice.randrange(-5000, 5001),
        )
        execute("BEGIN IMMEDIATE")
        execute("UPDATE account SET balance = balance + ? WHERE id = ?", (delta, account))
        execute("SELECT balance FROM account WHERE id = ?", (account,)).get  # noqa: B018  # reads the row
        execute("UPDATE teller SET balance = balance + ? WHERE id = ?", (delta, teller))
        execute("UPDATE branch SET balance = balance + ? WHERE id = ?", (delta, teller // 10))
        execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, 'x')", (teller, teller // 10, account, delta, begun)
        )
        execute("COMMIT")
    return time.perf_counter() - begun


def balanced(connection: apsw.Connection) -> bool:
    """Whether all sums are those of the history."""
    columns = ("account", "balance"), ("teller", "balance"), ("branch", "balance"), ("history", "delta")
    sums = {
        connection.execute(f"SELECT coalesce(sum({column}), 0) FROM {table}").get for table, column in columns
    }
    return len(sums) == 1 and connection.pragma("integrity_check") == "ok"


def main() -> None:
    """`python -m bench.peers.tpcb FROM TO`: for each line on standard input one copy by SQLite's own online backup,
    made durable and put in place; says the seconds that it took."""
    import os
    import sys

    source, target = sys.argv[1:]
    for _ in sys.stdin:
        begun = time.perf_counter()
        unfinished = target + ".new"
        reading, writing = apsw.Connection(source), apsw.Connection(unfinished)
        writing.pragma("synchronous", "off")
        with writing.backup("main", reading, "main") as backup:
            backup.step(-1)  # at once: a copy in steps begins again whenever the database has changed
        writing.close()
        reading.close()
        with open(unfinished, "rb") as copy:
            os.fsync(copy.fileno())
        os.replace(unfinished, target)
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
