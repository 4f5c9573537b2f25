"""The user's command: commits numbers, and knows from what is in a store which of them it holds.

A commit writes its number into the head, and a pattern of it into one of a few slots, so that what is found can be
compared with what all commits before it had written: an oracle outside of everything that is simulated. Some commits
also fill a large part of the store, where the world is one in which logs run full.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.replication import tasks
from sim.replication.disk import SimEngine
from sustain.errors import LogFull, StoreFenced

if TYPE_CHECKING:
    from sim.replication.host import Host

SLOTS, SLOT_BYTES = 8, 1024
BULK_AT, BULK_BYTES = 16 << 10, 160 << 10
MARK = b"commit: "


@dataclass
class Commit:
    """One, and what came before it."""

    number: int
    parent: int
    epoch: int
    host: str
    bulk: bool
    depth: int
    lsn: int | None = None  # its end, once it has returned
    acked: set[str] = field(default_factory=set)  # hosts that held it durably, as its primary heard in time


def pattern(number: int, length: int) -> bytes:
    """What commit `number` writes."""
    return (MARK + struct.pack("<Q", number)) * (length // 16)


class Oracle:
    """All commits that were ever tried."""

    def __init__(self) -> None:
        self.commits: dict[int, Commit] = {0: Commit(0, 0, 0, "", False, 0, 0)}

    def new(self, parent: int, epoch: int, host: str, bulk: bool) -> Commit:
        made = Commit(len(self.commits), parent, epoch, host, bulk, self.commits[parent].depth + 1)
        self.commits[made.number] = made
        return made

    def line(self, number: int) -> list[int]:
        """A commit and all before it, newest first."""
        found = []
        while number:
            found.append(number)
            number = self.commits[number].parent
        return found

    def within(self, number: int, newest: int) -> bool:
        """Whether a state at `newest` holds commit `number`."""
        depth = self.commits[number].depth
        while self.commits[newest].depth > depth:
            newest = self.commits[newest].parent
        return newest == number

    def identify(self, read: Callable[[int, int], bytes]) -> tuple[int, str]:
        """The commit whose state `read(length, offset)` shows, and what is wrong with it."""
        head = read(16, 0)
        if not any(head):
            return 0, ""
        number = struct.unpack("<Q", head[8:])[0]
        if head[:8] != MARK or number not in self.commits:
            return 0, f"the store begins with {head.hex()}, which no commit has written"
        slots: dict[int, int] = {}
        bulk = 0
        at = number
        while at and (len(slots) < SLOTS or not bulk):
            commit = self.commits[at]
            slots.setdefault(commit.depth % SLOTS, at)
            bulk = bulk or (at if commit.bulk else 0)
            at = commit.parent
        for slot, writer in slots.items():
            expected = pattern(writer, _length(writer))
            if read(len(expected), (slot + 1) * SLOT_BYTES) != expected:
                return number, f"what commit {writer} wrote is not there, though commit {number} is"
        if bulk and read(BULK_BYTES, BULK_AT) != pattern(bulk, BULK_BYTES):
            return number, f"what commit {bulk} wrote in bulk is not there, though commit {number} is"
        return number, ""


def _length(number: int) -> int:
    return 64 + number * 7 % 37 * 16


def write(file: Any, commit: Commit) -> None:
    file.pwrite(MARK + struct.pack("<Q", commit.number), 0)
    file.pwrite(pattern(commit.number, _length(commit.number)), (commit.depth % SLOTS + 1) * SLOT_BYTES)
    if commit.bulk:
        file.pwrite(pattern(commit.number, BULK_BYTES), BULK_AT)


def run_command(host: Host, _: Sequence[str], env: Mapping[str, str], stop: tasks.Event) -> int:
    """Commits until it is told to stop, or fenced."""
    world, epoch = host.world, int(env["SUSTAIN_EPOCH"])
    engine = SimEngine(host.path)
    number = world.checker.starts(host, epoch, engine)
    while not stop.is_set():
        if stop.wait(world.rng.expovariate(1 / world.pace_s)):
            break
        bulk = world.rng.random() < world.bulk_share
        commit = world.oracle.new(number, epoch, host.name, bulk)
        write(engine.file, commit)
        while True:
            try:
                lsn = engine.commit()
            except LogFull:
                if stop.wait(0.05):
                    return 0
                continue
            except StoreFenced as error:
                world.tell(host, f"commit {commit.number} is refused: {error}")
                return 1
            break
        commit.lsn = lsn
        number = commit.number
        world.checker.committed(host, engine, commit)
    engine.close()
    return 0
