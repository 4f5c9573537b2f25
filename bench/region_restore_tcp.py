"""Restoring a whole region from a keeper on loopback: what part of copying the file, or of raw TCP?

`sustain restore` of a sealed 4 GiB region to a file that is not there yet, verified page by page and durable, beside
`cp` of the saved image on the same medium, two processes that only send and receive that many bytes, `rsync` from
a daemon, and `dd | nc`. Judged by the slower of the first two; the peers verify nothing.
"""

from collections.abc import Callable
from filecmp import cmp

from bench.harness import Answer
from bench.peers.copying import Rsync, cp, missing, netcat
from bench.regions import NAME, Setting, compare

QUESTION = "restoring a whole region from a peer, GB/s"


def contenders(where: Setting) -> dict[str, Callable[[], float]]:
    """Seconds of each, to a file that is not there."""
    where.save()
    image, target = where.kept / NAME / "image", where.directory / "restored.img"
    absent = missing()
    compared: list[bool] = []

    def ours() -> float:
        spent = where.restore(target)
        if not compared:
            compared.append(cmp(where.region, target, shallow=False))
        if not compared[0]:
            raise RuntimeError("what was restored is not what the region held")
        return spent

    def to(way: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            try:
                return way()
            finally:
                where.forget(target)

        return run

    ways = {"ours": to(ours), "cp": to(lambda: cp(image, target))}
    if "rsync" not in absent:

        def pulled() -> float:
            daemon = Rsync(image.parent, where.directory)
            try:
                return daemon.pull(image.name, target)
            finally:
                daemon.close()

        ways["rsync"] = to(pulled)
    if "dd | nc" not in absent:
        ways["dd | nc"] = to(lambda: netcat(image, target))
    return ways


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    return compare(QUESTION, quick, contenders)
