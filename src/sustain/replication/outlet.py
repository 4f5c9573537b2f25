"""One connection of a shipper: agrees with the replica where to go on, sends, and hears what arrived.

Used by `destination`; the counterpart of `intake`. Log bytes go from the shared mapping to the socket as they
lie. What was sent is checked *afterwards*: if the log's tail has passed it meanwhile, the bytes may have been
overwritten under the send, and the connection ends (the receiver refuses such bytes by their checksums and
positions; this only ends it sooner).

While commits come in, the thread naps for the linger time between sends instead of asking to be woken: a wake
costs every commit a system call, a nap costs nothing but a fraction of a millisecond of lag, and ends when an
application waits for copies. Once nothing has come for a while it sleeps until woken. A second thread reads
acknowledgements, so that they count while a send waits for room. Both feed the destination's `meter`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sustain._native import LogTail
from sustain.errors import PeerUnreachable, ProtocolError, SustainError
from sustain.replication import wire
from sustain.replication.accounts import Book
from sustain.replication.auth import STORES, Refused
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.dial import introduce
from sustain.replication.pins import UNKNOWN
from sustain.replication.records import chain_at
from sustain.replication.session import Course, PrimaryFacts, ReplicaFacts, Resume, Rewind, decide_resume
from sustain.replication.session import Refused as RefusedDecision
from sustain.replication.snapshot import send_snapshot
from sustain.replication.wire import SHIPPER_STREAM, Account, Bye, Hello, Kind, Welcome, decode, encode

if TYPE_CHECKING:
    from sustain.replication.destination import Destination

_BUSY_S = 0.05  # after the last commit seen, stay awake this long
_SMALL_BYTES = 64 << 10  # a send below this is followed by a nap
_WAIT_S = 0.25  # how long a wait goes on before it looks whether to stop
_LEAST_DIGESTS = 64  # pages in a DIGESTS, on average; a receiver sends 4096 at a time
_PROBE_PAYLOAD = memoryview(bytes(wire.PAYLOAD_LIMIT[Kind.PROBE]))


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class LinkConfig:
    """How to treat a connection. Sizes in bytes, times in seconds."""

    credentials: Credentials = NO_CREDENTIALS
    name: str = ""
    chunk_bytes: int = 1 << 20
    linger_s: float = 0.0003
    heartbeat_s: float = 1.0
    timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    handshake_timeout_s: float = 10.0
    backoff_first_s: float = 0.1
    backoff_limit_s: float = 5.0
    overrun_first_s: float = 1.0  # a destination that cannot keep up is left alone, longer each time in a row
    overrun_limit_s: float = 600.0
    report: Callable[[str], None] = field(default=_silent)  # a line for the operator


class Owner(Protocol):
    """What a destination needs of its shipper."""

    store: str  # its path
    halt: threading.Event
    power_watched: bool  # so it matters how fast a destination is
    commits_held: bool  # by what is known of that
    power_fails: bool  # so everything has to get away
    book: Book  # what is known of logs that are over

    @property
    def draining(self) -> bool:
        """Whether this run ends when a position has arrived."""

    def hello(self) -> Hello:
        """This primary's introduction, as of now."""

    def repin(self) -> None:
        """Some destination's pin has changed."""

    def moved(self) -> None:
        """Some destination has acknowledged more."""

    def fenced(self, epoch: int, message: str) -> None:
        """A newer epoch exists."""

    def fail(self, error: SustainError) -> None:
        """The store itself cannot be shipped."""


