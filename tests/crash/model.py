"""Numbered commits whose whole content can be recomputed: the oracle of the crash and lab tests.

`change(n, ...)` makes the changes of commit *n* on anything that behaves as a map, an array and a file do. The
writers under test run it on a store's objects, `Model` runs it on plain Python ones. So a store that says it is at
commit *n* is compared whole with what *n* must be, and a state that is no prefix of the commits, or mixes two of
them, cannot pass. Random content with a log of what was done was rejected: the log would have to survive the kill.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

import sustain

ITEMS = 4096
KEYS = 97
RECORD_BYTES = 24
RECORDS = 500


class FileLike(Protocol):
    """What `change` needs of a file."""

    def pwrite(self, data: bytes, offset: int) -> int: ...
    def truncate(self, size: int) -> None: ...


class PlainFile:
    """A store's file as a bytearray."""

    def __init__(self) -> None:
        self.content = bytearray()

    def pwrite(self, data: bytes, offset: int) -> int:
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))


def change(n: int, names: MutableMapping[bytes, bytes], numbers: Any, file: FileLike) -> None:
    """The changes of commit `n`: keys set and deleted, short and long values, scattered items, file records."""
    tag = n.to_bytes(8, "little")
    names[b"n"] = tag
    names[b"key %d" % (n % KEYS)] = tag * (1 + n % 5)
    if n % 5 == 0:
        names.pop(b"key %d" % (n * 31 % KEYS), None)
    if n % 17 == 0:
        names[b"long"] = tag * (n % 800)
    for i in range(1 + n % 4):
        numbers[(n * 7919 + i * 1021) % ITEMS] = n
    if n % 23 == 0:
        numbers[: ITEMS // 2] += 1
    file.pwrite(tag + (n * 2654435761 % 2**64).to_bytes(8, "little") + tag, n % RECORDS * RECORD_BYTES)
    if n % 211 == 0:
        file.truncate(n % 100 * RECORD_BYTES)


@dataclass
class Model:
    """What a store must hold after commit `n`."""

    n: int = 0
    names: dict[bytes, bytes] = field(default_factory=dict)
    numbers: "np.ndarray[Any, Any]" = field(default_factory=lambda: np.zeros(ITEMS, "i8"))
    file: PlainFile = field(default_factory=PlainFile)

    def advance(self, n: int) -> None:
        """To commit `n`; there is no way back."""
        assert n >= self.n, f"asked for commit {n} after {self.n}: a state went backwards"
        while self.n < n:
            self.n += 1
            change(self.n, self.names, self.numbers, self.file)


class Objects:
    """The three objects of a store; made when they are not there."""

    def __init__(self, store: sustain.Store) -> None:
        self.names = store.map("names")
        self.numbers = store.array("numbers", (ITEMS,), "i8")
        self.file = store.file("file")

    def change(self, n: int) -> None:
        change(n, self.names, self.numbers, self.file)


def commit_number(store: sustain.Store) -> int:
    """The number of the commit that the store is at: 0 before the first."""
    if "names" not in {name for name, _, _ in store.objects()}:
        return 0
    return int.from_bytes(store.map("names").get(b"n", b""), "little")


def check(store: sustain.Store, model: Model) -> int:
    """Compare the whole store with what its commit number says it must be; that number. AssertionError if not."""
    n = commit_number(store)
    model.advance(n)
    kinds = {name: kind for name, kind, _ in store.objects()}
    if n == 0 and not kinds:
        return 0
    assert kinds == {"names": "map", "numbers": "array", "file": "file"}, kinds
    names = dict(store.map("names").items())
    assert names == model.names, difference(names, model.names, n)
    numbers = store.array("numbers")
    assert np.array_equal(numbers, model.numbers), f"commit {n}: array differs"
    file = store.file("file")
    assert file.pread(file.size, 0) == bytes(model.file.content), f"commit {n}: file differs"
    return n


def difference(have: dict[bytes, bytes], want: dict[bytes, bytes], n: int) -> str:
    """Which keys differ, in a line."""
    keys = sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))
    return f"commit {n}: map differs at {keys[:10]} ({len(keys)} keys)"
