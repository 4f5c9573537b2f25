"""Restoring a store from a directory: what part of copying the same bytes?

`sustain restore file:///…` of a store of 1 GiB (a snapshot, and a tenth of that in log behind it) beside `cp -r` of
the archive on the same medium; whole commands, the start of Python included. On disk both end durable. In the peer's
favour: ours compares each object with its digest, each record with its checksum, applies the log, and compares each
page with its sum when all is there; `cp` verifies nothing.
"""

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench.archives import fill, write
from bench.harness import Answer, Contender, disk_dir, interleave, medians, memory_dir, say
from bench.hosts import sustain
from bench.regions import warm

QUESTION = "restoring a store from an archive, GB/s"


class Archive:
    """An archive in `directory`, and ways to have what it holds."""

    def __init__(self, directory: Path, size: int) -> None:
        import sustain as package

        self._directory = directory
        self._archive, path = directory / "archive", directory / "store.sus"
        fill(path, size, max(size // 8, 16 << 20))
        self._run("ship", path, "--to", f"file://{self._archive}", "--until-drained")
        with package.open(path) as store:
            self._position = write(store, size // 10)
        self._run("ship", path, "--to", f"file://{self._archive}", "--until-drained")
        path.unlink()
        self.bytes = sum(each.stat().st_size for each in self._archive.rglob("*") if each.is_file())

    def restore(self) -> float:
        """GB/s."""
        target = self._directory / "restored.sus"
        begun = time.perf_counter()
        said = self._run("restore", f"file://{self._archive}", target)
        spent = time.perf_counter() - begun
        if f"position {self._position}" not in said:
            raise RuntimeError(f"restored: {said}")
        target.unlink()
        return self.bytes / spent / 1e9

    def copy(self) -> float:
        """GB/s of `cp -r`, made durable."""
        target = self._directory / "copy"
        begun = time.perf_counter()
        subprocess.run(["cp", "-r", str(self._archive), str(target)], check=True)
        files = [str(each) for each in target.rglob("*") if each.is_file()]
        subprocess.run(["sync", *files], check=True)
        spent = time.perf_counter() - begun
        shutil.rmtree(target)
        return self.bytes / spent / 1e9

    def _run(self, *words: str | Path) -> str:
        done = subprocess.run(sustain(*words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"sustain {words[0]} has failed:\n{done.stderr}")
        return done.stdout


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    size, rounds = (16 << 20, 1) if quick else (1 << 30, 5)
    found: dict[str, dict[str, float]] = {}
    places: tuple[tuple[str, Callable[[], AbstractContextManager[Path]]], ...] = (
        ("memory", memory_dir),
        ("disk", disk_dir),
    )
    for medium, place in places:
        say(f"  {medium} …")
        with place() as directory:
            archive = Archive(directory, size)
            with warm(0 if quick else 2 * size) as held:
                ways: dict[str, Contender] = {
                    "ours": partial(held.run, archive.restore),
                    "cp": partial(held.run, archive.copy),
                }
                found[medium] = medians(interleave(rounds, ways))
    memory = found["memory"]
    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=memory["ours"],
        peers={"cp of the same bytes": memory["cp"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    for medium, figures in found.items():
        ratio = figures["ours"] / figures["cp"]
        result.details[f"{medium}, GB/s"] = {**figures, "ours / cp": ratio}
        text = "in memory" if medium == "memory" else "on disk"
        result.ask(f"{text}, at least 60% of cp of the same bytes", ratio, lambda ratio: ratio >= 0.6)
    return result
