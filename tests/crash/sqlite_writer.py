"""A SQLite application to be killed: `python -m tests.crash.sqlite_writer STORE [--copies-every K]`.

Opens the databases of the store and makes the numbered transactions of `tests.crash.databases` from where they are,
saying each on standard output once it is committed, as `tests.crash.writer` does. Ends when standard input is closed.
"""

import argparse
import contextlib
import os
import select
import sys

import sustain
from tests.crash.databases import NAME, OTHER, in_vain, number, prepare, transaction


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--copies-every", type=int, default=0, help="say which transactions a standby holds")
    args = parser.parse_args()
    out = sys.stdout.fileno()
    with sustain.open(args.store) as store:
        connection = store.sqlite(NAME)
        prepare(connection, OTHER)
        n = number(connection)
        os.write(out, f"open {n}\n".encode())
        while not select.select([sys.stdin], [], [], 0)[0]:
            n += 1
            if n % 11 == 0:
                in_vain(n, connection)
            if n % 101 == 0:
                connection.execute("VACUUM")
            transaction(n, connection)
            os.write(out, f"commit {n}\n".encode())
            if args.copies_every and n % args.copies_every == 0:
                with contextlib.suppress(sustain.WaitTimeout):
                    store.wait(store.position, copies=1, timeout=0.2)
                    os.write(out, f"copied {n}\n".encode())
        connection.close()


if __name__ == "__main__":
    main()
