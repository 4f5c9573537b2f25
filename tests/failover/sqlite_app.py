"""A SQLite application for the tests, which knows of Sustain only how to get its connection: `sqlite_app.py LOG`.

Says what `app.py` says: "start" with what it found, once SQLite has found the database whole; "commit"; "acked" once
a standby holds it.
"""

import contextlib
import json
import os
import sys
import time

import sustain


def main() -> int:
    with open(sys.argv[1], "a", buffering=1, encoding="utf-8") as log:

        def say(what: str, n: int) -> None:
            entry = {"what": what, "n": n, "host": os.environ["SUSTAIN_NAME"], "ns": time.clock_gettime_ns(7)}
            log.write(
                json.dumps(entry | {"epoch": int(os.environ["SUSTAIN_EPOCH"]), "pid": os.getpid()}) + "\n"
            )

        store = sustain.open(os.environ["SUSTAIN_STORE"])
        connection = store.sqlite("main.db")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS done (n INTEGER PRIMARY KEY, other INTEGER, content BLOB);"
            "CREATE INDEX IF NOT EXISTS by_other ON done (other)"
        )
        assert connection.pragma("integrity_check") == "ok"
        count, n = connection.execute("SELECT count(*), coalesce(max(n), 0) FROM done").get
        assert count == n, f"{count} rows up to {n}"
        say("start", n)
        while True:
            n += 1
            connection.execute(
                "INSERT INTO done VALUES (?, ?, randomblob(?))", (n, n * 7919 % 1009, n % 3000)
            )
            say("commit", n)
            with contextlib.suppress(sustain.WaitTimeout):
                store.wait(store.position, copies=1, timeout=0.5)
                say("acked", n)


if __name__ == "__main__":
    raise SystemExit(main())
