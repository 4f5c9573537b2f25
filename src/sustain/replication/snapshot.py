"""Sends a copy of a store's image while the application goes on changing it.

Used by `destination`. The model (docs/formats/wire.md, "Snapshot"): pin the log at a point from which it
explains every page that is read from now on; send the pages that are not zero, in address order, as they are;
then the log up to what was committed when the last page had been read. Log bytes go out *between* pages too,
so that a large image does not hold up the trimming of the log for as long as its copy takes; these never go
past what the image already holds, because a page read later must not be older than the log the receiver has
consumed.
"""

import itertools
from typing import Protocol

from sustain._native import LogTail
from sustain.errors import PeerUnreachable
from sustain.replication.channel import Channel
from sustain.replication.session import Rewind, Snapshot
from sustain.replication.wire import DIGEST_BYTES, PAGE_BYTES, Hello, Kind, SnapshotBegin, encode

RUN_PAGES = 256


class Link(Protocol):
    """What a snapshot needs of the destination that it goes to."""

    channel: Channel

    def pin(self, lsn: int) -> None:
        """Keep the log from `lsn` on."""

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """For status; raises when the connection has ended or is to end."""

    def ship_log(self, lsn: int, until: int) -> int:
        """Send log bytes [lsn, until); `until`."""

    def wait_digests(self) -> dict[int, bytes]:
        """What DIGESTS said, by first page."""

    def wait_done(self, lsn: int) -> None:
        """Until SNAPSHOT_DONE at `lsn`."""


def send_snapshot(link: Link, log: LogTail, hello: Hello, decision: Snapshot | Rewind, compare: bool) -> int:
    """Bring the replica to a consistent copy; the LSN that it then has. Raises ReplicationError."""
    start, start_seq, start_chain = _pinned_point(link, log)
    pages = log.image_size() // PAGE_BYTES
    total = _used_bytes(log, pages)
    begin = SnapshotBegin(
        store=hello.store,
        image_size=hello.image_size,
        log_size=hello.log_size,
        durability=hello.durability,
        epoch=hello.epoch,
        history=history_before(hello.history, start),
        start=start,
        start_seq=start_seq,
        start_chain=start_chain,
        common=decision.common if isinstance(decision, Rewind) else None,
        reason=decision.reason[:1000],
        total_bytes=total,
        compare=compare,
    )
    link.channel.send(Kind.SNAPSHOT_BEGIN, payload=encode(begin))
    link.progress(0, total)
    theirs = link.wait_digests() if compare else {}
    sent = start
    done = page = 0
    recoveries = _recoveries(log)
    while (first := log.next_used_page(page)) < pages:
        if recoveries % 2 == 0 and recoveries == _recoveries(log):
            sent = _ship_applied(link, log, sent, hello.log_size // 16)
        count = _run_length(log, first, pages)
        _send_run(link.channel, log, first, count, theirs)
        if sent > start and recoveries != _recoveries(log):
            raise PeerUnreachable("the application was restarted during a snapshot", hint="it begins again")
        page = first + count
        done += count * PAGE_BYTES
        link.progress(done, max(total, done))
    copy_end = log.committed()  # after the last page was read
    link.ship_log(sent, copy_end)
    words = log.words()
    link.channel.send(Kind.SNAPSHOT_END, copy_end, words["committed"], words["commit_time_ns"])
    link.wait_done(copy_end)
    return copy_end


def history_before(history: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    """The epochs that a log beginning at `start` no longer tells of; the oldest one was never told by a
    record."""
    return [entry for at, entry in enumerate(history) if at == 0 or entry[1] < start]


def _recoveries(log: LogTail) -> int:
    return log.words()["recoveries"]


def _pinned_point(link: Link, log: LogTail) -> tuple[int, int, int]:
    point = log.snapshot_point()
    while True:
        link.pin(point[0])
        again = log.snapshot_point()
        if again == point:
            return point
        point = again


def _used_bytes(log: LogTail, pages: int) -> int:
    used = page = 0
    while (page := log.next_used_page(page)) < pages:
        used += 1
        page += 1
    return used * PAGE_BYTES


def _run_length(log: LogTail, first: int, pages: int) -> int:
    count = 1
    while count < RUN_PAGES and first + count < pages and log.next_used_page(first + count) == first + count:
        count += 1
    return count


def _ship_applied(link: Link, log: LogTail, sent: int, at_least_bytes: int) -> int:
    """Send what the log has got meanwhile, as far as the image has it too."""
    words = log.words()
    until = min(words["applied"], words["committed"])
    if until - sent <= at_least_bytes:
        return sent
    return link.ship_log(sent, until)


def _send_run(channel: Channel, log: LogTail, first: int, count: int, theirs: dict[int, bytes]) -> None:
    same = _same(log, first, count, theirs) if theirs else [False] * count
    at = first
    for equal, group in itertools.groupby(same):
        pages = len(list(group))
        if equal:
            channel.send(Kind.SAME, at, pages)
        else:
            with log.image_view(at, pages) as view:
                channel.send(Kind.PAGES, at, payload=view)
        at += pages


def _same(log: LogTail, first: int, count: int, theirs: dict[int, bytes]) -> list[bool]:
    """Which of the pages the replica has already."""
    ours = log.page_digests(first, count)
    return [
        ours[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] == _digest(theirs, first + at)
        for at in range(count)
    ]


def _digest(theirs: dict[int, bytes], page: int) -> bytes:
    # Receivers send them in blocks that begin at multiples of their length; the last may be shorter.
    block = page // DIGEST_BLOCK_PAGES * DIGEST_BLOCK_PAGES
    at = (page - block) * DIGEST_BYTES
    return theirs.get(block, b"")[at : at + DIGEST_BYTES]


DIGEST_BLOCK_PAGES = 4096
