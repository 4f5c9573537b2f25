"""A command for the tests: counts in its store, and writes down, outside the store, what it was promised.

`app.py LOG [--until N] [--wait] [--fail-at N] [--stubborn]`. Each line of LOG is a JSON object; it is written after
the call that it speaks of has returned: "start", "commit", "acked" (a standby holds it), "refused".
"""

import argparse
import json
import os
import signal
import time

import sustain


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--until", type=int, default=1 << 60)
    parser.add_argument("--wait", action="store_true", help="for a copy of each commit")
    parser.add_argument(
        "--fail-at", type=int, default=0, help="end with status 3 each time after so many commits"
    )
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM and refused commits")
    args = parser.parse_args()
    if args.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(args.log, "a", buffering=1, encoding="utf-8") as log:

        def say(what: str, n: int) -> None:
            entry = {"what": what, "n": n, "host": os.environ["SUSTAIN_NAME"], "ns": time.clock_gettime_ns(7)}
            log.write(
                json.dumps(entry | {"epoch": int(os.environ["SUSTAIN_EPOCH"]), "pid": os.getpid()}) + "\n"
            )

        store = sustain.open(os.environ["SUSTAIN_STORE"])
        counts = store.map("counts")
        n = int(counts.get(b"n", b"0"))
        say("start", n)
        done = 0
        while n < args.until:
            counts[b"n"] = str(n + 1).encode()
            try:
                position = store.commit()
            except sustain.SustainError:
                say("refused", n + 1)
                if not args.stubborn:
                    raise
                signal.sigtimedwait([], 0.05)
                continue
            n += 1
            done += 1
            say("commit", n)
            if args.wait:
                try:
                    store.wait(position, copies=1, timeout=0.5)
                    say("acked", n)
                except sustain.WaitTimeout:
                    pass
            if args.fail_at and done >= args.fail_at:
                return 3
            signal.sigtimedwait([], 0.002)
        store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
