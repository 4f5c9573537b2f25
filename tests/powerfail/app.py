"""A command for outages: commits flat out, and writes down, outside the store, what it was promised.

`app.py LOG`. Commit n writes its number and a cell whose bytes follow from n, so that what a store holds can be
compared with what exactly n commits leave. Each line of LOG is a JSON object, written after the call that it speaks of
has returned: "start" (with what was found, and whether that is what n commits leave), "commit", "refused", "asked" (to
end: it goes on for one more commit and then ends in good order).
"""

import argparse
import hashlib
import json
import os
import signal
import time

import sustain

CELLS = 64  # older ones are overwritten, as in a store that is in use


def cell(n: int, size_bytes: int) -> bytes:
    """What commit n writes: noise, so that nothing on the way can make it smaller."""
    return hashlib.shake_128(str(n).encode()).digest(size_bytes)


def found(cells: sustain.Map, n: int, size_bytes: int) -> str:
    """What is wrong with a store that says it holds n commits; "" when it is what they leave."""
    for at in range(max(1, n - CELLS + 1), n + 1):
        if cells.get(str(at % CELLS).encode()) != cell(at, size_bytes):
            return f"the cell of commit {at} of {n} is not what it wrote"
    return "" if len(cells) == min(n, CELLS) else f"{len(cells)} cells after {n} commits"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--cell", type=int, default=4096, help="bytes of one commit")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between commits")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    args = parser.parse_args()
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.stubborn else ask)
    with open(args.log, "a", buffering=1, encoding="utf-8") as log:

        def say(what: str, **fields: object) -> None:
            entry = {"what": what, "ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME), **fields}
            host, epoch = os.environ["SUSTAIN_NAME"], int(os.environ["SUSTAIN_EPOCH"])
            log.write(json.dumps(entry | {"host": host, "epoch": epoch}) + "\n")

        store = sustain.open(os.environ["SUSTAIN_STORE"])
        counts, cells = store.map("counts"), store.map("cells")
        n = int(counts.get(b"n", b"0"))
        say("start", n=n, wrong=found(cells, n, args.cell))
        while not asked:
            counts[b"n"] = str(n + 1).encode()
            cells[str((n + 1) % CELLS).encode()] = cell(n + 1, args.cell)
            try:
                position = store.commit()
            except sustain.SustainError as error:
                say("refused", n=n + 1, why=str(error))
                raise
            n += 1
            say("commit", n=n, position=position)
            if args.pause:
                signal.sigtimedwait([], args.pause)
        say("asked", n=n)
        store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