class Outlet:
    """One connection of a destination. Also the `snapshot.Link` of a snapshot that goes over it."""

    def __init__(
        self, channel: Channel, destination: "Destination", log: LogTail, config: LinkConfig, owner: Owner
    ) -> None:
        self.channel = channel
        self.accepted = False  # the replica let us in
        self.delivered = False  # and holds something that it did not hold before
        self._destination = destination
        self._log = log
        self._config = config
        self._owner = owner
        self.caught_up = False  # it has held all that was committed
        self.overrun = False  # the log has gone on without it
        self._sending = UNKNOWN  # where the log bytes begin that are on their way
        self._taken = 0  # the replica has acknowledged everything before it, on this connection
        self.in_snapshot = False
        self._probes = False  # the receiver knows them
        self._accounts = False  # likewise
        self._accounts_heard = 0
        self._accounts_said: tuple[int, set[bytes]] = (-1, set())  # (version of the book, what was sent)
        self._probe = 0  # number of the last
        self._sent = 0  # nothing behind this may be acknowledged
        self._bytes_sent = 0
        self._commit_times: deque[tuple[int, int]] = deque(
            maxlen=1 << 16
        )  # (end of a send, commit time then)
        self._digests: dict[int, bytes] = {}
        self._digests_bytes = 0
        self._digests_complete = threading.Event()
        self._done_at: int | None = None
        self._done = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"{destination.name}-acks", daemon=True)
        self._reader_error: SustainError | None = None

    # agreeing

    def shake_hands(self) -> tuple[Welcome, Hello]:
        """Raises AuthenticationFailed, PeerRefused, ProtocolError, PeerUnreachable."""
        said: list[Hello] = []

        def hello() -> Hello:
            said.append(self._owner.hello())
            return said[-1]

        welcome = introduce(
            self.channel,
            self._destination.peer,
            self._config.credentials,
            STORES,
            hello,
            self._config.handshake_timeout_s,
        )
        self.accepted = True
        return welcome, said[-1]

    def decide(self, hello: Hello, welcome: Welcome) -> Course:
        """What this replica needs; its place in the log is pinned before it is looked at."""
        destination, log = self._destination, self._log
        if destination.peer.required and welcome.has_store:
            destination.pinned = welcome.end
            self._owner.repin()
        tail, committed = log.tail(), log.committed()
        held = tail <= welcome.end <= committed and log.group_boundary(welcome.end)
        decision = decide_resume(
            PrimaryFacts(
                store=hello.store,
                epoch=hello.epoch,
                history=hello.history,
                image_size=hello.image_size,
                log_size=hello.log_size,
                tail=tail,
                committed=committed,
                holds_end=held,
                chain_at_end=chain_at(log.log_view, tail, committed, welcome.end) if held else None,
            ),
            ReplicaFacts(
                has_store=welcome.has_store,
                store=welcome.store,
                epoch=welcome.epoch,
                history=welcome.history,
                image_size=welcome.image_size,
                log_size=welcome.log_size,
                end=welcome.end,
                end_chain=welcome.end_chain,
                incomplete=welcome.incomplete,
                diverged=welcome.diverged,
            ),
        )
        if not isinstance(decision, Resume | RefusedDecision) and log.superblock()["arriving"]:
            text = "the store here has not arrived completely, and cannot be sent as a snapshot yet"
            raise Refused(wire.Refuse("busy", text, "it is tried again"))
        if isinstance(decision, RefusedDecision):
            refusal = wire.Refuse(decision.code, decision.message, "", welcome.epoch)
            raise Refused(refusal)
        return decision

    def run(self, hello: Hello, welcome: Welcome, decision: Course) -> None:
        """Send until the connection ends or the owner halts. Raises ReplicationError, StoreError."""
        destination = self._destination
        self._probes = welcome.probes
        self._accounts = welcome.accounts
        destination.connected = True
        destination.last_moved = time.monotonic()
        self._reader.start()
        try:
            if isinstance(decision, Resume):
                lsn = decision.lsn
                self._sent = lsn
                words = self._log.words()
                self.channel.send(Kind.RESUME, lsn, words["committed"], words["commit_time_ns"])
                if lsn == words["committed"]:
                    self._commit_times.append((lsn, words["commit_time_ns"]))
                self._held(lsn)
            else:
                known = welcome.end if welcome.has_store and not isinstance(decision, Rewind) else UNKNOWN
                destination.acked = None if known == UNKNOWN else known
                self._log.update_slot(destination.slot, acked=known, state="snapshot")
                self._config.report(f"{destination.peer.url} gets a snapshot: {decision.reason}")
                self.in_snapshot = True
                lsn = send_snapshot(self, self._log, hello, decision, welcome.digests)
                self._config.report(f"{destination.peer.url} has its snapshot, at position {lsn}")
            destination.needs_snapshot = False
            destination.show("streaming")
            self._stream(lsn)
        except PeerUnreachable:
            if self._reader_error is not None:
                raise self._reader_error from None
            raise

    def end(self) -> None:
        """Close, and wait for the reader."""
        self.channel.close()
        if self._reader.ident is not None:
            self._reader.join()
        self.channel.release()

    # sending

    def _stream(self, lsn: int) -> None:
        log, halt = self._log, self._owner.halt
        destination = self._destination
        linger_s = min(self._config.linger_s, self._config.heartbeat_s)
        awake_until = 0.0
        with destination.metering as meter:
            meter.connected(lsn)
        while not halt.is_set():
            committed = log.committed()
            if committed > lsn:
                until = min(committed, lsn + self._config.chunk_bytes)
                small = until - lsn < _SMALL_BYTES
                with destination.metering as meter:
                    meter.sending(until, time.monotonic())
                lsn = self.ship_log(lsn, until)
                awake_until = time.monotonic() + _BUSY_S
                if not small:
                    continue
            elif committed < lsn:
                raise ProtocolError(
                    "the log has gone back", hint="the store was replaced; the connection begins again"
                )
            with destination.metering as meter:
                meter.starved()
            self._say_accounts()
            if self._probes and self._owner.power_watched:
                self._probe_if_due()
            if time.monotonic() < awake_until:
                log.nap(lsn, linger_s)
            else:
                log.wait_commit(lsn, min(_WAIT_S, self._config.heartbeat_s))
            self._check(lsn)

    def ship_log(self, lsn: int, until: int) -> int:
        """Send log bytes [lsn, until); `until`."""
        while lsn < until:
            length = min(until - lsn, self._config.chunk_bytes)
            words = self._log.words()
            self._sent = max(self._sent, lsn + length)
            self._commit_times.append((lsn + length, words["commit_time_ns"]))
            self._sending = lsn
            with self._log.log_view(lsn, length) as view:
                self.channel.send(Kind.LOG, lsn, words["committed"], words["commit_time_ns"], view)
            gone = self.overrun_by(self._log.tail())
            self._sending = UNKNOWN
            if gone:
                self.overrun = self._destination.needs_snapshot = True
                self._destination.show("needs-snapshot")
                self.channel.bye("overrun", "the log was trimmed under the sender")
                raise PeerUnreachable(
                    f"{self._destination.peer.url}: the log was trimmed before it was sent",
                    hint="a larger log, or ?required=1, keeps it longer; a snapshot follows",
                )
            lsn += length
            self._bytes_sent += length
        return lsn

    def overrun_by(self, tail: int) -> bool:
        """Whether bytes that are being sent may have been overwritten, now that the log begins at `tail`. Not those
        that the replica has acknowledged, which let the log be trimmed: it checked them. From any thread."""
        return self._sending < tail and self._taken < tail

    def _say_accounts(self) -> None:
        """What is known of logs that are over, and this receiver was not told yet."""
        version, said = self._accounts_said
        book = self._owner.book
        if not self._accounts or version == book.version:
            return
        version = book.version
        for account in book.accounts(self._log.superblock()["store_uuid"]):
            payload = encode(account)
            if payload not in said:
                self.channel.send(Kind.ACCOUNT, payload=payload)
                said.add(payload)
        self._accounts_said = (version, said)

    def _probe_if_due(self) -> None:
        with self._destination.metering as meter:
            now_s = time.monotonic()
            sizes = meter.probe_begins(now_s) if meter.probe_due(now_s, self._owner.commits_held) else []
        if sizes:
            self._probe += 1
        for size_bytes in sizes:
            self.channel.send(Kind.PROBE, self._probe, payload=_PROBE_PAYLOAD[:size_bytes])

    def _check(self, lsn: int) -> None:
        """While there is nothing to send: is the other side there, does it know that we are?"""
        if self._reader_error is not None:
            raise self._reader_error
        if time.monotonic() - self.channel.said >= self._config.heartbeat_s:
            words = self._log.words()
            self.channel.send(Kind.HEARTBEAT, lsn, words["committed"], words["commit_time_ns"])

    # what a snapshot needs

    def pin(self, lsn: int) -> None:
        self._destination.pinned = lsn
        self._sent = lsn
        self._owner.repin()

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        destination = self._destination
        destination.last_moved = time.monotonic()
        self._log.update_slot(
            destination.slot, snapshot_done_bytes=done_bytes, snapshot_total_bytes=total_bytes
        )
        self._stay()

    def wait_digests(self) -> dict[int, bytes]:
        self._wait_for(self._digests_complete)
        return self._digests

    def wait_done(self, lsn: int) -> None:
        destination = self._destination
        destination.verifying = True
        self._wait_for(self._done)
        destination.verifying = False
        if self._done_at != lsn:
            raise ProtocolError(
                f"SNAPSHOT_DONE at {self._done_at}, not {lsn}", hint="the connection begins again"
            )
        self.in_snapshot = False
        self.delivered = True
        self._held(lsn)

    def _wait_for(self, event: threading.Event) -> None:
        while not event.wait(min(_WAIT_S, self._config.heartbeat_s)):
            self._stay()
            self._check(self._sent)

    def _stay(self) -> None:
        if self._reader_error is not None:
            raise self._reader_error
        if self._owner.halt.is_set():
            raise PeerUnreachable(f"{self._destination.peer.url}: stopping", hint="")

    # hearing

    def _read(self) -> None:
        try:
            while True:
                header, payload = self.channel.receive_frame(SHIPPER_STREAM)
                if header.kind is Kind.ACK:
                    self._acknowledged(header.a, header.b)
                elif header.kind is Kind.HEARTBEAT:
                    with self._destination.metering as meter:
                        meter.received(header.b, time.monotonic())
                elif header.kind is Kind.COUNTED:
                    self._probe_counted(header.a, header.b)
                elif header.kind is Kind.ACCOUNT:
                    self._take_account(decode(Account, payload))
                elif header.kind is Kind.DIGESTS:
                    self._take_digests(header.a, payload)
                elif header.kind is Kind.SNAPSHOT_DONE:
                    self._done_at = header.a
                    self._done.set()
                elif header.kind is Kind.BYE:
                    bye = decode(Bye, payload)
                    raise PeerUnreachable(
                        f"{self._destination.peer.url} ended the connection: {bye.message or bye.code}",
                        hint="",
                    )
        except SustainError as error:
            self._reader_error = error
            self.channel.close()

    def _take_account(self, account: Account) -> None:
        self._accounts_heard += 1
        ours = self._log.superblock()["store_uuid"]
        if self._accounts_heard > wire.ACCOUNTS_LIMIT or account.store != ours:
            raise ProtocolError("ACCOUNT does not fit", hint="run the same version on both hosts")
        for fresh in self._owner.book.add([account]):
            self._config.report(
                f"{fresh.host or self._destination.peer.url} says where its log of epoch {fresh.epoch} ended: "
                f"position {fresh.end}, {fresh.end - fresh.common} bytes behind what it shares with epoch "
                f"{fresh.newer_epoch}"
            )

    def _probe_counted(self, number: int, counted_bytes: int) -> None:
        if number != self._probe:
            raise ProtocolError(
                f"probe {number} counted, {self._probe} sent", hint="the connection begins again"
            )
        with self._destination.metering as meter:
            meter.probe_counted(counted_bytes, time.monotonic())
        self._owner.moved()

    def _acknowledged(self, lsn: int, received: int) -> None:
        if lsn > self._sent:
            raise ProtocolError(
                f"position {lsn} acknowledged, {self._sent} sent", hint="the connection begins again"
            )
        self._taken = max(self._taken, lsn)  # before anything lets go of the log
        if self.in_snapshot:
            # An incomplete copy is a copy for nobody, but it needs the log before `lsn` no more.
            self._destination.pinned = lsn
            self._destination.last_moved = time.monotonic()
            self._owner.repin()
        else:
            self.delivered = True
            with self._destination.metering as meter:
                now_s = time.monotonic()
                meter.acknowledged(lsn, now_s)
                meter.received(received, now_s)
            self._held(lsn)

    def _held(self, lsn: int) -> None:
        """The replica holds everything before `lsn`, durably."""
        destination = self._destination
        commit_time_ns = None
        while self._commit_times and self._commit_times[0][0] <= lsn:
            commit_time_ns = self._commit_times.popleft()[1]
        destination.acked = lsn
        self.caught_up |= lsn >= self._log.committed()
        destination.pinned = lsn if destination.peer.required else None
        destination.last_moved = time.monotonic()
        self._log.update_slot(
            destination.slot,
            acked=lsn,
            sent=self._sent,
            acked_commit_time_ns=commit_time_ns,
            bytes_sent=self._bytes_sent,
        )
        self._owner.repin()
        self._owner.moved()

    def _take_digests(self, first: int, payload: bytes) -> None:
        if self._digests_complete.is_set():
            raise ProtocolError("DIGESTS after the last", hint="the connection begins again")
        if not payload:
            self._digests_complete.set()
            return
        self._digests_bytes += len(payload)
        pages = self._log.image_size() // wire.PAGE_BYTES
        pieces = pages // _LEAST_DIGESTS + 16  # each costs memory beside what it holds
        if self._digests_bytes > pages * wire.DIGEST_BYTES or len(self._digests) >= pieces:
            raise ProtocolError("more DIGESTS than the image has pages", hint="the connection begins again")
        self._digests[first] = payload
