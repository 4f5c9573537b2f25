"""Recovery of a full log: how fast does `sustain.open` read, check and apply it?

A writer fills the log of a `memory` store on tmpfs, the log pinned so that nothing trims it, and is
killed with SIGKILL. Timed is `sustain.open` of a copy of that file, all in: reading the superblocks,
verifying every record, applying every group. Peer: one memory copy of as many bytes between two
mappings of files on the same tmpfs, whose pages are there already; no engine can be faster than that,
and ours has to read, check and write. Two kinds of log: *map*, a record of some 180 bytes for each
commit (judged), and *array*, whole pages.
"""

import mmap
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.harness import Answer, interleave, medians, memory_dir
from bench.hosts import Writer
from bench.peers.raw import copy_rate

QUESTION = "recovery of a full log, GB/s of log"


class KilledStore:
    """A store as SIGKILL left it, with its log full; `recover` opens a copy of it."""

    def __init__(self, directory: Path, what: str, log_bytes: int) -> None:
        from sustain._native import Control, Engine

        self.path = directory / f"{what}.sus"
        Engine.format(str(self.path), 2 * log_bytes, log_bytes, "memory")
        with Writer(what, self.path, str(log_bytes * 9 // 10)) as writer:
            writer.ready()
            writer.go()
            self.commits: int = writer.ready()["commits"]
        control: Any = Control(str(self.path))
        words = control.words()
        self.committed: int = words["committed"]
        self.log_bytes: int = self.committed - control.superblock()["tail"]
        control.close()

    def recover(self) -> float:
        """GB/s of log, from the call of `open` to its return."""
        import sustain

        copy = self.path.with_suffix(".copy")
        shutil.copyfile(self.path, copy)
        begun = time.perf_counter()
        store = sustain.open(copy)
        spent = time.perf_counter() - begun
        position = store.position
        store.close()
        copy.unlink()
        if position != self.committed:
            raise RuntimeError(f"recovered to {position}, not to {self.committed}")
        return self.log_bytes / spent / 1e9


def mapping(path: Path, length: int) -> mmap.mmap:
    """A mapping of a new file of `length` bytes, all of them written."""
    path.write_bytes(bytes(length))
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, length)
    finally:
        os.close(descriptor)


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    log_bytes, rounds = (8 << 20, 3) if quick else (256 << 20, 7)
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        stores = {what: KilledStore(directory, what, log_bytes) for what in ("map", "array")}
        length = stores["map"].log_bytes
        source, target = mapping(directory / "source", length), mapping(directory / "target", length)
        contenders = {what: store.recover for what, store in stores.items()}
        contenders["copy"] = lambda: copy_rate(length, source, target) / 1e9
        contenders["copy"]()
        found = medians(interleave(rounds, contenders))

    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=found["map"],
        peers={"memory copy": found["copy"]},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details["logs"] = {
        what: {"GB/s": found[what], "bytes": store.log_bytes, "commits": store.commits}
        for what, store in stores.items()
    }
    result.ask("at least 1 GB/s of log, map updates", found["map"], lambda rate: rate >= 1)
    result.ask("at least 1 GB/s of log, whole pages", found["array"], lambda rate: rate >= 1)
    return result
