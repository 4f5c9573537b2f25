"""A commit after 1,000 scattered 8-byte writes to a 256 MiB array: the cost of what changed, or of all?

Each round picks 1,000 items at random, writes them through NumPy and commits. *First* means that the
view had not been written on these pages since the store was opened (the kernel copies each page at its
first write, once in the life of the process); *again* is a later commit that touches pages written
before, the steady state of an application. Peers do the same 1,000 changes and then make the state safe
from the process's death in their way:
- copy: the whole array into a second mapping on tmpfs; pickle: protocol 5 into a file on tmpfs.
- LMDB: 1,000 puts of 8 bytes by 8-byte keys in one transaction, sync off, among a million entries (an
  array of 32 million entries as a B-tree would need over 1 GiB; a smaller tree is in its favour). Not
  equal: copy and pickle would need a second file and a rename to be atomic at all; they are not charged
  for it.
"""

import mmap
import os
import pickle
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Answer, interleave, medians, memory_dir
from bench.peers.lmdb_map import LmdbMap

QUESTION = "commit after 1,000 scattered 8-byte writes to a 256 MiB array"
WRITES = 1000


class OurArray:
    """A store with one array of `size` bytes, each item of which was written and committed once."""

    def __init__(self, path: Path, size: int, work: random.Random) -> None:
        import numpy as np

        import sustain

        self.np: Any = np
        self.seed = work.randrange(1 << 30)
        self.items = size // 8
        self.path = str(path)
        store = sustain.create(self.path, size=size + (32 << 20), log_size="64MiB", durability="memory")
        array = store.array("bench", shape=(self.items,), dtype="<i8")
        step = (8 << 20) // 8  # filled in commits of 8 MiB, which the log holds
        for begin in range(0, self.items, step):
            array[begin : begin + step] = np.arange(begin, min(begin + step, self.items))
            store.commit()
        del array
        store.close()
        self.store: Any = None
        self.reopen()

    def reopen(self) -> None:
        """A fresh view: none of its pages has been written."""
        import sustain

        self.array: Any = None
        if self.store is not None:
            self.store.close()
        self.store = sustain.open(self.path)
        self.array = self.store.array("bench")
        self.random: Any = self.np.random.default_rng(self.seed)
        self.array[0] += 1  # tracking has begun
        self.store.commit()

    def picks(self, writes: int) -> Any:
        return self.random.integers(0, self.items, writes)

    def change(self, where: Any) -> float:
        """Milliseconds to write the items `where` and commit."""
        begun = time.perf_counter()
        self.array[where] += 1
        self.store.commit()
        return (time.perf_counter() - begun) * 1e3

    def commit_only(self, where: Any) -> float:
        """Milliseconds of the commit alone, after writing the items `where`."""
        self.array[where] += 1
        begun = time.perf_counter()
        self.store.commit()
        return (time.perf_counter() - begun) * 1e3

    def close(self) -> None:
        self.array = None
        self.store.close()


class Copying:
    """An ordinary array, and a second mapping on tmpfs that it is copied or pickled to."""

    def __init__(self, directory: Path, size: int) -> None:
        import numpy as np

        self.array = np.arange(size // 8, dtype="<i8")
        self.random = np.random.default_rng(1)
        self.file = directory / "copy"
        self.file.write_bytes(b"")
        os.truncate(self.file, size)
        with self.file.open("r+b") as file:
            self.mapping = mmap.mmap(file.fileno(), size)
        self.target = np.frombuffer(self.mapping, dtype="<i8")
        self.pickle = directory / "pickle"

    def _timed(self, save: Callable[[], None]) -> float:
        where = self.random.integers(0, len(self.array), WRITES)
        begun = time.perf_counter()
        self.array[where] += 1
        save()
        return (time.perf_counter() - begun) * 1e3

    def copied(self) -> float:
        def save() -> None:
            self.target[:] = self.array

        return self._timed(save)

    def pickled(self) -> float:
        def save() -> None:
            with self.pickle.open("r+b" if self.pickle.exists() else "w+b") as file:
                pickle.dump(self.array, file, protocol=5)

        return self._timed(save)


def lmdb_contender(stack: ExitStack, directory: Path, entries: int) -> Callable[[], float]:
    """1,000 puts and one commit."""
    peer = LmdbMap(directory / "lmdb", [number.to_bytes(8, "big") for number in range(entries)], value_size=8)
    stack.callback(peer.close)
    source = random.Random(1)

    def run() -> float:
        updates = [(source.randrange(entries).to_bytes(8, "big"), source.randbytes(8)) for _ in range(WRITES)]
        return peer.run_batch(updates) * 1e3

    return run


def change_anywhere(array: OurArray) -> float:
    """Milliseconds to write items picked now and commit."""
    return array.change(array.picks(WRITES))


def answer(quick: bool = False) -> Answer:
    """Milliseconds of the writes with their commit."""
    rounds = 3 if quick else 11
    megabytes = (4, 8) if quick else (64, 256, 1024)
    main = megabytes[1]
    seed = random.Random(1)
    with ExitStack() as stack:
        directory = stack.enter_context(memory_dir())
        arrays = {}
        for size in megabytes:
            arrays[size] = OurArray(directory / f"{size}.sus", size << 20, seed)
            stack.callback(arrays[size].close)
        copying = Copying(directory, main << 20)
        contenders = {
            "copy": copying.copied,
            "pickle": copying.pickled,
            "LMDB": lmdb_contender(stack, directory, 10_000 if quick else 1_000_000),
        }
        same = {size: array.picks(WRITES) for size, array in arrays.items()}
        for size, array in arrays.items():
            contenders[f"first {size}"] = partial(change_anywhere, array)
            contenders[f"again {size}"] = partial(array.change, same[size])
            contenders[f"commit {size}"] = partial(array.commit_only, same[size])
        counts = (10, 100, 1000, 10_000)
        for writes in counts:
            where = arrays[main].picks(writes)
            contenders[f"writes {writes}"] = partial(arrays[main].change, where)
        for contender in contenders.values():
            contender()
        found = medians(interleave(rounds, contenders))
        capture = arrays[main].store.capture

    result = Answer(
        question=QUESTION,
        unit="ms",
        ours=found[f"again {main}"],
        peers={f"{name}": found[name] for name in ("copy", "pickle", "LMDB")},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.details[f"by size of the array, {WRITES} writes (ms)"] = {
        f"{size} MiB": {
            "again": found[f"again {size}"],
            "of it the commit": found[f"commit {size}"],
            "first": found[f"first {size}"],
        }
        for size in megabytes
    }
    result.details[f"by writes, {main} MiB (ms)"] = {str(n): {"again": found[f"writes {n}"]} for n in counts}
    result.details["capture"] = {"changed pages found by": capture}
    growth = found[f"again {megabytes[-1]}"] / found[f"again {megabytes[0]}"]
    result.ask(
        "cost follows the pages changed: 16x the array costs at most 4x (1 GiB / 64 MiB)",
        growth,
        lambda ratio: ratio <= 4,
    )
    return result
