"""The standby's copy on disk: absent, open, or being replaced by a snapshot.

Used by `receive` (life cycle) and `intake` (what arrives). A snapshot is written to `PATH.incoming` and takes
the place of PATH by a rename, once it is verified and durable; until then the old copy stays whole, and open.
What lies at `PATH.incoming` after an interruption is left until the next snapshot begins, because its
superblock may be the only place that remembers the newest epoch.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from sustain._native import Control, Replica, durability_of
from sustain.errors import StoreCorrupt, StoreError, StoreFenced, StoreIOError, StoreUntrusted, SustainError
from sustain.replication.accounts import Book
from sustain.replication.orphan import OrphanReport, commit_time, keep_orphan, sync_directory, unresolved
from sustain.replication.records import epoch_at
from sustain.replication.session import common_point
from sustain.replication.wire import PAGE_BYTES, Account, Hello, SnapshotBegin, Welcome

if TYPE_CHECKING:  # only the stub has it
    from sustain._native import Superblock

_ALIGN = 2 << 20
_EPOCH_BYTES = 64  # an EPOCH record
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _silent(_: str) -> None:
    pass


def no_room(error: StoreError) -> bool:
    """Whether the disk is full, which passes."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


class Standby:
    """One store file that a receiver keeps. Not thread-safe: one session at a time uses it."""

    def __init__(
        self,
        path: str,
        name: str,
        durability: str,
        size_limit: int | None,
        tell: Callable[[str], None] = _silent,
    ) -> None:
        self.path = path
        self.incoming_path = f"{path}.incoming"
        self._name = name
        self._durability = durability
        self._size_limit = size_limit
        self.replica: Replica | None = None
        self.incoming: Replica | None = None  # a snapshot that is being received
        self.unusable: str | None = None  # why the file at `path` is not used
        self.full = False  # a write found no room: the copy takes nothing more until it is opened again
        self.known_epoch = 0
        self.rewinding = False  # the copy holds commits that are not the newest primary's
        self.orphans: list[OrphanReport] = []
        self.book = Book(path, tell)
        self._damage: tuple[int, int] = (-1, 0)  # (end, times in a row that the log did not continue it)

    # opening and closing

    def open(self) -> None:
        """Open what is there. Raises what makes the file unfit to be touched (busy, newer, not a store,
        I/O)."""
        with contextlib.suppress(SustainError):
            self.known_epoch = _superblock(self.incoming_path)["epoch"]
        if not os.path.exists(self.path):
            return
        block = _superblock(self.path)
        self.known_epoch = max(self.known_epoch, block["epoch"])
        if block["incomplete"]:
            self.unusable = "an interrupted snapshot"
            return
        if not block["received"] and self.book.wrote() != block["replica_uuid"]:
            # Before a receiver has it: then the store tells no more.
            self.book.note_writer(block["replica_uuid"])
        try:
            self.replica = Replica(self.path)
        except (StoreUntrusted, StoreCorrupt) as error:
            self.unusable = str(error)
        if self.replica is None:
            return
        if self.known_epoch > self.replica.epoch:
            self.replica.set_epoch(self.known_epoch)
        self.rewinding = unresolved(self.path, block["replica_uuid"], self.replica.end) is not None

    def reopen(self) -> None:
        """After a write that found no room: go on with what is durable. Raises StoreError."""
        self.close()
        self.open()
        self.full = False

    def close(self) -> None:
        self.drop_incoming()
        if self.replica is not None:
            self.replica.close()
            self.replica = None

    def promote(self, epoch: int) -> int:
        """Open `epoch` on this copy; the LSN where it begins. The store is closed then, ready for an
        application."""
        if self.full:
            self.reopen()
        if self.replica is None:
            raise StoreError(
                f"{self.path}: there is no complete copy to take over with", hint="wait for a snapshot"
            )
        if self.rewinding:
            raise StoreError(
                f"{self.path} holds commits that the newest primary does not have, and lacks some of its own",
                hint="wait until its snapshot is complete, or take over on another standby",
            )
        start = self.replica.promote(epoch)
        self.close()
        return start

    # what it says of itself

    @property
    def end(self) -> int:
        return self.replica.end if self.replica is not None else 0

    @property
    def log_epoch(self) -> int:
        """The epoch in which the newest bytes here were written; 0 without a copy."""
        if self.replica is None:
            return 0
        history = self.replica.superblock()["history"]
        return history[-1][0] if history else 0

    def welcome(self) -> Welcome:
        if self.replica is None:
            return Welcome(name=self._name, epoch=self.known_epoch, probes=True, accounts=True)
        block = self.replica.superblock()
        return Welcome(
            replica=block["replica_uuid"],
            name=self._name,
            has_store=True,
            store=block["store_uuid"],
            image_size=block["image_size"],
            log_size=block["log_size"],
            end=self.replica.end,
            end_seq=self.replica.end_seq,
            end_chain=self.replica.end_chain,
            epoch=self.known_epoch,
            history=[(epoch, start) for epoch, start in block["history"]],
            incomplete=block["incomplete"],
            diverged=self._damage[1] >= 2,
            digests=os.path.isfile(self.path),
            primary_committed=self.replica.words()["primary_committed"] or None,
            probes=True,
            accounts=True,
        )

    def objection(self, hello: Hello) -> tuple[str, str, str] | None:
        """(code, message, hint) when this copy cannot be `hello`'s replica."""
        if hello.epoch < self.known_epoch:
            return (
                "fenced",
                f"epoch {hello.epoch} is over: {self._name or 'this host'} has seen epoch {self.known_epoch}",
                "another host is the primary now; start this one as a standby",
            )
        if self.replica is not None:
            block = self.replica.superblock()
            if block["store_uuid"] != hello.store:
                return (
                    "other-store",
                    f"{self.path} holds another store",
                    "name another --store, or move that file",
                )
            if (block["image_size"], block["log_size"]) != (hello.image_size, hello.log_size):
                return "size", f"{self.path} has other sizes than the primary's", "move that file away"
        size = store_bytes(hello.image_size, hello.log_size)
        if self._size_limit is not None and size > self._size_limit:
            return (
                "no-room",
                f"the store takes {size} bytes, the receiver's limit is {self._size_limit}",
                "raise --size-limit of `sustain receive`",
            )
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if hello.log_size > memory_bytes // 2:  # the log is held in memory as well, as far as it is filled
            return (
                "no-room",
                f"the store's log of {hello.log_size} bytes is more than half of the receiver's memory",
                "a smaller log, or more memory there",
            )
        return None

    # what arrives

    def accept_epoch(self, epoch: int) -> None:
        """Make `epoch` the newest one seen, durably where there is a copy. Raises StoreFenced for an older
        one."""
        if epoch < self.known_epoch:
            raise StoreFenced(f"{self.path}: epoch {epoch} is older than {self.known_epoch}")
        if self.replica is not None and epoch > self.replica.epoch:
            self.replica.set_epoch(epoch)
        self.known_epoch = epoch

    def note_primary(self, hello: Hello) -> None:
        """See whether this copy holds what `hello`'s primary does not: such a copy must not take over."""
        if self.replica is not None:
            history = self.replica.superblock()["history"]
            common = common_point(hello.history, hello.committed, history, self.replica.end)
            self.rewinding = self.replica.end > common

    def note_progress(self) -> None:
        self._damage = (-1, 0)

    def note_damage(self) -> None:
        """The bytes behind `end` were refused: a bad link if it happens once, other histories if again."""
        end = self.end
        times = self._damage[1] if self._damage[0] == end else 0
        self._damage = (end, times + 1)

    def begin_snapshot(self, begin: SnapshotBegin, hello: Hello) -> Replica:
        """Keep what only this copy has, then make room for another, the `incoming` one. Raises StoreError."""
        self.drop_incoming()
        if self.replica is not None:
            self.give_account(hello, self._keep_orphan(begin, hello))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.incoming_path)
        directory = os.path.dirname(os.path.abspath(self.path))
        needed = begin.total_bytes + begin.log_size
        stats = os.statvfs(directory)
        if stats.f_bavail * stats.f_frsize < needed:
            raise StoreIOError(
                f"{directory} has no room for a snapshot of {needed} bytes",
                hint="make room; the old copy, if any, stays until the new one is complete",
            )
        durability = durability_of(self.incoming_path) if self._durability == "auto" else self._durability
        self.incoming = Replica.create_for_snapshot(
            self.incoming_path,
            begin.image_size,
            begin.log_size,
            durability,
            begin.store,
            begin.epoch,
            [(epoch, start) for epoch, start in begin.history],
            begin.start,
            begin.start_seq,
            begin.start_chain,
        )
        return self.incoming

    def drop_incoming(self) -> None:
        """Give up a snapshot that is not complete. Its file stays until the next begins."""
        if self.incoming is not None:
            self.incoming.close()
            self.incoming = None

    def install_snapshot(self) -> Replica:
        """Verify the incoming copy, put it in the old one's place, open it there. Raises StoreError."""
        assert self.incoming is not None
        self.incoming.finish_snapshot()
        end = self.incoming.end
        self.drop_incoming()
        if self.unusable is not None and os.path.exists(self.path):
            aside = f"{self.path}.set-aside-{time.time_ns()}"
            os.rename(self.path, aside)
        os.rename(self.incoming_path, self.path)
        sync_directory(self.path)
        if self.replica is not None:
            self.replica.close()
            self.replica = None
        self.unusable, self.rewinding = None, False
        self._damage = (-1, 0)
        self.replica = Replica(self.path)
        if self.replica.end != end:
            raise StoreCorrupt(f"{self.path} ends at {self.replica.end} after a snapshot that ended at {end}")
        return self.replica

    def old_image(self) -> "OldImage | None":
        """The pages of the copy that is being replaced."""
        if self.replica is None or not os.path.isfile(self.path):
            return None
        return OldImage(self.path, self.replica)

    def give_account(self, hello: Hello, orphan: OrphanReport | None = None) -> None:
        """Note what became of a log that was written here, or of a tail that was kept: the one time that this can be
        said, before anything of `hello`'s primary comes in."""
        if self.replica is None:
            return
        block, end = self.replica.superblock(), self.replica.end
        history, written = block["history"], self._written_here(block)
        if hello.epoch <= self.log_epoch:
            if self.book.wrote() is not None:
                # Others write in that epoch, too: whose the end is cannot be said later.
                self.book.note_writer(None)
            return
        if orphan is None and not written:
            return
        tail = self.replica.words()["tail"]
        common = end if orphan is None else orphan.common
        made = orphan is not None and orphan.commits > 0
        account = Account(
            store=block["store_uuid"],
            replica=block["replica_uuid"],
            host=self._name,
            epoch=self.log_epoch,
            writer=written,
            newer_epoch=hello.epoch,
            common=common,
            end=end,
            end_seq=self.replica.end_seq,
            opened=sum(start >= common for _, start in history),
            kept_from=end if orphan is None else orphan.kept_from,
            before_time_ns=commit_time(self.replica.read_log, common, tail),
            first_time_ns=orphan.first_commit_time_ns if orphan is not None and made else None,
            last_time_ns=orphan.last_commit_time_ns if orphan is not None and made else None,
            noted_ns=time.time_ns(),
        )
        self.book.add([account], settled=True)

    def _written_here(self, block: "Superblock") -> bool:
        """Whether the newest epoch of the log was written on this host, and nothing has been received since."""
        assert self.replica is not None
        if self.book.wrote() == block["replica_uuid"]:
            return True
        # Opened by a supervisor here whose command never came to open the store.
        epoch, start = block["history"][-1] if block["history"] else (0, 0)
        if start < self.replica.words()["tail"] or start + _EPOCH_BYTES > self.replica.end:
            return False
        return epoch_at(self.replica.read_log(start, _EPOCH_BYTES), 0, start) == (
            epoch,
            block["replica_uuid"],
        )

    def _keep_orphan(self, begin: SnapshotBegin, hello: Hello) -> OrphanReport | None:
        assert self.replica is not None
        block, end = self.replica.superblock(), self.replica.end
        common = common_point(hello.history, hello.committed, block["history"], end)
        if begin.common is not None:
            common = min(common, begin.common)
        if common >= end:
            return None
        self.rewinding = True
        words = self.replica.words()
        report = keep_orphan(
            self.path,
            store_uuid=block["store_uuid"],
            replica_uuid=block["replica_uuid"],
            epoch=self.log_epoch,
            newer_epoch=begin.epoch,
            common=common,
            tail=words["tail"],
            end=end,
            read_log=self.replica.read_log,
            host=self._name,
        )
        self.orphans.append(report)
        return report

    def status(self) -> dict[str, object]:
        """For any thread: looks at the file from outside, because the engine may be busy with a flush."""
        end, log_epoch = None, None
        if self.replica is not None:
            with contextlib.suppress(SustainError):
                control = Control(self.path)
                try:
                    words, history = control.words(), control.superblock()["history"]
                finally:
                    control.close()
                end = words["committed"] if words is not None else None
                log_epoch = history[-1][0] if history else None
        return {
            "path": self.path,
            "has_store": self.replica is not None,
            "unusable": self.unusable,
            "end": end,
            "epoch": self.known_epoch,
            "log_epoch": log_epoch,
            "rewinding": self.rewinding,
            "orphans": [asdict(report) for report in self.orphans],
        }


