"""A program that maps a region and knows nothing of Sustain. Run as a script, told on stdin what to do.

    python program.py PATH          answers each line with "done"; `Program` is the test's side
    python program.py PATH --free   writes random pages for ever, says "ready" once

Each page that it writes begins with a number that grows with every write (little-endian, 8 bytes), and again ends
with it, so that a torn page is seen, and an image tells how far the program had come.
"""

import mmap
import os
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

PAGE = 4096


def write_page(view: mmap.mmap, page: int, number: int) -> None:
    view[page * PAGE : page * PAGE + 8] = view[(page + 1) * PAGE - 8 : (page + 1) * PAGE] = struct.pack(
        "<Q", number
    )


def pages_of(seed: int, count: int, pages: int) -> list[int]:
    """What `write` writes."""
    chance = random.Random(seed)
    return [chance.randrange(pages) for _ in range(count)]


def main(path: str, free: bool) -> None:  # noqa: PLR0912 - one table of doings
    descriptor = os.open(path, os.O_RDWR)
    view = mmap.mmap(descriptor, 0)
    pages = len(view) // PAGE
    number = 0
    print("ready", flush=True)
    if free:
        chance = random.Random(7)
        while True:
            number += 1
            write_page(view, chance.randrange(pages), number)
    for line in sys.stdin:
        words = line.split()
        chosen = pages_of(int(words[1]), int(words[2]), pages) if len(words) == 3 else []
        if words[0] == "write":  # through the mapping
            for page in chosen:
                number += 1
                write_page(view, page, number)
        elif words[0] == "call":  # write(2), past the mapping
            for page in chosen:
                number += 1
                os.pwrite(descriptor, struct.pack("<Q", number) * 512, page * PAGE)
        elif words[0] in ("child", "orphan"):  # inherits the mapping, writes, ends
            if (child := os.fork()) == 0:
                if words[0] == "orphan" and os.fork():
                    os._exit(0)
                for page in chosen:
                    write_page(view, page, 1 << 40)
                if words[0] == "orphan":
                    print("done", flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            if words[0] == "orphan":
                continue
        elif words[0] == "remap":
            view.close()
            view = mmap.mmap(descriptor, 0)
            for page in chosen:
                number += 1
                write_page(view, page, number)
        elif words[0] == "visit":  # another mapping comes and goes
            with mmap.mmap(descriptor, 0) as other:
                for page in chosen:
                    number += 1
                    write_page(other, page, number)
        print("done", flush=True)


class Program:
    """One that runs, in a session of its own as under `sustain run`."""

    def __init__(self, path: Path, extra: Mapping[str, str], *, free: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), *(["--free"] if free else [])],
            env={**os.environ, **extra},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._heard("ready")

    def do(self, what: str, seed: int = 0, count: int = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {seed} {count}\n")
        self._process.stdin.flush()
        self._heard("done")

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _heard(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.strip() == word, f"the program said {line!r}"


if __name__ == "__main__":
    main(sys.argv[1], "--free" in sys.argv)
