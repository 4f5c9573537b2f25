"""What the questions about regions share: a region of random bytes, a keeper, and rounds of copies.

A region is judged in memory (tmpfs on both sides: a peer's memory) and on a disk ($SUSTAIN_BENCH_DIR, else /var/tmp).
SUSTAIN_BENCH_REGION=SIZE asks for another size than 4 GiB.
"""

import mmap
import os
import shutil
import subprocess
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
_SPARE = 512 << 20  # memory that is kept warm beside twice the region
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
        warm_bytes = 2 * size + (0 if quick else _SPARE)
        with place() as directory, setting(directory, size) as where, warm(warm_bytes):
            raw = RawTcp(CHUNK, size)
            try:
                ways = contenders(where)
                rates = {name: _rate(way, size) for name, way in ways.items()}
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


@contextmanager
def warm(size: int) -> Iterator[None]:
    """Memory that a virtual machine has given back to its host costs the first who asks for it several times a copy.
    So as much as any contender needs is touched and let go but for a page in each MiB: only larger free blocks are
    given back."""
    block = bytes(CHUNK)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, CHUNK):
            held[at : at + CHUNK] = block
        for at in range(0, size, CHUNK):
            held.madvise(mmap.MADV_DONTNEED, at + mmap.PAGESIZE, CHUNK - mmap.PAGESIZE)
        yield
