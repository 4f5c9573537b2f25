"""A power cut under SQLite on a store: of the medium only the log is there, as far as it came.

The log is cut at many of its bytes; whatever opens is a state between two transactions, which SQLite finds whole, and
holds every transaction whose group is in the log.
"""

import bisect
import os
import random
from pathlib import Path

import pytest

import sustain
from tests.crash.databases import NAME, OTHER, Model, in_vain, prepare, transaction
from tests.crash.processes import rounds, seed

pytestmark = pytest.mark.crash

TRANSACTIONS = 60
LOG = 2 << 20
SUMS = 4 << 20
CONTROL = slice(0x2000, 0x4000)


def work(path: Path, pipe: int) -> None:
    """The process that loses power: the position after each transaction goes to `pipe`."""
    store = sustain.open(path)
    connection = store.sqlite(NAME)
    prepare(connection, OTHER)
    os.write(pipe, b"%d\n" % store.position)
    for n in range(1, TRANSACTIONS + 1):
        if n % 11 == 0:
            in_vain(n, connection)
        transaction(n, connection)
        os.write(pipe, b"%d\n" % store.position)
    os._exit(0)


def lost_power(folder: Path) -> tuple[bytes, list[int]]:
    """The file with nothing but the log on the medium, and where the log was after each transaction."""
    path = folder / "live.sus"
    sustain.create(path, size="8MiB", log_size="2MiB", durability="disk").close()
    fresh = path.read_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        ends = list(map(int, pipe.read().split()))
    assert os.waitpid(child, 0)[1] == 0
    assert len(ends) == TRANSACTIONS + 1
    content = bytearray(path.read_bytes())
    content[CONTROL] = bytes(CONTROL.stop - CONTROL.start)
    content[SUMS:] = fresh[SUMS:]
    assert ends[-1] < SUMS - LOG, "the log has wrapped: fewer transactions"
    return bytes(content), ends


def test_the_log_alone_is_enough(tmp_path: Path) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    content, ends = lost_power(tmp_path)
    dice = random.Random(chosen)
    cuts = [
        *ends,
        *(end - 1 for end in ends),
        *(dice.randrange(ends[0], ends[-1]) for _ in range(rounds(60))),
    ]
    # A cut makes zeros of what is behind it: of a group that ends in zeros nothing may be missing then.
    needed = [len(content[LOG : LOG + end].rstrip(b"\0")) for end in ends]
    model, path = Model(), tmp_path / "app.sus"
    for cut in sorted(cuts):
        path.write_bytes(content[: LOG + cut] + bytes(SUMS - LOG - cut) + content[SUMS:])
        with sustain.open(path, verify="full") as store:
            n = model.check(store)
        assert n == max(0, bisect.bisect_right(needed, cut) - 1), f"cut at {cut}"
