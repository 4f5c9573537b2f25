"""Children and oracle of the kill loop over a store that is arriving.

`python -m tests.crash.arriving write STORE` makes numbered commits until its standard input is closed, and says each
that returned; `python -m tests.crash.arriving fetch STORE URL` fetches so slowly that there is time for kills. What a
store holds at commit *n* can be recomputed: `cells(n)`.
"""

import os
import select
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import sustain
from sustain.replication import fetch as fetch_module
from sustain.replication.credentials import NO_CREDENTIALS
from sustain.replication.fetch import Fetch
from sustain.replication.getter import Getter

CELLS = 1 << 18
KEYS = 300
TOUCHED = 12
PAGE = 4096
_PACE_S = 0.02


def change(n: int, cells: Any, users: Any) -> None:
    """Commit `n`."""
    for k in range(TOUCHED):
        cells[(n * 1_000_003 + k * 77_777) % CELLS] = n
    users[b"key %d" % (n % KEYS)] = b"%d " % n * (1 + n % 40)
    if n % 7 == 0:
        users.pop(b"key %d" % (n * 31 % KEYS), None)
    users[b"n"] = b"%d" % n


class Model:
    """What must be there after commit `n`."""

    def __init__(self) -> None:
        self.n = 0
        self.cells = np.arange(CELLS)
        self.users: dict[bytes, bytes] = {}

    def advance(self, n: int) -> None:
        assert n >= self.n, f"commit {n} after {self.n}: a state went backwards"
        while self.n < n:
            self.n += 1
            change(self.n, self.cells, self.users)


def make(path: Path, durability: str) -> None:
    """The store as it is at the source: commit 0."""
    with sustain.create(path, size="8MiB", log_size="2MiB", durability=durability) as store:
        cells = store.array("cells", (CELLS,), "i8")
        for first in range(0, CELLS, 1 << 16):
            cells[first : first + (1 << 16)] = np.arange(first, first + (1 << 16))
            store.commit()
        store.map("users")
        store.commit()
        del cells


def number(store: sustain.Store) -> int:
    return int(store.map("users").get(b"n", b"0"))


def check(store: sustain.Store, model: Model) -> int:
    """Compare the whole store with the model; the commit that it is at."""
    model.advance(number(store))
    assert dict(store.map("users").items()) == model.users, f"commit {model.n}: the map differs"
    wrong = np.flatnonzero(store.array("cells") != model.cells)
    assert not len(wrong), f"commit {model.n}: cells {wrong[:5]} differ"
    return model.n


def lose_power(path: Path, *, bits_lie: bool = False) -> int:
    """What a power loss leaves of a `disk` store whose processes are gone: pages of which no flush is known hold
    anything, and another boot has begun. How many pages that were. `bits_lie`: as if pages were called durable before
    they were."""
    sidecar = Path(f"{path}.arriving")
    if not sidecar.exists():
        return 0
    with open(sidecar, "r+b") as file:
        file.seek(48)
        (pages,) = struct.unpack("<Q", file.read(8))
        size = -(-pages // 64 // 512) * 512 * 8
        file.seek(0x2000)
        here, durable = np.frombuffer(file.read(size), "u1"), np.frombuffer(file.read(size), "u1")
        lost = np.flatnonzero(np.unpackbits(here & ~durable, bitorder="little"))
        if bits_lie:
            file.seek(0x2000 + size)
            file.write(here.tobytes())
        file.seek(0x1000)
        file.write(os.urandom(16))
    block = sustain._native.Control(str(path)).superblock()
    align = 2 << 20
    sums = align + block["log_size"]
    image = sums + -(-(block["image_size"] // 512) // align) * align
    with open(path, "r+b") as file:
        for page in lost:
            file.seek(image + int(page) * PAGE)
            file.write(os.urandom(PAGE))
            file.seek(sums + int(page) * 8)
            file.write(os.urandom(8))
    return len(lost)


def write(path: str) -> None:
    out = sys.stdout.fileno()
    with sustain.open(path) as store:
        n = number(store)
        cells, users = store.array("cells"), store.map("users")
        os.write(out, f"open {n}\n".encode())
        while not select.select([sys.stdin], [], [], 0)[0]:
            n += 1
            if n % 11 == 0:
                change(n + 500, cells, users)
                store.rollback()
            change(n, cells, users)
            store.commit()
            if n % 25 == 0:
                store.checkpoint()  # the log's tail moves: only the image has what was before
            os.write(out, f"commit {n}\n".encode())
        del cells


class Slow(Fetch):
    """Streams a little at a time."""

    def _put(self, getter: Getter, first: int, count: int) -> int:
        if count > 1:
            threading.Event().wait(_PACE_S)
        new = super()._put(getter, first, count)
        if count > 1 and first // count % 16 == 0:
            self._fetcher.settle()
        return new


def main() -> None:
    if sys.argv[1] == "write":
        write(sys.argv[2])
    else:
        fetch_module._PIECE_PAGES = 16
        fetch = Slow(sys.argv[2], [sys.argv[3]], NO_CREDENTIALS, limit_s=30.0)
        os.write(sys.stdout.fileno(), b"fetching 1\n")
        fetch.run(threading.Event())
        os.write(sys.stdout.fileno(), b"done 1\n")


if __name__ == "__main__":
    main()
