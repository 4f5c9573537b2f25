"""A region at a peer: saved to, and restored from, a keeper over TCP (`tcp://HOST:PORT`).

Used through `sink.open_sink` and `sink.open_source`; the other end is `serve`, the frames are in
docs/formats/region-wire.md. Writes are not answered one by one: up to a window of pages is on its way, a second
thread hears what was taken, and an error comes with the next call. A sink or source that has failed is begun
again by `begin` (or a new source), over a new connection; the keeper says what it holds, so only the rest is sent.

The sink measures its own bandwidth, since a budget for the battery needs what *this* keeper on *its* medium takes,
flushes included (`Meter`).
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sustain._native import digest
from sustain.errors import (
    ConfigError,
    PeerUnreachable,
    ProtocolError,
    RegionCorrupt,
    RegionUnsealed,
    SustainError,
)
from sustain.powerfail.regions.background import page_buffer
from sustain.powerfail.regions.frames import (
    REGIONS,
    RESTORE,
    SAVE,
    Failed,
    RegionHello,
    RegionWelcome,
    SealMessage,
    error_of,
)
from sustain.powerfail.regions.manifest import (
    DIGEST_BYTES,
    PAGE_BYTES,
    SLICE_PAGES,
    RegionIdentity,
    Seal,
    check_name,
    pages_of,
)
from sustain.powerfail.regions.meter import Meter
from sustain.powerfail.regions.sink import Held, Sink, Source
from sustain.replication.auth import Refused
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.dial import dial, introduce
from sustain.replication.urls import Peer, parse_peer
from sustain.replication.wire import (
    PROTOCOL,
    SAVER_STREAM,
    WRITE_PAGES,
    Bye,
    Header,
    Kind,
    decode,
    encode,
    pack_header,
)

_IDLE_S = 2.0  # nobody has read for so long: what is on its way is taken in, so that the keeper can go on
_READS_AHEAD = 64  # most READs that are not answered yet: the keeper must be able to take them while it sends
_HINT = "run the same version of Sustain on both hosts"
T = TypeVar("T")


@dataclass(frozen=True)
class PeerOptions:
    """How to treat the connection. Sizes in bytes, times in seconds."""

    credentials: Credentials = NO_CREDENTIALS
    host: str = ""  # this host, for people
    window_bytes: int = 32 << 20  # pages on their way
    read_ahead_bytes: int = 16 << 20
    heartbeat_s: float = 1.0
    timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    handshake_timeout_s: float = 10.0


class _Link:
    """One connection: a thread that says that we are there, one that hears (or whoever calls `receive`), and the error
    that ended it."""

    def __init__(self, peer: Peer, options: PeerOptions, hello: RegionHello) -> None:
        """Connect and introduce. Raises the keeper's refusal as the error it stands for, and PeerUnreachable."""
        self.url = peer.url
        self._options = options
        self.changed = threading.Condition()  # guards what `wait` waits for
        self._error: SustainError | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self.channel = dial(peer, connect_timeout_s=options.connect_timeout_s, timeout_s=options.timeout_s)
        try:
            self.welcome: RegionWelcome = introduce(
                self.channel, peer, options.credentials, REGIONS, lambda: hello, options.handshake_timeout_s
            )
        except Refused as refused:
            self.channel.release()
            told = refused.refusal
            raise error_of(told.code, f"{peer.url}: {told.message}", told.hint) from None
        except SustainError:
            self.channel.release()
            raise

    def receive_table(self, pages: int) -> bytes:
        """The keeper's DIGESTS, of exactly `pages` pages. Before `start`."""
        table = bytearray()
        while True:
            header = self.channel.receive_header(SAVER_STREAM)
            if header.kind is Kind.HEARTBEAT:
                continue
            if header.kind is not Kind.DIGESTS:
                self._unusual(header)
            if header.a != len(table) // DIGEST_BYTES or header.a + header.length // DIGEST_BYTES > pages:
                raise ProtocolError(f"{self.url}: digests of pages from {header.a} do not fit", hint=_HINT)
            if header.length == 0:
                break
            table += self.channel.receive_payload(header)
        if len(table) != pages * DIGEST_BYTES:
            raise ProtocolError(f"{self.url}: the table of digests is too short", hint=_HINT)
        return bytes(table)

    def start(self, each_time: Callable[[], None] = lambda: None) -> None:
        """Say that we are there, from now on, and call `each_time`."""
        self._run(lambda: self._tick(each_time))

    def hear(self, handle: Callable[[Header], None]) -> None:
        """Hear in a thread, from now on. `handle` gets what `receive` gives, under no lock, and takes its payload."""
        self._run(lambda: self._hear(handle))

    def _run(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"sustain-{self.url}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _hear(self, handle: Callable[[Header], None]) -> None:
        try:
            while True:
                handle(self.receive())
        except SustainError as error:
            self.fail(error)

    def receive(self) -> Header:
        """The next header but HEARTBEAT. Raises what the keeper says in BYE and in a final FAILED, PeerUnreachable,
        ProtocolError; `fail` with that."""
        while True:
            header = self.channel.receive_header(SAVER_STREAM)
            if header.kind in (Kind.BYE, Kind.FAILED) and not header.b:
                self._unusual(header)
            if header.kind is not Kind.HEARTBEAT:
                return header

    def fail(self, error: SustainError) -> None:
        """That has ended the connection."""
        with self.changed:
            self._error = error
            self.changed.notify_all()
        self.channel.close()

    def _unusual(self, header: Header) -> None:
        """Raise what the keeper says."""
        if header.kind is Kind.FAILED:
            told = self.failed(header)
            raise error_of(told.code, f"{self.url}: {told.message}", told.hint)
        if header.kind is Kind.BYE:
            bye = decode(Bye, self.channel.receive_payload(header))
            raise PeerUnreachable(
                f"{self.url} ended the connection: {bye.message or bye.code}", hint="begin again"
            )
        raise ProtocolError(f"{self.url}: {header.kind.name} is not expected now", hint=_HINT)

    def failed(self, header: Header) -> Failed:
        """The message of a FAILED."""
        return decode(Failed, self.channel.receive_payload(header))

    def _tick(self, each_time: Callable[[], None]) -> None:
        while not self._closing.wait(self._options.heartbeat_s):
            each_time()
            if time.monotonic() - self.channel.said < self._options.heartbeat_s / 2:
                continue
            try:
                self.channel.send(Kind.HEARTBEAT)
            except PeerUnreachable:
                return

    def send(self, parts: list[bytes | memoryview]) -> None:
        """Frames that are packed. When the connection is gone, what the keeper said last is the error."""
        self.check()
        try:
            self.channel.send_raw(parts)
        except PeerUnreachable as error:
            with self.changed:
                self.changed.wait_for(lambda: self._error is not None, 1.0)
            raise self._error or error from None

    def wait(self, ready: Callable[[], T]) -> T:
        """Wait until `ready()` is true; that. It is asked under the lock of `changed`."""
        with self.changed:
            while not (found := ready()):
                self.check()
                self.changed.wait(1.0)
            return found

    def check(self) -> None:
        """Raise what has ended the connection."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._closing.set()
        self.channel.bye("done")
        self.channel.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self.channel.release()


class PeerSink(Sink):
    """Saves to a keeper. `url` names it; `name` is the region's there."""

    read_ahead = False  # the window does that already; pages handed to another thread leave their cache

    def __init__(self, peer: Peer, name: str, options: PeerOptions) -> None:
        self.url = peer.url
        self._peer, self._name, self._options = peer, check_name(name), options
        self._link: _Link | None = None
        self._meter = Meter()
        self._pages = 0
        self._sent = self._taken = 0  # bytes of pages, on this connection
        self._asked: tuple[Kind, int] | None = None  # the FLUSH or SEAL that is not answered yet
        self._flushes = 0
        self._refused: Failed | None = None  # what it was answered with, if not with a yes

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """What this keeper takes in all but the slowest times; None: not measured yet."""
        return self._meter.low()

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        self.close()
        if identity.name != self._name:
            raise ConfigError(f"{self.url}: opened for {self._name}, not {identity.name}", hint="one name")
        hello = RegionHello(
            protocol=PROTOCOL,
            purpose=SAVE,
            name=identity.name,
            uuid=identity.uuid,
            size_bytes=identity.size_bytes,
            epoch=epoch,
            host=self._options.host,
        )
        link = _Link(self._peer, self._options, hello)
        try:
            held = self._held(link, identity)
        except SustainError:
            link.close()
            raise
        self._pages = identity.pages
        self._sent = self._taken = self._flushes = 0
        self._asked = self._refused = None
        self._link = link
        link.start()
        link.hear(self._handle)
        return held

    def _held(self, link: _Link, identity: RegionIdentity) -> Held:
        welcome = link.welcome
        if (welcome.uuid, welcome.size_bytes) != (identity.uuid, identity.size_bytes):
            raise ProtocolError(f"{self.url}: the keeper speaks of another region", hint=_HINT)
        table = link.receive_table(identity.pages) if welcome.has_table else None
        return Held(table, _seal_of(self.url, welcome), welcome.last_number)

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        link = self._open()
        pages = len(data) // PAGE_BYTES
        assert len(data) == pages * PAGE_BYTES
        assert len(digests) == pages * DIGEST_BYTES
        assert first_page + pages <= self._pages
        whole, marks = memoryview(data), memoryview(digests)
        for at in range(0, pages, WRITE_PAGES):
            until = min(at + WRITE_PAGES, pages)
            piece = whole[at * PAGE_BYTES : until * PAGE_BYTES]
            mark = marks[at * DIGEST_BYTES : until * DIGEST_BYTES]
            link.wait(self._has_room)
            with link.changed:
                self._sent += len(piece)
                self._meter.sent(len(piece), time.monotonic())
            header = pack_header(Kind.WRITE, len(piece) + len(mark), first_page + at)
            link.send([header, piece, mark])

    def flush(self) -> None:
        link = self._open()
        self._flushes += 1
        with link.changed:
            self._meter.flush_asked(time.monotonic())
        self._ask(link, Kind.FLUSH, self._flushes)

    def seal(self, seal: Seal) -> None:
        self._ask(self._open(), Kind.SEAL, seal.number, encode(SealMessage.of(seal)))

    def _ask(self, link: _Link, kind: Kind, number: int, message: bytes = b"") -> None:
        """Send what is answered, and wait for the answer. Raises what it says."""
        self._asked, self._refused = (kind, number), None
        link.send([pack_header(kind, len(message), number), message])
        link.wait(lambda: self._asked is None)
        if self._refused is not None:
            told = self._refused
            raise error_of(told.code, f"{self.url}: {told.message}", told.hint)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._meter.stopped()
            link.close()

    def _has_room(self) -> bool:
        return self._sent - self._taken <= self._options.window_bytes

    def _open(self) -> _Link:
        if self._link is None:
            raise PeerUnreachable(f"{self.url}: no save has begun", hint="begin first")
        return self._link

    def _handle(self, header: Header) -> None:
        """What the keeper says; in the hearing thread."""
        link = self._link
        assert link is not None
        now_s = time.monotonic()
        if header.kind is Kind.WRITTEN:
            if not self._taken <= header.a <= self._sent:
                raise ProtocolError(f"{self.url}: {header.a} bytes taken, {self._sent} sent", hint=_HINT)
            with link.changed:
                self._meter.taken(header.a - self._taken, now_s)
                self._taken = header.a
                link.changed.notify_all()
        elif header.kind in (Kind.FLUSHED, Kind.SEALED, Kind.FAILED):
            asked = self._asked
            answers = {Kind.FLUSH: Kind.FLUSHED, Kind.SEAL: Kind.SEALED}
            if asked is None or header.a != asked[1] or header.kind not in (answers[asked[0]], Kind.FAILED):
                raise ProtocolError(f"{self.url}: {header.kind.name} answers nothing", hint=_HINT)
            refused = link.failed(header) if header.kind is Kind.FAILED else None
            with link.changed:
                if asked[0] is Kind.FLUSH:
                    self._meter.flushed(now_s)
                self._asked, self._refused = None, refused
                link.changed.notify_all()
        else:
            raise ProtocolError(f"{self.url}: {header.kind.name} in a save", hint=_HINT)


@dataclass(eq=False, slots=True)
class _Asked:
    """A READ that is on its way; `data` when it has been taken in before anybody came for it."""

    first_page: int
    pages: int
    data: memoryview | None = None


class PeerSource(Source):
    """Reads from a keeper. Used by one thread at a time; `close` may come from another.

    What is read in order is asked for ahead, so that it is on its way meanwhile; a read out of order throws away what
    was asked for in vain. Pages are received by whoever reads them, into one buffer that stays in the processor's
    cache: handing them from thread to thread took longer than receiving them. Only when nobody has read for a while
    (what the target holds is looked at, or its disk stalls), what was asked for is taken in by another thread: a keeper
    that cannot get rid of it would take us for dead.
    """

    read_ahead = False

    def __init__(self, peer: Peer, name: str, options: PeerOptions) -> None:
        self.url = peer.url
        self._peer, self._name, self._options = peer, check_name(name), options
        self._link: _Link | None = None
        self._lock = threading.RLock()
        self._identity: RegionIdentity | None = None
        self._seal: Seal | None = None
        self._table = b""
        self._asked: deque[_Asked] = deque()  # ahead, in the order of their READs
        self._arriving: deque[_Asked] = deque()  # all whose PAGES are still to come
        self._last_end = 0
        self._read_s = 0.0
        self._buffer = memoryview(b"")
        self._unsealed: RegionUnsealed | None = None

    def open(self) -> None:
        """Connect. Raises NotARegion, RegionBusy, RegionCorrupt, ReplicationError; what is not sealed is an error
        only when it is asked for."""
        try:
            self._open()
        except RegionUnsealed as error:
            self._unsealed = error

    def identity(self) -> RegionIdentity:
        self._open()
        assert self._identity is not None
        return self._identity

    def seal(self) -> Seal:
        self._open()
        assert self._seal is not None
        return self._seal

    def table(self) -> bytes:
        self._open()
        return self._table

    def read(self, first_page: int, pages: int) -> memoryview:
        assert 0 < pages <= SLICE_PAGES
        with self._lock:
            link = self._open()
            assert first_page + pages <= self.identity().pages
            asked = self._ask(link, first_page, pages)
            try:
                data = self._receive(link, asked) if asked.data is None else asked.data
            except SustainError as error:
                link.fail(error)
                raise
            self._last_end = first_page + pages
            self._read_s = time.monotonic()
            return data

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    # asking

    def _ask(self, link: _Link, first_page: int, pages: int) -> _Asked:
        """The READ of these pages, sent now or earlier, with others sent behind it."""
        sequential = self._last_end == first_page
        while self._asked:
            asked = self._asked.popleft()
            if (asked.first_page, asked.pages) == (first_page, pages):
                break  # those before it were asked for in vain: the order was not what it seemed
        else:
            asked = self._send(link, first_page, pages)
        if sequential:
            self._fetch_ahead(link, first_page + pages, pages)
        return asked

    def _fetch_ahead(self, link: _Link, end: int, pages: int) -> None:
        first = self._asked[-1].first_page + self._asked[-1].pages if self._asked else end
        size = sum(each.pages for each in self._asked)
        limit = self._options.read_ahead_bytes // PAGE_BYTES
        while size < limit and len(self._arriving) < _READS_AHEAD and first < self.identity().pages:
            count = min(pages, self.identity().pages - first)
            self._asked.append(self._send(link, first, count))
            first, size = first + count, size + count

    def _send(self, link: _Link, first_page: int, pages: int) -> _Asked:
        asked = _Asked(first_page, pages)
        self._arriving.append(asked)
        # Into a connection that has ended: why it did is received behind what has come before.
        with contextlib.suppress(PeerUnreachable):
            link.channel.send(Kind.READ, first_page, pages)
        return asked

    # receiving

    def _open(self) -> _Link:
        with self._lock:
            if self._unsealed is not None:
                raise self._unsealed
            if self._link is None:
                self._link = self._connect()
            self._link.check()
            return self._link

    def _connect(self) -> _Link:
        hello = RegionHello(protocol=PROTOCOL, purpose=RESTORE, name=self._name, host=self._options.host)
        link = _Link(self._peer, self._options, hello)
        try:
            welcome = link.welcome
            seal = _seal_of(self.url, welcome)
            if welcome.name != self._name or seal is None:
                raise ProtocolError(f"{self.url}: the keeper speaks of another region", hint=_HINT)
            table = link.receive_table(pages_of(welcome.size_bytes))
            if digest(table) != seal.table_digest:
                raise RegionCorrupt(
                    f"{self.url}: the table of digests is not the one that was sealed",
                    hint="try again, or restore from another destination",
                )
            self._identity, self._seal, self._table = welcome.identity(), seal, table
        except ConfigError as error:
            link.close()
            raise ProtocolError(f"{self.url}: {error}", hint=_HINT) from None
        except SustainError:
            link.close()
            raise
        self._asked.clear()
        self._arriving.clear()
        link.start(self._take_in)
        return link

    def _receive(self, link: _Link, wanted: _Asked) -> memoryview:
        """The pages of `wanted`; those before it are let go of."""
        while True:
            asked, size_bytes = self._next(link)
            if len(self._buffer) < size_bytes:
                self._buffer = page_buffer(size_bytes)
            data = self._buffer[:size_bytes]
            link.channel.receive_into(data)
            if asked is wanted:
                return data

    def _next(self, link: _Link) -> tuple[_Asked, int]:
        """What the pages that come next were asked for by, and how many bytes they are."""
        header = link.receive()
        if header.kind is not Kind.PAGES or not self._arriving:
            raise ProtocolError(f"{self.url}: {header.kind.name} in a restore", hint=_HINT)
        asked = self._arriving.popleft()
        if (asked.first_page, asked.pages * PAGE_BYTES) != (header.a, header.length):
            raise ProtocolError(f"{self.url}: pages {header.a} were not asked for", hint=_HINT)
        return asked, header.length

    def _take_in(self) -> None:
        """What is on its way, when nobody has read for a while; in the ticking thread."""
        if not self._lock.acquire(blocking=False):
            return  # somebody reads
        try:
            link = self._link
            if link is None or time.monotonic() - self._read_s < _IDLE_S:
                return
            try:
                while self._arriving:
                    asked, size_bytes = self._next(link)
                    data = page_buffer(size_bytes)
                    link.channel.receive_into(data)
                    asked.data = data
            except SustainError as error:
                link.fail(error)
        finally:
            self._lock.release()


def open_peer_sink(url: str, *, credentials: Credentials, name: str, host: str = "") -> PeerSink:
    """The sink that `tcp://HOST:PORT` names. Nothing is connected yet. Raises ConfigError."""
    return PeerSink(parse_peer(url), name, PeerOptions(credentials=credentials, host=host))


def open_peer_source(url: str, *, credentials: Credentials, name: str, host: str = "") -> PeerSource:
    """The source that `tcp://HOST:PORT` names. Raises ConfigError, and what `PeerSource.open` does."""
    source = PeerSource(parse_peer(url), name, PeerOptions(credentials=credentials, host=host))
    source.open()
    return source


def _seal_of(url: str, welcome: RegionWelcome) -> Seal | None:
    try:
        return None if welcome.seal is None else welcome.seal.seal()
    except ConfigError as error:
        raise ProtocolError(f"{url}: {error}", hint=_HINT) from None
