"""Saving a whole region to a keeper on loopback: what part of copying the file, or of raw TCP?

`sustain save` of a 4 GiB region to a `sustain receive --region-dir` that holds nothing of it, to the seal, beside
`cp` of the same file on the same medium, two processes that only send and receive that many bytes, `rsync` to a
daemon, and `dd | nc`. Judged by the slower of the first two. In the peers' favour: nothing that they copy is
hashed, compared or sealed, and `cp` crosses no wire.
"""

from collections.abc import Callable
from filecmp import cmp

from bench.harness import Answer
from bench.peers.copying import Rsync, cp, missing, netcat
from bench.regions import NAME, Setting, compare

QUESTION = "saving a whole region to a peer, GB/s"


def contenders(where: Setting) -> dict[str, Callable[[], float]]:
    """Seconds of each, into nothing."""
    target = where.directory / "copy.img"
    absent = missing()
    compared: list[bool] = []

    def ours() -> float:
        where.forget(where.kept / NAME)
        spent = where.save()
        if not compared:
            compared.append(cmp(where.region, where.kept / NAME / "image", shallow=False))
        where.forget(where.kept / NAME)
        if not compared[0]:
            raise RuntimeError("what was saved is not what the region holds")
        return spent

    def to(way: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            try:
                return way()
            finally:
                where.forget(target)

        return run

    ways = {"ours": ours, "cp": to(lambda: cp(where.region, target))}
    if "rsync" not in absent:

        def pushed() -> float:
            daemon = Rsync(where.directory, where.directory)
            try:
                return daemon.push(where.region, target.name)
            finally:
                daemon.close()

        ways["rsync"] = to(pushed)
    if "dd | nc" not in absent:
        ways["dd | nc"] = to(lambda: netcat(where.region, target))
    return ways


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    return compare(QUESTION, quick, contenders)
