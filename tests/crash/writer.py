"""A writer to be killed: `python -m tests.crash.writer STORE [--copies-every K] [--rollbacks]`.

Opens the store, recovering it, and makes the numbered commits of `tests.crash.model` from where it is. After each
commit that returned it writes the number to standard output in one small `write`, which a pipe keeps whole and
which outlives this process: that is the oracle of what was acknowledged. Ends when standard input is closed.
"""

import argparse
import contextlib
import os
import select
import sys

import sustain
from tests.crash.model import Objects, commit_number


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--copies-every", type=int, default=0, help="say which commits a standby holds")
    parser.add_argument("--rollbacks", action="store_true")
    parser.add_argument("--acks", help="a file instead of standard output")
    args = parser.parse_args()
    out = os.open(args.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if args.acks else sys.stdout.fileno()
    with sustain.open(args.store) as store:
        objects = Objects(store)
        n = commit_number(store)
        os.write(out, f"open {n}\n".encode())
        while not select.select([sys.stdin], [], [], 0)[0]:
            n += 1
            if args.rollbacks and n % 13 == 0:
                objects.change(n + 1000)
                store.rollback()
            objects.change(n)
            position = store.commit()
            os.write(out, f"commit {n}\n".encode())
            if args.copies_every and n % args.copies_every == 0:
                with contextlib.suppress(sustain.WaitTimeout):
                    store.wait(position, copies=1, timeout=0.2)
                    os.write(out, f"copied {n}\n".encode())
        del objects


if __name__ == "__main__":
    main()
