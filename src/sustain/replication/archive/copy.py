"""Copies the image of a store into an archive while the application goes on changing it.

Used by `destination`, which takes one step after another between segments. The model is that of snapshots for peers
(`replication.snapshot`): what explains every page that is read from now on is the log from `start` on, and the copy is
whole with the log up to what was committed when the last page had been read. That log is archived anyway, so a copy
is pages only; its document, which makes it count, is put when the archive holds both.

It begins where the image was when the first page was read, not where the log does: in a store that changes little that
is far behind, and every restore would have to take in all of it again. The price is that an application that starts
again, and replays its log over the image, ends the copy.
"""

import secrets
import time
from collections.abc import Iterator

from sustain._native import LogTail
from sustain.errors import PeerUnreachable
from sustain.replication.archive import names, pages
from sustain.replication.archive.documents import Part, Snapshot, encode
from sustain.replication.archive.names import SnapshotName
from sustain.replication.archive.rooms import Rooms
from sustain.replication.records import COMMIT_BYTES, commit_at
from sustain.replication.snapshot import history_before
from sustain.replication.wire import Hello

PART_BYTES = 16 << 20


def point(log: LogTail) -> tuple[int, int, int]:
    """(LSN, commits before it, chain) where the log begins that a copy needs whose first page is read after this."""
    applied, oldest = log.words()["applied"], log.snapshot_point()
    at = applied - COMMIT_BYTES
    if at < oldest[0]:
        return oldest
    with log.log_view(at, COMMIT_BYTES) as view:
        commit = commit_at(view, 0, at)
    return oldest if commit is None else (applied, commit.number, commit.checksum)


class Copy:
    """One copy of the image, whose log begins at `begin`, a `point` that was found after `recoveries` was read."""

    def __init__(self, log: LogTail, hello: Hello, begin: tuple[int, int, int], recoveries: int) -> None:
        self.start, self._seq, self._chain = begin
        self.usable: int | None = None  # known when all pages have been read
        self.time_high_ns = 0  # set when the log up to `usable` is known: no commit before it is later
        self.done_bytes = 0
        self.begun_s = time.monotonic()
        self.named = False  # its document may be there
        self._log = log
        self._hello = hello
        self._recoveries = recoveries
        self._copy = secrets.token_hex(8)
        self._parts: list[Part] = []
        self._pages = log.image_size() // pages.PAGE_BYTES

    def parts(self, rooms: Rooms) -> Iterator[tuple[str, memoryview]]:
        """(path, object) of each part, read when it is asked for. `usable` is set behind the last."""
        page = 0
        while page < self._pages:
            runs, page = self._runs(page)
            if not runs:
                break
            packed = self._read(runs, rooms)
            self._check()
            path = names.part_path(self._hello.epoch, self._copy, len(self._parts))
            self._parts.append(Part(path, len(packed)))
            self.done_bytes += sum(count for _, count in runs) * pages.PAGE_BYTES
            yield path, packed
        self.usable = self._log.committed()  # after the last page was read
        self._check()

    @property
    def paths(self) -> list[str]:
        """Of the parts so far, whether they have arrived or not."""
        return [part.path for part in self._parts]

    def _check(self) -> None:
        if self._recoveries % 2 or self._log.words()["recoveries"] != self._recoveries:
            raise PeerUnreachable("the application was restarted during a snapshot", hint="it begins again")

    def _runs(self, page: int) -> tuple[list[tuple[int, int]], int]:
        """((first page, pages)… of one part, page to go on with)."""
        runs: list[tuple[int, int]] = []
        room = PART_BYTES // pages.PAGE_BYTES
        while room > 0 and page < self._pages:
            first, count = self._log.next_used_run(page, room)
            if count:
                runs.append((first, count))
            page, room = first + count, room - count
        return runs, page

    def _read(self, runs: list[tuple[int, int]], rooms: Rooms) -> memoryview:
        """The object of these pages, as they are now."""
        packed = rooms.take(pages.packed_size(runs))
        at = pages.data_offset(runs)
        for first, count in runs:
            with self._log.image_view(first, count) as view:
                packed[at : at + len(view)] = view
            at += count * pages.PAGE_BYTES
        pages.pack(packed, self._hello.store, self._copy, runs)
        return packed

    def document(self) -> tuple[str, bytes]:
        """(path, bytes) of what makes the copy count."""
        assert self.usable is not None
        hello = self._hello
        snapshot = Snapshot(
            store=hello.store.hex(),
            epoch=hello.epoch,
            copy=self._copy,
            history=history_before(hello.history, self.start),
            start=self.start,
            start_seq=self._seq,
            start_chain=self._chain,
            usable=self.usable,
            image_size=hello.image_size,
            log_size=hello.log_size,
            durability=hello.durability,
            parts=self._parts,
            time_high_ns=self.time_high_ns,
            written_ns=time.time_ns(),
        )
        return SnapshotName(hello.epoch, self.start, self.usable).path, encode(snapshot)
