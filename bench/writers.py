"""The programs that benchmarks run as processes of their own: `python -m bench.writers WHAT STORE …`.

They stand for the application. Each says what it does in one line of JSON on stdout, and is killed by
whoever started it.

- `map STORE BYTES`: waits for a line on stdin; then 64-byte updates, one commit each, until the log
  holds BYTES (nothing trims it). Then waits to be killed.
- `array STORE BYTES`: the same with commits of whole pages of an array.
- `steady STORE`: 64-byte updates, one commit each, without end; with `wait`, each waits for one copy.
- `takeover - EVENTS BYTES`: opens $SUSTAIN_STORE, commits once, notes when in EVENTS; fills BYTES if
  the store is new; goes on committing.
- `handover - EVENTS BYTES`: the same, then changes pages all over what it filled, about a thousand
  commits a second, until SIGTERM; EVENTS.last holds when the last one was confirmed, and its number.
"""

import itertools
import json
import os
import sys
import time
from typing import Any

import sustain

KEYS = 10_000
COMMIT_PAGES = 512


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def wait_and_pin(store: sustain.Store) -> Any:
    """Empty the log, wait for a line on stdin; from then on keep the log, as a required destination that is
    away would."""
    from sustain import _native

    store.checkpoint()
    say(ready=True)
    sys.stdin.readline()
    tail = _native.LogTail(store.path)
    tail.set_floor(store.position)
    return tail


def fill_with_map(path: str, log_bytes: int) -> None:
    import random

    with sustain.open(path) as store:
        entries = store.map("bench")
        keys = [number.to_bytes(16, "big") for number in range(KEYS)]
        for key in keys:
            entries[key] = bytes(64)
        store.commit()
        pinned = wait_and_pin(store)
        begin, source = store.position, random.Random(os.getpid())
        values = [source.randbytes(64) for _ in range(509)]
        for number in itertools.count():
            entries[source.choice(keys)] = values[number % len(values)]
            if store.commit() - begin >= log_bytes:
                break
        say(commits=number + 1, log_bytes=store.position - begin)
        sys.stdin.read()
        del pinned


def fill_with_array(path: str, log_bytes: int) -> None:
    import numpy as np

    with sustain.open(path) as store:
        if any(name == "bench" for name, _, _ in store.objects()):
            array = store.array("bench")
        else:
            pages = store.usage()["free_bytes"] // 4096 // 2 // COMMIT_PAGES * COMMIT_PAGES
            array = store.array("bench", shape=(pages * 512,), dtype="<i8")
        store.commit()
        pinned = wait_and_pin(store)
        begin, source, step, commits = store.position, np.random.default_rng(), COMMIT_PAGES * 512, 0
        for commits in itertools.count(1):
            first = (commits - 1) * step % len(array)
            array[first : first + step] = source.integers(1, 1 << 60, step)
            if store.commit() - begin >= log_bytes - (step * 8 + (1 << 20)):
                break
        say(commits=commits, log_bytes=store.position - begin)
        sys.stdin.read()
        del array, pinned


def steady(path: str, wait: str = "") -> None:
    import random

    with sustain.open(path) as store:
        entries = store.map("bench")
        keys = [number.to_bytes(16, "big") for number in range(KEYS)]
        source = random.Random(1)
        values = [source.randbytes(64) for _ in range(509)]
        picks = [source.choice(keys) for _ in range(1 << 16)]
        say(ready=True)
        for number in itertools.count():
            entries[picks[number & 0xFFFF]] = values[number % 509]
            position = store.commit()
            if wait:
                store.wait(position, 1, 30.0)


def takeover(path: str, events: str, size: str) -> None:
    note(events, "started")
    with sustain.open(path) as store:
        words = store.map("bench")
        reached = int.from_bytes(words.get(b"number", b""), "little")
        for number in itertools.count(reached + 1):
            words[b"number"] = number.to_bytes(8, "little")
            position = store.commit()
            if events:
                note(events, "first-commit", number=number)
                if number == 1:
                    note(events, "filled", position=fill(store, int(size)))
                events = ""
            time.sleep(0.002)
        say(position=position)


def handover(path: str, events: str, size: str) -> None:
    import random
    import signal

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    note(events, "started")
    source, pages = random.Random(2), int(size) // 4096
    with sustain.open(path) as store, open(f"{events}.last", "w+b") as last:
        words = store.map("bench")
        reached = int.from_bytes(words.get(b"number", b""), "little")
        file = store.file("filling")
        for number in itertools.count(reached + 1):
            words[b"number"] = number.to_bytes(8, "little")
            position = store.commit()
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            os.pwrite(last.fileno(), now_ns.to_bytes(8, "little") + number.to_bytes(8, "little"), 0)
            if number == reached + 1:
                note(events, "first-commit", number=number, committed_ns=now_ns, position=position)
                if number == 1:
                    note(events, "filled", position=fill(store, int(size)))
            if asked:
                return
            file.pwrite(source.randbytes(4096), source.randrange(pages) * 4096)
            time.sleep(0.0005)


def fill(store: sustain.Store, size: int) -> int:
    """Write `size` bytes that are not zero into a file of the store, in commits that the log holds."""
    import random  # here: the takeover is timed, and most of it is the start of this program

    file = store.file("filling")
    block = random.Random(1).randbytes(4 << 20)
    position = store.position
    for offset in range(0, size, len(block)):
        file.pwrite(block, offset)
        position = store.commit()
    return position


def note(path: str, event: str, **more: object) -> None:
    """A line of JSON, with the moment it was written."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "boottime_ns": now, **more}) + "\n")


def main() -> None:
    what, path, *rest = sys.argv[1:]
    if what == "map":
        fill_with_map(path, int(rest[0]))
    elif what == "array":
        fill_with_array(path, int(rest[0]))
    elif what == "steady":
        steady(path, *rest)
    elif what == "takeover":
        takeover(os.environ.get("SUSTAIN_STORE", path), *rest)
    elif what == "handover":
        handover(os.environ.get("SUSTAIN_STORE", path), *rest)
    else:
        sys.exit(f"unknown writer: {what}")


if __name__ == "__main__":
    main()
