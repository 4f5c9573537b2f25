"""One session of a receiver: takes in what one connection brings, and acknowledges what is durable.

Used by `receive`, in the connection's thread. The model: log bytes are received straight into the replica's
ring behind what is there (no copy in between), *gathered* over as many frames as have arrived, then handed to
the engine, which verifies, makes durable and applies what is complete. So one flush serves all that came
while the last one ran, and a lone small commit is not kept waiting. While more arrives than a flush is worth,
a second thread does that (`applier`). A third sends heartbeats, because a receiver whose disk is slow must
not look dead.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sustain._native import Replica
from sustain.errors import LogTooSmall, PeerUnreachable, ProtocolError, StoreCorrupt, StoreError, SustainError
from sustain.replication.applier import Applier
from sustain.replication.channel import Channel, ConnectionEnded
from sustain.replication.standby import OldImage, Standby, no_room
from sustain.replication.wire import (
    ACCOUNTS_LIMIT,
    MOST,
    PAGE_BYTES,
    RECEIVER_STREAM,
    Account,
    Bye,
    Header,
    Hello,
    Kind,
    SnapshotBegin,
    decode,
    encode,
)

GATHER_BYTES = 16 << 20  # room asked of the ring at a time, at most
HAND_OVER_BYTES = 512 << 10  # enough to be applied by another thread while more arrives
HAND_OVER_S = 0.05  # or long enough: on a slow link, too, what is whole is to count soon
_DIGEST_PAGES = 4096
_TICK_S = 0.1  # how often a sender hears of a long group that is coming in
_SCRAP_BYTES = 64 << 10


@dataclass
class Progress:
    """What a session has seen; read by other threads for status."""

    state: str = "connected"  # "connected", "streaming", "snapshot", "verifying"
    end: int = 0
    received: int = 0
    primary_committed: int = 0
    primary_commit_time_ns: int = 0
    heard_monotonic: float = field(default_factory=time.monotonic)
    snapshot_done_bytes: int = 0
    snapshot_total_bytes: int = 0


class Intake:
    """A session from its WELCOME to its end."""

    def __init__(
        self,
        channel: Channel,
        hello: Hello,
        standby: Standby,
        heartbeat_s: float,
        report: Callable[[str], None],
    ) -> None:
        self.channel = channel
        self.hello = hello
        self.progress = Progress(end=standby.end, primary_committed=hello.committed)
        self.done = threading.Event()  # it acknowledges nothing more
        self.ended = threading.Event()  # and it does not touch the store any more
        self._standby = standby
        self._heartbeat_s = heartbeat_s
        self._report = report
        self._target: Replica | None = None  # the replica that log bytes go to
        self._old: OldImage | None = None
        self._begin: SnapshotBegin | None = None
        self._room: memoryview | None = None
        self._gather_bytes = min(GATHER_BYTES, max(hello.log_size // 8, 64 << 10))
        self._filled = 0  # bytes in the room
        self._handed = 0  # of them, given to the applier
        self._handed_s = 0.0  # when, or when what is in the room began to arrive
        self._applier = Applier(self._apply, channel.stop_reading)
        self._received = 0  # position behind the last byte received, gathered ones too
        self._probe = (0, 0)  # number of the last probe, bytes of it so far
        self._scrap: memoryview | None = None
        self._accounts = 0  # heard

    def run(self) -> None:
        """Until the connection ends. Raises ReplicationError (this session failed) or StoreError (the store
        has)."""
        ticker = threading.Thread(target=self._tick, name="sustain-heartbeat", daemon=True)
        ticker.start()
        try:
            self._receive_all()
        except (StoreCorrupt, LogTooSmall) as error:
            if self.progress.state == "streaming":
                self._standby.note_damage()
            self.channel.bye("diverged", str(error))
            raise ProtocolError(
                f"{self.channel.peer}: {error}", hint="the connection begins again"
            ) from error
        except SustainError as error:
            if isinstance(error, StoreError) and no_room(error) and self.progress.state == "streaming":
                self._standby.full = True
            self.channel.bye("failed", str(error))
            raise
        finally:
            self.done.set()
            self.channel.close()
            try:
                self._applier.close()
                self._clean_up()
            finally:
                self.ended.set()
            ticker.join()

    def _receive_all(self) -> None:
        try:
            while True:
                self._step()
        except PeerUnreachable as error:
            with contextlib.suppress(PeerUnreachable):
                self._flush()  # what arrived whole before the end counts
            if not isinstance(error, ConnectionEnded):
                raise

    def finish(self) -> None:
        """From another thread: take in what has arrived, then end."""
        self.channel.stop_reading()

    # receiving

    def _step(self) -> None:
        if self._filled and not self.channel.ready():
            self._flush()
        header = self.channel.receive_header(RECEIVER_STREAM)
        self.progress.heard_monotonic = time.monotonic()
        if header.kind is Kind.LOG:
            self._hear(header)
            self._take_log(header)
        elif header.kind is Kind.HEARTBEAT:
            self._hear(header)
        else:
            self._flush()
            self._control(header)

    def _control(self, header: Header) -> None:
        kind = header.kind
        if kind is Kind.RESUME:
            self._resume(header)
        elif kind is Kind.SNAPSHOT_BEGIN:
            self._begin_snapshot(decode(SnapshotBegin, self.channel.receive_payload(header)))
        elif kind is Kind.PAGES:
            self._take_pages(header)
        elif kind is Kind.SAME:
            self._take_same(header)
        elif kind is Kind.SNAPSHOT_END:
            self._end_snapshot(header)
        elif kind is Kind.PROBE:
            self._count_probe(header)
        elif kind is Kind.ACCOUNT:
            self._take_account(decode(Account, self.channel.receive_payload(header)))
        elif kind is Kind.BYE:
            bye = decode(Bye, self.channel.receive_payload(header))
            text = f"{self.channel.peer} ended the connection: {bye.message or bye.code}"
            raise ConnectionEnded(text)

    def _hear(self, header: Header) -> None:
        """A frame that says how far the primary is. Raises ProtocolError for what no later WELCOME could say."""
        if header.b > MOST or header.c > MOST:
            raise ProtocolError("a position that no log reaches", hint="run the same version on both hosts")
        self.progress.primary_committed, self.progress.primary_commit_time_ns = header.b, header.c
        replica = self._standby.replica
        if replica is not None:
            replica.note_primary(header.b, header.c)

    def _resume(self, header: Header) -> None:
        replica = self._standby.replica
        if self._target is not None or replica is None or header.a != replica.end:
            raise ProtocolError(
                f"RESUME at {header.a} does not fit", hint="run the same version on both hosts"
            )
        self._hear(header)
        self._standby.give_account(self.hello)
        self._say_accounts()
        self._follow(replica)
        self.progress.state = "streaming"
        self._report(f"receiving from {self._who()} from position {replica.end} on")

    def _say_accounts(self) -> None:
        """All that is known here of logs that are over; the primary drops what it knows."""
        if self.hello.accounts:
            for account in self._standby.book.accounts(self.hello.store):
                self.channel.send(Kind.ACCOUNT, payload=encode(account))

    def _take_account(self, account: Account) -> None:
        self._accounts += 1
        if self._accounts > ACCOUNTS_LIMIT or account.store != self.hello.store:
            raise ProtocolError("ACCOUNT does not fit", hint="run the same version on both hosts")
        self._standby.book.add([account])

    def _follow(self, replica: Replica) -> None:
        replica.discard_partial()
        self._target = replica
        self._received = self.progress.received = self.progress.end = replica.end

    def _take_log(self, header: Header) -> None:
        if self._target is None or header.a != self._received:
            raise ProtocolError(
                f"log bytes of position {header.a} where {self._received} is next",
                hint="the connection begins again",
            )
        left = header.length
        while left:
            if self._room is None:
                self._room = self._target.buffer(self._gather_bytes)
                self._handed_s = time.monotonic()
            with self._room[self._filled : self._filled + left] as piece:
                got = self.channel.receive_some(piece)
            if got == 0:
                raise PeerUnreachable(f"{self.channel.peer} closed the connection inside a record", hint="")
            self._filled += got
            self._received += got
            left -= got
            if self._filled == len(self._room):
                self._flush()
            elif self._applier.idle:
                now_s, fresh = time.monotonic(), self._filled - self._handed
                if fresh >= HAND_OVER_BYTES or now_s - self._handed_s >= HAND_OVER_S:
                    self._applier.submit(fresh)
                    self._handed, self._handed_s = self._filled, now_s

    def _flush(self) -> None:
        """Have everything that was received verified, durable, applied and acknowledged, as far as it is
        whole."""
        self._applier.drain()
        room, self._room = self._room, None
        left = self._filled - self._handed
        self._filled = self._handed = 0
        if room is not None:
            room.release()
        if left:
            self._apply(left)

    def _apply(self, length: int) -> None:
        """Hand `length` bytes to the engine, and acknowledge what that made durable. Here, or in the
        applier."""
        assert self._target is not None
        end = self._target.advance(length)
        progress = self.progress
        progress.received += length
        if end != progress.end:
            progress.end = end
            self._standby.note_progress()
            if not self.done.is_set():
                with contextlib.suppress(PeerUnreachable):  # the receiving side will find out
                    self.channel.send(Kind.ACK, end, progress.received)

    def _count_probe(self, header: Header) -> None:
        if self._target is None or self.progress.state != "streaming":
            raise ProtocolError("a PROBE outside a stream", hint="run the same version on both hosts")
        if self._scrap is None:
            self._scrap = memoryview(bytearray(_SCRAP_BYTES))
        left = header.length
        while left:
            got = self.channel.receive_some(self._scrap[:left])
            if got == 0:
                raise PeerUnreachable(f"{self.channel.peer} closed the connection inside a probe", hint="")
            left -= got
        number, counted = self._probe
        self._probe = (header.a, (counted if number == header.a else 0) + header.length)
        self.channel.send(Kind.COUNTED, *self._probe)

    # snapshots

    def _begin_snapshot(self, begin: SnapshotBegin) -> None:
        hello = self.hello  # which was looked at before it was let in: sizes, epoch
        told = (begin.store, begin.epoch, begin.image_size, begin.log_size)
        if self._target is not None or told != (hello.store, hello.epoch, hello.image_size, hello.log_size):
            raise ProtocolError("SNAPSHOT_BEGIN does not fit", hint="run the same version on both hosts")
        self._report(f"receiving a snapshot from {self._who()}: {begin.reason}")
        kept = len(self._standby.orphans)
        incoming = self._standby.begin_snapshot(begin, self.hello)
        for orphan in self._standby.orphans[kept:]:
            self._report(
                f"kept {orphan.kept_bytes} bytes ({orphan.commits} commits) that only this host has "
                f"in {orphan.file or 'no file'}; {orphan.lost_bytes} bytes before them were gone already"
            )
        self._say_accounts()
        self._begin = begin
        self.progress.state = "snapshot"
        self.progress.snapshot_total_bytes = begin.total_bytes
        self._follow(incoming)
        if begin.compare:
            self._old = self._standby.old_image()
            self._send_digests(zero=incoming.page_digests(0, 1))

    def _send_digests(self, zero: bytes) -> None:
        if self._old is not None:
            for first in range(0, self._old.pages, _DIGEST_PAGES):
                pages = min(_DIGEST_PAGES, self._old.pages - first)
                digests = self._old.digests(first, pages)
                if digests != zero * pages:
                    self.channel.send(Kind.DIGESTS, first, payload=digests)
        self.channel.send(Kind.DIGESTS)

    def _take_pages(self, header: Header) -> None:
        pages = header.length // PAGE_BYTES
        incoming = self._incoming_for(header.a, pages)
        incoming.write_pages(header.a, self.channel.receive_payload(header))
        self.progress.snapshot_done_bytes += header.length

    def _take_same(self, header: Header) -> None:
        incoming = self._incoming_for(header.a, header.b)
        if self._old is None:
            raise ProtocolError("SAME without an old copy", hint="run the same version on both hosts")
        for first in range(header.a, header.a + header.b, 256):
            pages = min(256, header.a + header.b - first)
            incoming.write_pages(first, self._old.read(first, pages))
            self.progress.snapshot_done_bytes += pages * PAGE_BYTES

    def _incoming_for(self, first: int, pages: int) -> Replica:
        incoming = self._standby.incoming
        if incoming is None or self._begin is None:
            raise ProtocolError("pages outside a snapshot", hint="run the same version on both hosts")
        if first + pages > self._begin.image_size // PAGE_BYTES:
            raise ProtocolError(f"pages {first}+{pages} lie behind the image", hint="run the same version")
        return incoming

    def _end_snapshot(self, header: Header) -> None:
        standby = self._standby
        if standby.incoming is None or not header.a == self._received == standby.incoming.end:
            raise ProtocolError(
                f"SNAPSHOT_END at {header.a} does not fit", hint="the connection begins again"
            )
        self.progress.state = "verifying"
        if self._old is not None:
            self._old.close()
            self._old = None
        self._target = None
        replica = standby.install_snapshot()
        self._hear(header)
        self._follow(replica)
        self.progress.state = "streaming"
        self.channel.send(Kind.SNAPSHOT_DONE, replica.end)
        self._report(f"snapshot from {self._who()} complete at position {replica.end}")

    # ending

    def _clean_up(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None
        if self._old is not None:
            self._old.close()
        self._target = None
        self._standby.drop_incoming()
        if self._standby.replica is not None:
            self._standby.replica.discard_partial()

    def _tick(self) -> None:
        tick_s, told = min(_TICK_S, self._heartbeat_s / 2), 0
        while not self.done.wait(tick_s):
            silent_s, received = time.monotonic() - self.channel.said, self._received
            if silent_s < tick_s or (silent_s < self._heartbeat_s - tick_s and received == told):
                continue
            told = received
            try:
                self.channel.send(Kind.HEARTBEAT, self.progress.end, received)
            except PeerUnreachable:
                return

    def _who(self) -> str:
        return f"{self.hello.name or 'the primary'} at {self.channel.peer}"
