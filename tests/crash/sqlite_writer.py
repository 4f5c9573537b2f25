"""A SQLite application to be killed: `python -m tests.crash.sqlite_writer STORE [--copies-every K] [--beside]`.

Opens the databases of the store and makes the numbered transactions of `tests.crash.databases` from where they are,
saying each on standard output once it is committed, as `tests.crash.writer` does. With `--beside` another thread
commits a map of the store all the time. Ends when standard input is closed.
"""

import argparse
import contextlib
import os
import select
import sys
import threading

import sustain
from tests.crash.databases import NAME, OTHER, in_vain, number, prepare, transaction


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--copies-every", type=int, default=0, help="say which transactions a standby holds")
    parser.add_argument("--beside", action="store_true")
    args = parser.parse_args()
    out = sys.stdout.fileno()
    with sustain.open(args.store) as store:
        connection = store.sqlite(NAME)
        if args.beside:
            ended = threading.Event()
            beside = threading.Thread(target=commit_beside, args=(store, ended))
            beside.start()
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
        if args.beside:
            ended.set()
            beside.join()


def commit_beside(store: sustain.Store, ended: threading.Event) -> None:
    """Both keys always hold the same, as long as no commit comes between them: there is none but ours and SQLite's,
    which waits for a transaction of the store."""
    entries = store.map("beside")
    number = int.from_bytes(entries.get(b"one", b""), "little")
    while not ended.wait(0.001):
        number += 1
        with store.transaction():
            entries[b"one"] = entries[b"two"] = number.to_bytes(8, "little")


if __name__ == "__main__":
    main()
