"""What the questions about regions share: a region of random bytes, a keeper, and rounds of copies.

A region is judged in memory (tmpfs on both sides: a peer's memory) and on a disk ($SUSTAIN_BENCH_DIR, else /var/tmp).
SUSTAIN_BENCH_REGION=SIZE asks for another size than 4 GiB.
"""

import mmap
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.harness import Answer, Contender, disk_dir, interleave, medians, memory_dir, say
from bench.hosts import Started, sustain, until
from bench.peers.copying import missing
from bench.peers.raw import RawTcp

CHUNK = 1 << 20
_SPARE = 512 << 20  # memory that is kept warm beside as much as the region
_PIECE = 64 << 20
_LEFT = 256 << 20  # free memory while the rest is held
_FED_EACH_S = 0.005
NAME = "region"


def size_bytes(quick: bool) -> int:
    """How large the region is."""
    from sustain.units import parse_size

    return (64 << 20) if quick else parse_size(os.environ.get("SUSTAIN_BENCH_REGION", "4GiB"))


@dataclass(frozen=True)
class Setting:
    """A directory with a region of `size` bytes, and a keeper that keeps in `kept`."""

    directory: Path
    region: Path
    kept: Path
    url: str
    size: int
    keeping: Started

    def save(self, name: str = NAME) -> float:
        """Seconds of a whole `sustain save`, to the keeper's seal."""
        return self.run("save", "--region", self.region, "--to", self.url, "--name", name)

    def restore(self, target: Path) -> float:
        """Seconds of a whole `sustain restore`, verified and durable."""
        return self.run("restore", self.url, target, "--name", NAME)

    def run(self, *words: str | Path) -> float:
        """Seconds of a verb."""
        begun = time.perf_counter()
        done = subprocess.run(sustain(*words), capture_output=True, text=True, check=False)
        spent = time.perf_counter() - begun
        self.keeping.check()
        if done.returncode:
            raise RuntimeError(f"sustain {words[0]} has failed:\n{done.stderr}")
        return spent

    def forget(self, *paths: Path) -> None:
        """Remove copies, and what names the region, so that the next run begins with nothing."""
        for each in (*paths, *self.directory.glob("*.region-*")):
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)


@contextmanager
def setting(directory: Path, size: int) -> Iterator[Setting]:
    """A region of random bytes and a keeper beside it."""
    region = directory / "region.img"
    with region.open("wb") as file:
        for _ in range(size // CHUNK):
            file.write(os.urandom(CHUNK))
        os.fsync(file.fileno())
    kept = directory / "kept"
    port_file = directory / "port"
    words = sustain("receive", "--region-dir", kept, "--listen", "127.0.0.1:0", "--port-file", port_file)
    with Started(words, directory / "keeper.log") as keeping:
        until(lambda: port_file.exists() and bool(port_file.read_text().strip()), keeping)
        yield Setting(directory, region, kept, f"tcp://127.0.0.1:{int(port_file.read_text())}", size, keeping)


def compare(
    question: str, quick: bool, contenders: Callable[[Setting], dict[str, Callable[[], float]]]
) -> Answer:
    """GB/s of `contenders` (seconds of "ours", "cp", …) in memory, and on a disk as details; both are judged by the
    slower of the two limits."""
    size, rounds = size_bytes(quick), (1 if quick else 3)
    found: dict[str, dict[str, float]] = {}
    for medium, place in (("memory", memory_dir), ("disk", disk_dir)):
        say(f"  {medium} …")
        warm_bytes = 0 if quick else size + _SPARE
        with place() as directory, setting(directory, size) as where:
            raw = RawTcp(CHUNK, size)
            try:
                ways = contenders(where)
                with warm(warm_bytes) as held:
                    rates: dict[str, Contender] = {
                        name: partial(held.run, _rate(way, size)) for name, way in ways.items()
                    }
                    rates["raw"] = _rate(partial(_seconds_raw, raw, size), size)
                    found[medium] = medians(interleave(rounds, rates))
            finally:
                raw.close()
    memory = found["memory"]
    answer = Answer(
        question=question,
        unit="GB/s",
        ours=memory["ours"],
        peers={name: memory.get(name) for name in ("rsync", "dd | nc")},
        limit={"cp of the same file": memory["cp"], "raw loopback TCP": memory["raw"]},
        runs=rounds,
        quick=quick,
        missing=missing(),
    )
    for medium, figures in found.items():
        least = min(figures["cp"], figures["raw"])
        answer.details[f"{medium}, GB/s"] = {**figures, "ours / slower limit": figures["ours"] / least}
        text = f"in {medium}" if medium == "memory" else f"on {medium}"
        answer.ask(
            f"{text}, at least 80% of the slower of cp and raw TCP",
            figures["ours"] / least,
            lambda ratio: ratio >= 0.8,
        )
    answer.notes += [
        f"a region of {size >> 20} MiB of random bytes; whole commands, the start of Python included",
        "ours compares every page with its digest on arrival, and (not at a region keeper) again in its place; "
        "the others verify nothing",
        "on disk all end durable (fdatasync, rsync --fsync)",
        "the memory that a copy needs is warm for all: the first use of memory that a virtual machine's host had taken "
        "back costs several times a copy, and fell on whoever came after a pause",
        "what bounds ours is in docs/operating/regions.md, step by step",
    ]
    return answer


def _rate(way: Callable[[], float], size: int) -> Contender:
    return lambda: size / way() / 1e9


def _seconds_raw(raw: RawTcp, size: int) -> float:
    return size / raw.run()


class Warm:
    """Memory that a virtual machine has given back to its host costs the first who asks for it ten times a copy. So all
    that is free but for a little is touched and held here, and let go piece by piece while a contender runs, always
    a little before it is asked for: what it gets has been free for less than a second.

    Not enough, as measured: to hold a page in each MiB, so that no block is large enough to be given back (hosts take
    small ones, too); to leave the file of the run before for as long (its memory is not given out first); to let go
    all at once (it seems that what is not taken within seconds goes back to the host: whoever is slower pays for that).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[mmap.mmap] = []
        self.take()

    def take(self) -> None:
        """Hold it (again). Takes a minute where the host must give many GiB first."""
        while self._size and _free_bytes() > _LEFT + _PIECE:
            piece = mmap.mmap(-1, _PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            piece.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, _PIECE, mmap.PAGESIZE):
                piece[at] = 1
            self._held.append(piece)
        if len(self._held) * _PIECE < self._size:
            raise RuntimeError(
                f"not as much memory is free as a contender needs: {self._size >> 20} MiB; "
                "end what holds it, or set SUSTAIN_BENCH_REGION to less"
            )

    def let_go(self) -> None:
        """All of it."""
        while self._held:
            self._held.pop().close()

    def run(self, contender: Contender) -> float:
        """What the contender finds with this memory."""
        ended = threading.Event()
        feeder = threading.Thread(target=self._feed, args=(ended,), name="feed memory")
        feeder.start()
        try:
            return contender()
        finally:
            ended.set()
            feeder.join()
            self.take()

    def _feed(self, ended: threading.Event) -> None:
        while not ended.wait(_FED_EACH_S):
            while self._held and _free_bytes() < _LEFT:
                self._held.pop().close()


def _free_bytes() -> int:
    from sustain.host import meminfo

    found = meminfo.read().free_bytes
    if found is None:
        raise RuntimeError("this kernel does not say how much memory is free")
    return found


@contextmanager
def warm(size: int) -> Iterator[Warm]:
    """At least that much memory that its host need not give first; 0: whatever there is."""
    held = Warm(size)
    try:
        yield held
    finally:
        held.let_go()
