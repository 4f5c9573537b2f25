"""A process that holds memory as QEMU holds its guest's RAM, and swap to move it to; for tests on the real kernel."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from sustain.host import pagemap, swaps
from sustain.host.cgroup import Cgroup
from sustain.host.pagemap import Pagemap
from sustain.host.processes import identify
from tests.host.cgroups import made_cgroup
from tests.host.swap import host_swap, taking_turns

MIB = 1 << 20

# Memory aligned to 2 MiB and kept out of children (DONTFORK); half of it large, where that can be had.
_PROGRAM = """
import ctypes, mmap, sys
size, used = int(sys.argv[1]), int(sys.argv[2])
huge = 2 << 20
view = mmap.mmap(-1, size + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(view))
start = -(-at // huge) * huge
libc = ctypes.CDLL(None)
assert libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 10) == 0  # DONTFORK
libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size // 2), 14)  # HUGEPAGE
libc.madvise(ctypes.c_void_p(start + size // 2), ctypes.c_size_t(size // 2), 15)  # NOHUGEPAGE
at = start - at
for page in range(0, used, 4096):
    view[at + page] = page // 4096 % 255 + 1
print(start, flush=True)
for line in sys.stdin:
    begin, end = map(int, line.split())
    print(all(view[at + page] == page // 4096 % 255 + 1 for page in range(begin, end, 4096)), flush=True)
"""


class Holder:
    """Holds `size_bytes` and has written all but a quarter of it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = size_bytes * 3 // 4
        arguments = [sys.executable, "-c", _PROGRAM, str(size_bytes), str(self.used_bytes)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.start = int(self.process.stdout.readline())
        who = identify(self.process.pid)
        assert who is not None
        self.who = who

    def touch(self, begin: int = 0, end: int | None = None) -> bool:
        """Have it read that part of its memory; whether it still holds what it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{begin} {self.used_bytes if end is None else end}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "True\n"

    def census(self, begin: int = 0, end: int | None = None) -> pagemap.Census:
        table = Pagemap(self.who.pid)
        try:
            return table.census(self.start + begin, self.start + (self.size_bytes if end is None else end))
        finally:
            table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def some_swap(size_bytes: int = 64 * MIB) -> Iterator[None]:
    """A zram device of our own, filled before other swap, or what this machine has; skips the test where both lack."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(host_swap(size_bytes))
        except OSError:
            stack.enter_context(taking_turns())
            if swaps.read().free_bytes < size_bytes:
                pytest.skip("this machine has no swap and lets us make none")
        yield


@contextlib.contextmanager
def own_cgroup() -> Iterator[Cgroup]:
    """A cgroup of our own with a memory controller, of either version; skips the test where we may make none."""
    with made_cgroup("test") as group:
        if group is None:
            pytest.skip("this machine lets us make no cgroup with a memory controller")
        yield group


_READER = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(bytes(int(sys.argv[2])))
    os.fsync(file.fileno())
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def reading_in(group: Cgroup, path: Path, size_bytes: int) -> Iterator[int]:
    """A process of that cgroup, which has that much of a file in the page cache: its pid. It must end well."""
    enter = f'echo $$ > {group.directory}/cgroup.procs && exec "$@"'
    child = subprocess.Popen(
        ["sh", "-c", enter, "sh", sys.executable, "-c", _READER, str(path), str(size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child.pid
    finally:
        child.communicate()
    assert child.returncode == 0
