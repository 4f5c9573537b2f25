"""Stores of simulated hosts: the engine's own, on files in memory, that can be killed and lose power.

The engine is the real one. What is simulated is the disk under it, by what the engine promises of it (and what
`crates/core/tests/crash*.rs` hold it to, store by store): the log is durable up to what a call returned, the image up
to the last checkpoint. So a power cut takes back any sectors of the image that were written since the last
checkpoint, tears what was received and not yet flushed into the log, and forgets the control words. A kill forgets
what a process had in its own memory, and nothing else.

A file is told by its inode, as a snapshot that is put in place of a store is another file. For each the checker is told
what must be found in it whenever it is opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.replication import tasks
from sustain import _native
from sustain.errors import StoreIOError
from sustain.replication.wire import PAGE_BYTES

if TYPE_CHECKING:
    from sim.replication.host import Host

LOG_OFFSET = 2 << 20
CONTROL_OFFSET, CONTROL_BYTES = 0x2000, 0x2000
HEADER_BYTES = 0x4000
SECTOR_BYTES = 512
_FLUSH_S = 0.0005


class Medium:
    """One file, and what of it is durable."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.floor_lsn = 0  # somebody was told that everything before it is durable here
        self.waiters: list[tasks.Task] = []  # for the next commit
        self.torn: tuple[int, bytes] | None = None  # (LSN, bytes) received and not flushed
        self._tail = -1
        self._durable: dict[int, bytes] = {}  # pages of sums and image, by offset

    def settle(self, tail: int) -> None:
        """After a call of the engine: when the tail has moved, the image is durable."""
        if tail != self._tail:
            self._tail = tail
            self._durable = self._pages()

    def closed(self) -> None:
        """In good order: all of it is durable."""
        self._durable = self._pages()

    def _pages(self) -> dict[int, bytes]:
        """Pages of sums and image, those that are not zero, by offset."""
        found: dict[int, bytes] = {}
        fd = os.open(self.path, os.O_RDONLY)
        try:
            sums, image, image_size = struct.unpack("<QQQ", os.pread(fd, 24, 88))
            for at in range(sums, sums + image_size // 512, PAGE_BYTES):
                table = os.pread(fd, PAGE_BYTES, at)
                found[at] = table
                first = (at - sums) // 8
                for page, (total,) in enumerate(struct.iter_unpack("<Q", table)):
                    if total:
                        offset = image + (first + page) * PAGE_BYTES
                        found[offset] = os.pread(fd, PAGE_BYTES, offset)
        finally:
            os.close(fd)
        return found

    def lose_power(self, rng: random.Random) -> None:
        """The file as it may be found when the power is back. Nobody has it open."""
        now, before = self._pages(), self._durable
        keep = rng.choice((0.0, 0.3, 0.7, 1.0))
        with open(self.path, "r+b") as file:
            for at, data in now.items():
                old = before.get(at, bytes(PAGE_BYTES))
                for part in _PARTS if data != old else ():
                    if rng.random() >= keep:
                        file.seek(at + part)
                        file.write(old[part : part + SECTOR_BYTES])
            if self.torn is not None:
                self._tear(file, rng, keep)
            file.seek(CONTROL_OFFSET)
            file.write(bytes(CONTROL_BYTES))
        self._durable, self.torn = self._pages(), None

    def _tear(self, file: Any, rng: random.Random, keep: float) -> None:
        assert self.torn is not None
        lsn, data = self.torn
        file.seek(80)
        (log_size,) = struct.unpack("<Q", file.read(8))
        for at in range(0, len(data), SECTOR_BYTES):
            if rng.random() < keep:
                file.seek(LOG_OFFSET + (lsn + at) % log_size)
                file.write(data[at : at + min(SECTOR_BYTES, log_size - (lsn + at) % log_size)])


_PARTS = range(0, PAGE_BYTES, SECTOR_BYTES)


class Disk:
    """One host's: its files, and how well it works."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.slow_s = 0.0
        self.full = False
        self.failing = False  # flushes fail
        self._media: dict[int, Medium] = {}

    def medium(self, path: str) -> Medium:
        inode = os.stat(path).st_ino
        found = self._media.get(inode)
        if found is None:
            found = self._media[inode] = Medium(path)
        found.path = path  # a rename may have moved it
        return found

    def lose_power(self, rng: random.Random) -> None:
        for path in (self.host.path, f"{self.host.path}.incoming"):
            if os.path.exists(path):
                self.medium(path).lose_power(rng)

    def flush(self, what: str) -> None:
        """Take the time that a flush takes. Raises StoreIOError."""
        tasks.sleep(_FLUSH_S + self.slow_s)
        if self.failing:
            raise StoreIOError(f"{what}: Input/output error", hint="replace the disk", errno=errno.EIO)

    def need_room(self, what: str) -> None:
        if self.full:
            raise StoreIOError(f"{what}: No space left on device", hint="make room", errno=errno.ENOSPC)


def _disk() -> Disk:
    host: Host = tasks.process().host  # type: ignore[assignment]
    return host.disk


class _Guarded:
    """A native object of a process: gone with it."""

    def __init__(self, native: Any, path: str) -> None:
        self._native = native
        self.disk = _disk()
        self.medium = self.disk.medium(path)
        self.world = self.disk.host.world
        self.process = tasks.process()
        self.process.belongings.append(self)

    def die(self) -> None:
        self._native = None

    @property
    def native(self) -> Any:
        if self.process.dead or self._native is None:
            raise tasks.Killed
        return self._native

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def close(self) -> None:
        if self._native is not None and not self.process.dead:
            self._native.close()
            self._native = None
            self.medium.closed()
            if self in self.process.belongings:
                self.process.belongings.remove(self)


class SimLogTail(_Guarded):
    """`LogTail`, whose waits take simulated time."""

    def __init__(self, path: str) -> None:
        super().__init__(_native.LogTail(path), path)
        self._urls: dict[int, str] = {}

    def die(self) -> None:
        if self._native is not None:
            self._native.close()  # gives back a lock, and writes nothing
        super().die()

    def wait_commit(self, beyond: int, timeout_s: float) -> int:
        if self.native.committed() <= beyond:
            tasks.kernel().suspend(self.medium.waiters, timeout_s)
        return int(self.native.committed())

    def nap(self, beyond: int, timeout_s: float) -> None:
        if self.native.committed() <= beyond:
            tasks.sleep(timeout_s)

    def image_view(self, first_page: int, pages: int) -> memoryview:
        view: memoryview = self.native.image_view(first_page, pages)
        return view

    def claim_slot(self, url: str, required: bool) -> int:
        slot = int(self.native.claim_slot(url, required))
        self._urls[slot] = url
        return slot

    def update_slot(self, slot: int, **changes: Any) -> None:
        self.native.update_slot(slot, **changes)
        acked = changes.get("acked")
        if acked is not None and acked != _native.UNKNOWN:
            self.world.checker.acknowledged(self.disk.host, self._urls[slot], acked)

    def set_fence(self, epoch: int) -> None:
        self.world.tell(self.disk.host, f"hears that epoch {epoch} exists")
        self.native.set_fence(epoch)


class SimReplica(_Guarded):
    """`Replica`, on a disk that takes time and fails."""

    def __init__(self, path: str, arriving: bool = False, *, native: Any = None) -> None:
        super().__init__(native or _native.Replica(path, arriving), path)
        self._room: memoryview | None = None
        if native is None:
            self.world.checker.opened(self.disk.host, self.medium, self.native.end)
            self.world.checker.look(self.disk.host)
        self._settle()

    @classmethod
    def create_for_snapshot(cls, path: str, *args: Any) -> SimReplica:
        _disk().need_room(path)
        return cls(path, native=_native.Replica.create_for_snapshot(path, *args))

    def _settle(self) -> None:
        self.medium.settle(self.native.words()["tail"])

    def buffer(self, length: int) -> memoryview:
        self._room = self.native.buffer(length)
        self._settle()
        return self._room[:]

    def advance(self, length: int) -> int:
        room, before = self._room, self.native.end
        if room is not None:
            self.medium.torn = (before, bytes(room[: min(length, 8 << 10)]))
        self.disk.flush(self.medium.path)
        end = int(self.native.advance(length))
        self.medium.torn = None
        self._settle()
        if end != before:
            tasks.kernel().wake_all(self.medium.waiters)
        return end

    def set_epoch(self, epoch: int) -> None:
        self.disk.flush(self.medium.path)
        self.native.set_epoch(epoch)

    def finish_snapshot(self) -> None:
        self.disk.flush(self.medium.path)
        self.native.finish_snapshot()
        self.medium.settle(-2)

    def promote(self, epoch: int) -> int:
        self.disk.flush(self.medium.path)
        start = int(self.native.promote(epoch))
        self._settle()
        self.world.checker.promoted(self.disk.host, epoch, start)
        return start


class SimEngine(_Guarded):
    """`Engine` of a command, whose lease is looked at by the host's clock.

    The engine compares the deadline in the control words with the clock of this machine, which simulated hosts do not
    share: so just before a commit the deadline is put where the engine finds it past, or far, as it is on that host;
    and just after it, back. Whether to refuse is then the engine's decision.
    """

    def __init__(self, path: str) -> None:
        self.control: Any = None
        self.file: Any = None
        with _lease_of(tasks.process().host, path):  # type: ignore[arg-type]
            native = _native.Engine(path, capture="compare", log_timeout_s=0.0)
        super().__init__(native, path)
        self.control = _native.Control(path, writable=True)
        self.file = _native.File(native, "work")
        self.log_size = native.info()["log_size"]
        self.world.checker.opened(self.disk.host, self.medium, native.position)
        self.medium.settle(native.words()["tail"])

    def die(self) -> None:
        """Closing would leave the file cleaner than a kill does."""
        if self._native is None:
            return
        path = self.medium.path
        with open(path, "r+b") as file:
            header = file.read(HEADER_BYTES)
            self.file = None
            self._native.close()
            file.seek(0)
            file.write(header)
        self.control = None
        super().die()

    def close(self) -> None:
        self.file = self.control = None
        super().close()

    def commit(self) -> int:
        self.disk.flush(self.medium.path)
        with _lease_of(self.disk.host, self.medium.path):
            lsn = int(self.native.commit())
        self.medium.floor_lsn = lsn
        if lsn - self.words()["tail"] > self.log_size * 2 // 5:
            self.native.checkpoint()  # before the engine does it in a thread, of which the seed would know nothing
        self.medium.settle(self.native.words()["tail"])
        tasks.kernel().wake_all(self.medium.waiters)
        return lsn


class _lease_of(contextlib.AbstractContextManager[None]):
    """The lease in a store's words, as this machine's clock would have it."""

    def __init__(self, host: Host, path: str) -> None:
        self._host, self._path = host, path

    def __enter__(self) -> None:
        self._control = _native.Control(self._path, writable=True)
        words = self._control.words()
        self._was = (0, 0) if words is None else (words["lease_epoch"], words["lease_deadline_ns"])
        if self._was[1]:
            over = self._host.clock.boottime_ns() >= self._was[1]
            far = _native.boottime_ns() + 3600 * 10**9
            self._control.set_lease(
                self._was[0], 1 if over and self._host.world.variant.engine_fences else far
            )

    def __exit__(self, *_: object) -> None:
        if self._was[1]:
            self._control.set_lease(*self._was)
        self._control.close()


def read_state(path: str, read: Callable[[Any], Any]) -> tuple[int, Any]:
    """(position, what `read` makes of the file "work") of a store that others may have open."""
    engine = _native.Engine(path, readonly=True, capture="compare")
    try:
        return engine.position, read(_native.File(engine, "work"))
    finally:
        engine.close()
