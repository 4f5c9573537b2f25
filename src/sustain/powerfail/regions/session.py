"""One connection of a keeper, from its proof to its end: a save that is taken in, or a restore that is served.

Used by `serve`, in the connection's thread; another one sends heartbeats, because a keeper whose disk is slow must
not look dead. Pages are received into one buffer and written from there while they are in the cache; meanwhile
the next ones arrive in the socket.

Rejected: a thread that receives while another writes. Handing buffers over cost more than it won: the pages had
to travel between two processors' caches, and each handover woke a thread. And splice(2) from the socket to the file: it
saves one copy of pages that are in the cache, but the digests then need another, and the whole was a fifth slower.

A client that is told that it failed has bytes on their way. They are taken and thrown away for a moment, since
closing at once would reset the connection under the message.
"""

import contextlib
import threading
import time
from abc import ABC, abstractmethod

from sustain.errors import (
    ConfigError,
    PeerUnreachable,
    ProtocolError,
    RegionCorrupt,
    SustainError,
    WrongGeneration,
)
from sustain.powerfail.regions.background import page_buffer
from sustain.powerfail.regions.frames import RegionHello, RegionWelcome, SealMessage, failed
from sustain.powerfail.regions.manifest import (
    DIGEST_BYTES,
    PAGE_BYTES,
    SLICE_PAGES,
    RegionIdentity,
    pages_of,
)
from sustain.powerfail.regions.sink import Held, Sink, Source
from sustain.replication.channel import Channel, ConnectionEnded
from sustain.replication.wire import (
    KEEPER_STREAM,
    PAYLOAD_LIMIT,
    Bye,
    Header,
    Kind,
    decode,
    encode,
)

_TELL_BYTES = 4 << 20  # taken while more is there: time to say so
_PAUSE_S = 0.001  # nothing more comes: tell what was taken; sooner would wake the saver for each frame
_LINGER_S = 2.0  # for a client that was told that it failed to hang up
_TABLE_PIECE_BYTES = PAYLOAD_LIMIT[Kind.DIGESTS]
_HINT = "run the same version of Sustain on both hosts"


