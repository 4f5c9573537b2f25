"""Finding changed pages by content: how fast is a mapped region compared with its table of digests, on one core?

`changed_pages` over a region of random bytes on tmpfs, mapped and brought in before, as the pre-copier has it; one
page in a hundred was changed since. Beside it NumPy's sum of the same mapping as 64-bit words: one core that only
reads (no processor reads faster through one core with less work than an addition a word), and BLAKE2b of Python's
hashlib, a digest of the same length that everybody has. Equal: the bytes, the mapping, one thread. In the peers'
favour: the sum looks at no page boundaries and compares nothing.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.harness import Answer, interleave, medians, memory_dir
from bench.regions import size_bytes

QUESTION = "finding changed pages by content, GB/s on one core"
PAGE = 4096


def fill(path: Path, size: int) -> None:
    """Random bytes."""
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))


def answer(quick: bool = False) -> Answer:
    """GB/s."""
    from sustain.powerfail.regions.medium import open_medium
    from sustain.powerfail.regions.scan import changed, digests_of, pages_in

    size, rounds = min(size_bytes(quick), 1 << 30), (3 if quick else 7)
    with memory_dir() as directory:
        path = directory / "region"
        fill(path, size)
        with open_medium(path) as medium, medium.view() as view:
            medium.populate(0, medium.pages)
            table = bytearray(digests_of(view))
            changes = range(0, medium.pages, 100)
            zeros = bytes(min(size, 256 << 20))
            zero_table = bytearray(digests_of(zeros))

            def scan() -> float:
                for page in changes:
                    table[page * 16] ^= 1
                begun = time.perf_counter()
                found = sum(pages_in(runs) for runs in changed(view, table))
                spent = time.perf_counter() - begun
                if found != len(changes):
                    raise RuntimeError(f"{found} changed pages were found, not {len(changes)}")
                return size / spent / 1e9

            def digest_each() -> float:
                part = min(size, 128 << 20)
                return rate(part, lambda: [hashlib.blake2b(view[at : at + PAGE], digest_size=16).digest()
                                           for at in range(0, part, PAGE)])  # fmt: skip

            def read_words() -> int:
                return int(np.frombuffer(view, np.uint64).sum())

            contenders = {
                "ours": scan,
                "memory read": lambda: rate(size, read_words),
                "BLAKE2b": digest_each,
                "zeros": lambda: rate(len(zeros), lambda: list(changed(memoryview(zeros), zero_table))),
                "read": lambda: rate(size, lambda: read_and_digest(path)),
            }
            found = medians(interleave(rounds, contenders))

    result = Answer(
        question=QUESTION,
        unit="GB/s",
        ours=found["ours"],
        peers={"BLAKE2b of each page": found["BLAKE2b"]},
        limit={"memory read, one core": found["memory read"]},
        runs=rounds,
        quick=quick,
    )
    result.details["other ways, GB/s"] = {
        "pages of zeros": found["zeros"],
        "read(2) and digests, as in a save": found["read"],
    }
    share = found["ours"] / found["memory read"]
    result.ask(
        "at least 4 GB/s on one core, or at least 70% of memory-read speed",
        found["ours"],
        lambda speed: speed >= 4 or share >= 0.7,
    )
    result.notes.append(f"a region of {size >> 20} MiB, one page in a hundred changed")
    return result


def rate(size: int, run: Callable[[], object]) -> float:
    """GB/s of something that goes through `size` bytes."""
    begun = time.perf_counter()
    run()
    return size / (time.perf_counter() - begun) / 1e9


def read_and_digest(path: Path) -> None:
    """All pages through a buffer of 1 MiB."""
    from sustain.powerfail.regions.medium import open_medium
    from sustain.powerfail.regions.scan import digests_of

    buffer = bytearray(1 << 20)
    with open_medium(path) as medium:
        for first in range(0, medium.pages, 256):
            medium.read(first, buffer)
            digests_of(buffer)
