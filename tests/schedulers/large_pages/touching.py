"""The touching program (block_toucher.py), as tests use it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sustain.host import smaps
from sustain.host.pagemap import BLOCK_BYTES, BlockCounts, Pagemap
from sustain.host.processes import Identity, identify
from sustain.schedulers.large_pages.counting import Memory

PROGRAM = Path(__file__).with_name("block_toucher.py")


class Toucher:
    """One that runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._meet(self._answer())

    def _meet(self, said: dict[str, Any]) -> None:
        self.pid: int = said["pid"]
        self.start: int = said["start"]
        self.blocks: int = said["blocks"]
        who = identify(self.pid)
        assert who is not None
        self.who: Identity = who

    def say(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def become_anew(self) -> None:
        """It executes itself: the same process, other memory."""
        self._meet(self.say("exec"))

    def touch(self, counts: Sequence[int]) -> None:
        self.say("touch " + ",".join(map(str, counts)))

    def address(self, block: int) -> int:
        return self.start + block * BLOCK_BYTES

    def memory(self, *, shared: bool = False) -> Memory:
        addresses = self.start + np.arange(self.blocks, dtype=np.uint64) * np.uint64(BLOCK_BYTES)
        image = smaps.image(self.pid)
        assert image
        return Memory(self.who, image, addresses, np.full(self.blocks, shared))

    def counted(self) -> BlockCounts:
        """What the page tables say of its blocks."""
        table = Pagemap(self.pid)
        try:
            return table.blocks(self.start, self.address(self.blocks))
        finally:
            table.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the touching program has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def touching(counts: Sequence[int], kind: str = "private", *, huge: bool = False) -> Iterator[Toucher]:
    arguments = [kind, ",".join(map(str, counts)), *(["huge"] if huge else [])]
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Toucher(process)
    finally:
        process.kill()
        process.communicate()