class OldImage:
    """Reads pages of a copy that nobody changes any more."""

    def __init__(self, path: str, replica: Replica) -> None:
        block = replica.superblock()
        self._replica = replica
        self._image_offset = image_offset(block["image_size"], block["log_size"])
        self.pages = block["image_size"] // PAGE_BYTES
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def digests(self, first_page: int, pages: int) -> bytes:
        return self._replica.page_digests(first_page, pages)

    def read(self, first_page: int, pages: int) -> bytes:
        data = os.pread(self._fd, pages * PAGE_BYTES, self._image_offset + first_page * PAGE_BYTES)
        if len(data) != pages * PAGE_BYTES:
            raise StoreIOError("the old copy is shorter than its superblock says")
        return data

    def close(self) -> None:
        os.close(self._fd)


def image_offset(image_size: int, log_size: int) -> int:
    """Where the image begins in a store file: docs/formats/store.md."""
    sums = -(-(image_size // 512) // _ALIGN) * _ALIGN
    return _ALIGN + log_size + sums


def store_bytes(image_size: int, log_size: int) -> int:
    """Size of a whole store file."""
    return image_offset(image_size, log_size) + image_size


def _superblock(path: str) -> "Superblock":
    control = Control(path)
    try:
        return control.superblock()
    finally:
        control.close()
