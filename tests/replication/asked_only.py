"""`sustain restore --on-demand` that streams nothing before its standard input is closed. A child of the tests."""

import sys
import threading
from pathlib import Path

from sustain._native import arrival_of
from sustain.replication.credentials import NO_CREDENTIALS
from sustain.replication.fetch import Fetch, begin
from sustain.replication.getter import Getter


class AskedOnly(Fetch):
    def _stream_from(self, getter: Getter, stop: threading.Event) -> None:
        sys.stdin.read()
        super()._stream_from(getter, stop)


def main() -> None:
    url, path, ready, limit_s = sys.argv[1:]
    if not Path(path).exists() or arrival_of(path) is None:
        begin(url, path, NO_CREDENTIALS, limit_s=float(limit_s))
    fetch = AskedOnly(path, [url], NO_CREDENTIALS, limit_s=float(limit_s))
    # Nothing is lost while nothing is asked for.
    threading.Thread(target=_keep_alive, args=(fetch,), daemon=True).start()
    Path(ready).touch()
    fetch.run(threading.Event())


def _keep_alive(fetch: Fetch) -> None:
    import time

    pause = threading.Event()
    while not pause.wait(0.1):
        fetch._moved = time.monotonic()


if __name__ == "__main__":
    main()
