"""Cuts segments out of a store's log: where commits end, as full as they may be. Used by `shipping`."""

from dataclasses import dataclass

from sustain._native import LogTail
from sustain.errors import ArchiveCorrupt
from sustain.replication.archive import segment
from sustain.replication.archive.names import SegmentName
from sustain.replication.archive.rooms import Rooms
from sustain.replication.records import COMMIT_BYTES, commit_at
from sustain.replication.wire import Hello


@dataclass(frozen=True)
class Cut:
    """A whole segment. `chain`: checksum field of its last COMMIT; `time_ns` of that, since 1970; no commit before its
    end is later than `high_ns`."""

    name: SegmentName
    packed: memoryview
    chain: int
    time_ns: int
    high_ns: int


class Cutter:
    """Of one log, for one archive. `high_ns`: no commit before the first cut is later."""

    def __init__(
        self, log: LogTail, hello: Hello, url: str, segment_bytes: int, rooms: Rooms, high_ns: int
    ) -> None:
        self.high_ns = high_ns
        self._log = log
        self._hello = hello
        self._url = url
        self._segment_bytes = segment_bytes
        self._rooms = rooms

    def cut(self, lsn: int, committed: int) -> Cut | None:
        """The next segment, of log in [lsn, committed); one commit that is larger than a segment makes one of its own.
        None: the log was trimmed before it could be copied. Raises ArchiveCorrupt."""
        most = committed - lsn
        length = min(most, self._segment_bytes)
        while True:
            room = self._rooms.take(segment.HEADER_BYTES + length)
            body = room[segment.HEADER_BYTES :]
            with self._log.log_view(lsn, length) as view:
                body[:] = view
            if self._log.tail() > lsn:
                return None
            ends, high_ns = segment.likely_commits(body, lsn)
            last = next((end for end in reversed(ends) if self._log.group_boundary(end)), None)
            if last is not None:
                break
            self._rooms.give(room)
            if length == most:
                raise ArchiveCorrupt(f"{self._url}: no commit ends between {lsn} and {committed}")
            length = min(most, length * 4)
        end = last - lsn
        commit = commit_at(body[end - COMMIT_BYTES : end], 0, last - COMMIT_BYTES)
        if commit is None:
            raise ArchiveCorrupt(f"{self._url}: no commit ends at {last}")
        self.high_ns = max(self.high_ns, high_ns)
        name = SegmentName(self._hello.epoch, lsn, last)
        packed = room[: segment.HEADER_BYTES + end]
        segment.seal(packed, name, self._hello.store, commit.time_ns, self.high_ns)
        return Cut(name, packed, commit.checksum, commit.time_ns, self.high_ns)