class Session(ABC):
    """What saving and restoring share."""

    def __init__(self, channel: Channel, hello: RegionHello, heartbeat_s: float) -> None:
        self.channel = channel
        self.hello = hello
        self.outcome = "the client has hung up"
        self._heartbeat_s = heartbeat_s
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self.over = False  # it only has to let go of its place
        self._bytes = 0
        self._began = time.monotonic()

    def describe(self) -> str:
        """Who does what, for people."""
        who = f"{self.hello.host} at {self.channel.peer}" if self.hello.host else self.channel.peer
        return f"{self.hello.purpose} of region {self.hello.name} (epoch {self.hello.epoch}) by {who}"

    def status(self) -> dict[str, object]:
        """As `Keeper.status` shows it."""
        return {
            "purpose": self.hello.purpose,
            "name": self.hello.name,
            "epoch": self.hello.epoch,
            "host": self.hello.host,
            "address": self.channel.peer,
            "bytes": self._bytes,
            "began_s_ago": time.monotonic() - self._began,
            "heard_s_ago": time.monotonic() - self.channel.heard,
        }

    def end(self, code: str, message: str) -> None:
        """From another thread: say why, and hang up."""
        self.outcome = message
        self.channel.bye(code, message)
        self.channel.close()

    def start_heartbeat(self) -> None:
        self._ticker = threading.Thread(target=self._tick, name="sustain-heartbeat", daemon=True)
        self._ticker.start()

    def _tick(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            if time.monotonic() - self.channel.said < self._heartbeat_s / 2:
                continue
            try:
                self.channel.send(Kind.HEARTBEAT)
            except PeerUnreachable:
                return

    def run(self) -> None:
        """Until the connection ends. Raises what went wrong, when it does not end well; the client knows then."""
        try:
            self.serve()
        except ConnectionEnded:
            return
        except PeerUnreachable:
            raise
        except Exception as error:  # whatever it is, the client must not be left waiting
            self._tell(error)
            self._discard()
            raise

    @abstractmethod
    def serve(self) -> None:
        """Do what the client asks until ConnectionEnded. Raises what goes wrong."""

    def close(self) -> None:
        """Let go of everything. After `run`, or instead of it."""
        self._ended.set()
        self.channel.close()
        if self._ticker is not None:
            self._ticker.join()

    def _tell(self, error: Exception, number: int = 0, *, goes_on: bool = False) -> None:
        """Tell the client what went wrong."""
        with contextlib.suppress(PeerUnreachable):
            self.channel.send(Kind.FAILED, number, int(goes_on), payload=encode(failed(error)))

    def _send_table(self, table: bytes) -> None:
        whole = memoryview(table)
        for at in range(0, len(whole), _TABLE_PIECE_BYTES):
            piece = whole[at : at + _TABLE_PIECE_BYTES]
            self.channel.send(Kind.DIGESTS, at // DIGEST_BYTES, payload=piece)
        self.channel.send(Kind.DIGESTS, len(whole) // DIGEST_BYTES)

    def _unusual(self, header: Header) -> None:
        """What may come in any session. Raises ConnectionEnded for BYE, ProtocolError for anything else."""
        if header.kind is Kind.BYE:
            bye = decode(Bye, self.channel.receive_payload(header))
            if bye.message:
                self.outcome = bye.message
            raise ConnectionEnded(f"{self.channel.peer} ended the connection: {bye.message or bye.code}")
        if header.kind is not Kind.HEARTBEAT:
            raise ProtocolError(f"{header.kind.name} in a {self.hello.purpose}", hint=_HINT)

    def _discard(self) -> None:
        """Until the client hangs up, for a moment at most."""
        deadline = time.monotonic() + _LINGER_S
        self.channel.set_deadline(_LINGER_S)
        with contextlib.suppress(SustainError), memoryview(bytearray(64 << 10)) as piece:
            while time.monotonic() < deadline and self.channel.receive_some(piece):
                pass


class SaveSession(Session):
    """Takes in what a saver sends."""

    def __init__(self, channel: Channel, hello: RegionHello, heartbeat_s: float) -> None:
        super().__init__(channel, hello, heartbeat_s)
        self._sink: Sink | None = None
        self._pages = pages_of(hello.size_bytes)
        self._held: Held | None = None
        self._buffer = memoryview(b"")
        self._told = 0  # bytes that the saver knows to be taken
        self._unflushed = False
        self.sealed = False  # the last thing that it did was to seal

    def begin(self, sink: Sink) -> RegionWelcome:
        """Take the place. Raises what `Sink.begin` does, and PeerRefused for an identity that is none."""
        self._sink = sink
        identity = RegionIdentity(self.hello.uuid, self.hello.size_bytes, self.hello.name)
        self._held = held = sink.begin(identity, self.hello.epoch)
        return RegionWelcome(
            uuid=identity.uuid,
            size_bytes=identity.size_bytes,
            name=identity.name,
            has_table=held.table is not None,
            seal=None if held.seal is None else SealMessage.of(held.seal),
            last_number=held.last_number,
        )

    def serve(self) -> None:
        assert self._sink is not None
        assert self._held is not None
        if self._held.table is not None:
            self._send_table(self._held.table)
        self._held = None
        while True:
            header = self.channel.receive_header(KEEPER_STREAM)
            if header.kind is Kind.WRITE:
                self._write(self._sink, header)
            elif header.kind is Kind.FLUSH:
                self._flush(self._sink, header)
            elif header.kind is Kind.SEAL:
                self._seal(self._sink, header)
            else:
                self._unusual(header)

    def close(self) -> None:
        self.over = True
        self.channel.close()
        try:
            if self._sink is not None:
                self._sink.close()
        finally:
            super().close()

    def _write(self, sink: Sink, header: Header) -> None:
        pages = header.length // (PAGE_BYTES + DIGEST_BYTES)
        if header.a + pages > self._pages:
            raise ProtocolError(f"pages {header.a}+{pages} lie behind the region's {self._pages}", hint=_HINT)
        if len(self._buffer) < header.length:
            self._buffer = page_buffer(header.length)
        whole = self._buffer[: header.length]
        self.channel.receive_into(whole)
        self.sealed, self._unflushed = False, True
        sink.write(header.a, whole[: pages * PAGE_BYTES], bytes(whole[pages * PAGE_BYTES :]))
        self._bytes += pages * PAGE_BYTES
        if self._bytes - self._told >= _TELL_BYTES or not self.channel.ready(_PAUSE_S):
            self._told = self._bytes
            self.channel.send(Kind.WRITTEN, self._bytes)

    def _flush(self, sink: Sink, header: Header) -> None:
        self._unflushed = False
        try:
            sink.flush()
        except RegionCorrupt as error:
            self._tell(error, header.a, goes_on=True)
        else:
            self.channel.send(Kind.FLUSHED, header.a)

    def _seal(self, sink: Sink, header: Header) -> None:
        try:
            seal = decode(SealMessage, self.channel.receive_payload(header)).seal()
        except ConfigError as error:
            raise ProtocolError(str(error), hint=_HINT) from None
        if self._unflushed or header.a != seal.number:
            raise ProtocolError("SEAL without a FLUSH before it, or of two numbers", hint=_HINT)
        try:
            sink.seal(seal)
        except (RegionCorrupt, WrongGeneration) as error:
            self._tell(error, header.a, goes_on=True)
            return
        self.sealed = True
        self.outcome = f"sealed as number {seal.number}"
        self.channel.send(Kind.SEALED, seal.number)


class RestoreSession(Session):
    """Serves what a restorer asks for."""

    def __init__(self, channel: Channel, hello: RegionHello, heartbeat_s: float) -> None:
        super().__init__(channel, hello, heartbeat_s)
        self._source: Source | None = None
        self._table = b""
        self._pages = 0

    def begin(self, source: Source) -> RegionWelcome:
        """Open the place. Raises what the source does."""
        self._source = source
        identity, seal = source.identity(), source.seal()
        self._table, self._pages = source.table(), identity.pages
        return RegionWelcome(
            uuid=identity.uuid,
            size_bytes=identity.size_bytes,
            name=identity.name,
            has_table=True,
            seal=SealMessage.of(seal),
            last_number=seal.number,
        )

    def serve(self) -> None:
        self._send_table(self._table)
        self._table = b""
        while True:
            header = self.channel.receive_header(KEEPER_STREAM)
            if header.kind is Kind.READ:
                self._read(header)
            else:
                self._unusual(header)

    def close(self) -> None:
        try:
            if self._source is not None:
                self._source.close()
        finally:
            super().close()

    def _read(self, header: Header) -> None:
        assert self._source is not None
        if not 0 < header.b <= SLICE_PAGES or header.a + header.b > self._pages:
            raise ProtocolError(f"READ of pages {header.a}+{header.b}", hint=_HINT)
        data = self._source.read(header.a, header.b)
        self.channel.send(Kind.PAGES, header.a, payload=memoryview(data))
        self._bytes += len(data)
