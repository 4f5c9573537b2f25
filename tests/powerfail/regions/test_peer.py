"""A saver or a restorer and its keeper, over real sockets: what goes over, and what does not."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain._native import digest, page_digests
from sustain.errors import (
    AuthenticationFailed,
    ConfigError,
    NotARegion,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    RegionBusy,
    RegionCorrupt,
    RegionError,
    RegionFull,
    RegionUnsealed,
    SustainError,
    WrongGeneration,
)
from sustain.powerfail.regions import peer
from sustain.powerfail.regions.frames import REGIONS, RESTORE, SAVE, RegionHello, RegionWelcome, SealMessage
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, SLICE_PAGES, RegionIdentity, Seal
from sustain.powerfail.regions.peer import PeerOptions, PeerSink, PeerSource
from sustain.powerfail.regions.serve import SESSIONS_LIMIT, Keeper, KeeperConfig
from sustain.powerfail.regions.session import SaveSession
from sustain.replication import wire
from sustain.replication.auth import STORES, ReceiverHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.dial import dial, introduce
from sustain.replication.listener import Listener
from sustain.replication.urls import parse_peer
from sustain.replication.wire import Kind
from sustain.testing.link import Link
from tests.powerfail.regions.memory import MemorySink, MemorySource, Place
from tests.replication.certificates import Authority
from tests.replication.conftest import until
from tests.replication.test_auth import HELLO

SEED = random.randrange(1 << 32)
UUID = b"u" * 16
KEY = b"k" * 32
LIMIT_S = 60.0  # on a machine that is busy with other things


class Lab:
    """Keepers with places in memory, and who connects to them."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.said: list[str] = []
        self.ending: list[Callable[[], None]] = []

    def place(self, name: str = "nv") -> Place:
        return self.places.setdefault(name, Place())

    def keeper(self, key: bytes = b"", **options: Any) -> Keeper:
        defaults: dict[str, Any] = {"heartbeat_s": 0.2, "timeout_s": 3.0, "handshake_timeout_s": 3.0}
        keeper = Keeper(
            KeeperConfig(
                listen=("127.0.0.1", 0),
                report=self.said.append,
                **{"credentials": Credentials(key), **defaults, **options},
            ),
            lambda name: MemorySink(self.place(name)),
            lambda name: MemorySource(self.place(name)),
        )
        keeper.start()
        self.ending.append(keeper.stop)
        return keeper

    def options(self, key: bytes = b"", **options: Any) -> PeerOptions:
        return PeerOptions(
            host="a", heartbeat_s=0.2, timeout_s=3.0, **{"credentials": Credentials(key), **options}
        )

    def sink(self, where: Keeper | Link, key: bytes = b"", name: str = "nv", **options: Any) -> PeerSink:
        sink = PeerSink(parse_peer(url(where)), name, self.options(key, **options))
        self.ending.append(sink.close)
        return sink

    def source(self, where: Keeper | Link, key: bytes = b"", name: str = "nv", **options: Any) -> PeerSource:
        source = PeerSource(parse_peer(url(where)), name, self.options(key, **options))
        self.ending.append(source.close)
        return source

    def end(self) -> None:
        for each in reversed(self.ending):
            each()


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.end()


def url(where: Keeper | Link) -> str:
    host, port = where.address
    return f"tcp://{host}:{port}"


def region(pages: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(pages * PAGE_BYTES)


def identity(data: bytes, name: str = "nv") -> RegionIdentity:
    return RegionIdentity(UUID, len(data), name)


def seal_of(data: bytes, number: int = 1, epoch: int = 1) -> Seal:
    return Seal(epoch, number, "a", digest(page_digests(data)), 7, "asked to")


def pages(data: bytes, first: int, count: int) -> bytes:
    return data[first * PAGE_BYTES : (first + count) * PAGE_BYTES]


def put(sink: PeerSink, data: bytes, only: list[int] | None = None, slice_pages: int = 300) -> None:
    """Write all of `data`, or only some pages of it."""
    if only is not None:
        for page in only:
            sink.write(page, pages(data, page, 1), page_digests(pages(data, page, 1)))
        return
    total = len(data) // PAGE_BYTES
    for first in range(0, total, slice_pages):
        piece = pages(data, first, min(slice_pages, total - first))
        sink.write(first, memoryview(piece), page_digests(piece))


def put_and_flush(sink: PeerSink, data: bytes) -> None:
    put(sink, data)
    sink.flush()


def read_all(source: PeerSource, first: int, end: int) -> None:
    for page in range(first, end, 100):
        source.read(page, 100)


def save(sink: PeerSink, data: bytes, number: int = 1, epoch: int = 1) -> None:
    sink.begin(identity(data), epoch)
    put(sink, data)
    sink.flush()
    sink.seal(seal_of(data, number, epoch))
    sink.close()


def missing(data: bytes, table: bytes | None) -> list[int]:
    wanted = page_digests(data)
    assert table is not None
    assert len(table) == len(wanted)
    return [
        page
        for page in range(len(data) // PAGE_BYTES)
        if table[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES]
        != wanted[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES]
    ]


# the ordinary way


def test_a_region_goes_over_tls_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    keeper = lab.keeper(credentials=authority.host("b").load())
    data = region(2500)
    files = authority.host("a").load()
    save(lab.sink(keeper, credentials=files), data)
    assert lab.place().image == data
    with lab.source(keeper, credentials=files) as source:
        got = b"".join(bytes(source.read(first, min(512, 2500 - first))) for first in range(0, 2500, 512))
    assert got == data
    with pytest.raises(ProtocolError, match="asks for TLS"):
        lab.sink(keeper).begin(identity(data), 2)
    other = Authority.made(tmp_path / "other").host("c").load()
    with pytest.raises(AuthenticationFailed, match="CA") as caught:
        lab.sink(keeper, credentials=other).begin(identity(data), 2)
    assert caught.value.hint


@pytest.mark.parametrize("key", [b"", KEY])
def test_a_region_goes_over_and_comes_back(lab: Lab, key: bytes) -> None:
    keeper = lab.keeper(key)
    data = region(2500)
    save(lab.sink(keeper, key), data)
    assert lab.place().image == data
    with lab.source(keeper, key) as source:
        assert source.identity() == identity(data)
        assert source.seal() == seal_of(data)
        assert source.table() == page_digests(data)
        got = b"".join(bytes(source.read(first, min(512, 2500 - first))) for first in range(0, 2500, 512))
    assert got == data


def test_the_keeper_says_what_it_holds(lab: Lab) -> None:
    keeper, sink = lab.keeper(), None
    data = region(40)
    sink = lab.sink(keeper)
    held = sink.begin(identity(data), 1)
    assert (held.seal, held.last_number) == (None, 0)
    assert held.table == page_digests(bytes(len(data)))
    sink.close()
    save(sink, data, number=4)
    held = sink.begin(identity(data), 2)
    assert (held.seal, held.last_number) == (seal_of(data, 4), 4)
    assert held.table == page_digests(data)
    changed = pages(data, 0, 7) + bytes(PAGE_BYTES) + pages(data, 8, 32)
    put(sink, changed, [7])
    sink.flush()
    assert lab.place().seal is None
    sink.seal(seal_of(changed, 5, 2))
    assert (lab.place().image, lab.place().writes) == (changed, 41)


def test_pages_may_be_read_in_any_order(lab: Lab) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    keeper, data = lab.keeper(), region(700)
    save(lab.sink(keeper), data)
    with lab.source(keeper, read_ahead_bytes=64 * PAGE_BYTES) as source:
        first = 0
        for _ in range(300):
            if first >= 700 or rng.random() < 0.2:
                first = rng.randrange(700)
            count = min(rng.choice([1, 8, 8, 8, 100]), 700 - first)
            assert source.read(first, count) == pages(data, first, count)
            first += count


def test_a_keeper_does_not_wait_for_one_that_pauses_between_reads(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hang up: what it sends is not taken, and nothing tells it that the other side is there."""
    monkeypatch.setattr(peer, "_IDLE_S", 0.2)
    size = 16 * SLICE_PAGES  # what is on its way is more than sockets can hold
    keeper, data = lab.keeper(timeout_s=0.5), region(size)
    save(lab.sink(keeper), data)
    with lab.source(keeper, read_ahead_bytes=len(data)) as source:
        got = [bytes(source.read(0, SLICE_PAGES))]  # the rest is on its way now
        until(lambda: not source._arriving, "what was asked for is taken in")
        time.sleep(2.0)  # several times as long as the keeper waits
        for first in range(SLICE_PAGES, size, SLICE_PAGES):
            got.append(bytes(source.read(first, SLICE_PAGES)))
    assert b"".join(got) == data


def test_bandwidth_is_unknown_and_then_measured(lab: Lab) -> None:
    keeper, sink = lab.keeper(), None
    with Link(keeper.address) as link:
        link.slow(16 << 20)
        sink = lab.sink(link)
        assert sink.bandwidth_bytes_per_s is None
        save(sink, region(2048))
        assert sink.bandwidth_bytes_per_s is not None
        assert 1 << 20 < sink.bandwidth_bytes_per_s < 32 << 20
        sink.close()


# who may


def test_without_the_key_nobody_gets_anywhere(lab: Lab) -> None:
    keeper, data = lab.keeper(KEY), region(1)
    for key in (b"", b"o" * 32):
        with pytest.raises(AuthenticationFailed):
            lab.sink(keeper, key).begin(identity(data), 1)
        with pytest.raises(AuthenticationFailed):
            lab.source(keeper, key).seal()
    assert lab.places == {}


def test_an_older_epoch_is_refused_and_a_newer_one_noted(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(3)
    save(lab.sink(keeper), data, epoch=5)
    with pytest.raises(PeerRefused, match="epoch 4 is over"):
        lab.sink(keeper).begin(identity(data), 4)
    assert lab.place().seal is not None
    lab.sink(keeper).begin(identity(data), 6)
    assert lab.place().epoch == 6


def test_an_older_epoch_does_not_replace_a_session(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(3)
    newer = lab.sink(keeper)
    newer.begin(identity(data), 5)
    with pytest.raises(PeerRefused, match="epoch 4 is over"):
        lab.sink(keeper).begin(identity(data), 4)
    put(newer, data)
    newer.flush()


def test_a_newer_connection_replaces_a_half_open_one(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(600)
    with Link(keeper.address) as link:
        old = lab.sink(link)
        old.begin(identity(data), 1)
        put(old, data, [1, 2, 3])
        old.flush()
        link.stall()
        new = lab.sink(keeper)
        held = new.begin(identity(data), 1)
        assert missing(data, held.table) == [0, *range(4, 600)]
        link.flow()
        with pytest.raises(PeerUnreachable):  # its words may be lost in the link
            put_and_flush(old, data)
        put(new, data)
        new.flush()
        new.seal(seal_of(data))
        assert lab.place().image == data


def test_a_session_that_hangs_keeps_its_successor_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sustain.powerfail.regions.serve._HANDOVER_S", 0.3)
    keeper, data = lab.keeper(), region(3)
    lab.place().hold = hold = threading.Event()
    old = lab.sink(keeper)
    old.begin(identity(data), 1)
    put(old, data)
    until(lambda: keeper.status()["sessions"], "the session")
    with pytest.raises(RegionBusy, match="has not ended"):
        lab.sink(keeper).begin(identity(data), 2)
    hold.set()
    monkeypatch.undo()
    lab.sink(keeper).begin(identity(data), 2)


def test_a_sealed_session_gives_way_to_a_restore(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(30)
    with Link(keeper.address) as link:
        sink = lab.sink(link)
        sink.begin(identity(data), 1)
        put(sink, data)
        sink.flush()
        with pytest.raises(RegionBusy):
            lab.source(keeper).seal()
        sink.seal(seal_of(data))
        link.stall()  # the host that saved is cut off, and nobody has noticed
        with lab.source(keeper) as source:
            assert source.read(0, 30) == data
            with pytest.raises(RegionBusy):
                lab.sink(keeper).begin(identity(data), 1)
        link.flow()


def test_the_errors_of_the_place_arrive_as_what_they_are(lab: Lab) -> None:
    keeper, data = lab.keeper(only="nv"), region(3)
    with pytest.raises(NotARegion, match=url(keeper)):
        lab.source(keeper).seal()
    with pytest.raises(PeerRefused, match="not kept here"):
        lab.sink(keeper, name="other").begin(identity(data, "other"), 1)
    sink = lab.sink(keeper)
    sink.begin(identity(data), 1)
    put(sink, data)
    sink.flush()
    with pytest.raises(RegionCorrupt, match="another table"):
        sink.seal(seal_of(region(3, seed=2)))
    sink.close()
    with pytest.raises(RegionUnsealed):
        lab.source(keeper).seal()
    save(sink, data, number=3)
    sink.begin(identity(data), 1)
    with pytest.raises(WrongGeneration):
        sink.seal(seal_of(data, number=3))
    with pytest.raises(PeerRefused, match="another region"):
        sink.begin(RegionIdentity(b"v" * 16, len(data), "nv"), 1)


def test_a_region_above_the_limit_is_refused_before_anything_is_made(lab: Lab) -> None:
    keeper = lab.keeper(size_limit=lambda: 1 << 30)
    with pytest.raises(RegionFull, match="limit"):
        lab.sink(keeper).begin(RegionIdentity(UUID, (1 << 30) + 1, "nv"), 1)
    assert lab.places == {}


def test_a_store_is_not_shipped_to_a_keeper_nor_a_region_to_a_receiver(lab: Lab) -> None:
    peer = parse_peer(url(lab.keeper()))
    channel = dial(peer, connect_timeout_s=3, timeout_s=3)
    with pytest.raises(ProtocolError, match="keeps regions, not stores"):
        introduce(channel, peer, NO_CREDENTIALS, STORES, lambda: HELLO, 3)
    channel.release()


def test_names_are_checked_on_both_sides(lab: Lab) -> None:
    keeper = lab.keeper()
    for name in ("..", ".", "a/b", "../up", "", "x" * 65, ".hidden", "a\n", "a\0"):
        with pytest.raises(ConfigError):
            lab.sink(keeper, name=name)
        peer = parse_peer(url(keeper))
        for purpose in (SAVE, RESTORE):
            hello = RegionHello(protocol=1, purpose=purpose, name=name, uuid=UUID, size_bytes=1, epoch=1)  # type: ignore[arg-type]
            channel = dial(peer, connect_timeout_s=3, timeout_s=3)
            with pytest.raises(PeerRefused, match="name"):
                introduce(channel, peer, NO_CREDENTIALS, REGIONS, lambda hello=hello: hello, 3)  # type: ignore[misc]
            channel.release()
    assert lab.places == {}


# what goes wrong on the way


def test_a_cut_save_goes_on_with_what_is_missing(lab: Lab) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    data = region(1500)
    keeper = lab.keeper()
    with Link(keeper.address) as link:
        for _ in range(12):
            link.cut_after(rng.randrange(1, len(data)))
        sink, tries = lab.sink(link), 0
        while True:
            tries += 1
            assert tries < 50
            try:
                left = missing(data, sink.begin(identity(data), 1).table)
                put(sink, data, left)
                sink.flush()
                sink.seal(seal_of(data, number=tries))
                break
            except PeerUnreachable:
                until(lambda: not keeper.status()["sessions"], "the session's end")
        sink.close()
    assert lab.place().image == data
    assert lab.place().writes == 1500  # none twice
    assert tries > 1
    with lab.source(keeper) as source:
        assert source.read(1000, 500) == pages(data, 1000, 500)


def test_a_cut_restore_is_an_error_and_no_pages(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(2000)
    save(lab.sink(keeper), data)
    with Link(keeper.address) as link, lab.source(link) as source:
        assert source.read(0, 100) == pages(data, 0, 100)
        link.cut()
        with pytest.raises(PeerUnreachable):
            read_all(source, 100, 2000)


class Flipper(Link):
    """Flips a bit of what passes towards the target (or back), `at` bytes into a connection."""

    def __init__(self, target: tuple[str, int], at: int) -> None:
        self.at = at
        super().__init__(target)

    def passing(self, piece: bytes, before: int, towards: bool) -> bytes:
        if towards and before <= self.at < before + len(piece):
            place = self.at - before
            return piece[:place] + bytes([piece[place] ^ 4]) + piece[place + 1 :]
        return piece


@pytest.mark.parametrize("at", [200_000, 1_000_000, 1_500_000])
def test_a_flipped_bit_on_the_way_is_found(lab: Lab, at: int) -> None:
    keeper, data = lab.keeper(), region(400)
    with Flipper(keeper.address, at) as link:
        sink = lab.sink(link)
        sink.begin(identity(data), 1)
        put(sink, data)
        with pytest.raises(RegionCorrupt, match="damaged pages"):
            sink.flush()
        left = [page for page in range(400) if pages(lab.place().image, page, 1) != pages(data, page, 1)]
        assert len(left) == 1
        put(sink, data, left)  # the connection goes on
        sink.flush()
        sink.seal(seal_of(data))
        sink.close()
    assert lab.place().image == data


def test_a_flipped_bit_of_a_header_ends_the_connection_and_no_more(lab: Lab) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    keeper, data = lab.keeper(), region(20)
    for _ in range(40):
        with Flipper(keeper.address, rng.randrange(200, 1000)) as link:
            sink = lab.sink(link)
            try:
                sink.begin(identity(data), 1)
                for page in range(20):
                    put(sink, data, [page])
                sink.flush()
                sink.seal(seal_of(data, number=lab.place().last_number + 1))
            except SustainError:
                assert lab.place().seal is None or lab.place().image == data
            sink.close()
        until(lambda: not keeper.status()["sessions"], "the session's end")
    save(lab.sink(keeper), data, number=lab.place().last_number + 1)
    assert lab.place().image == data


def test_a_full_disk_there_is_a_clean_error_here(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(4000)
    lab.place().error = RegionFull("memory: no room", hint="free some")
    sink = lab.sink(keeper, window_bytes=1 << 20)
    sink.begin(identity(data), 1)
    with pytest.raises(RegionFull, match="no room") as caught:
        put_and_flush(sink, data)
    assert caught.value.hint == "free some"
    with pytest.raises(RegionFull):  # and it stays that
        sink.write(0, data[:PAGE_BYTES], page_digests(data[:PAGE_BYTES]))
    lab.place().error = None
    save(sink, data)
    assert lab.place().image == data


def test_a_keeper_that_is_busy_with_its_disk_does_not_look_dead(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(600)
    lab.place().hold = hold = threading.Event()
    sink = PeerSink(parse_peer(url(keeper)), "nv", PeerOptions(heartbeat_s=0.1, timeout_s=0.5))
    sink.begin(identity(data), 1)
    timer = threading.Timer(1.5, hold.set)
    timer.start()
    put(sink, data)
    sink.flush()
    sink.seal(seal_of(data))
    sink.close()


def test_a_keeper_that_is_silent_is_given_up(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(600)
    with Link(keeper.address) as link:
        sink = PeerSink(parse_peer(url(link)), "nv", PeerOptions(heartbeat_s=0.1, timeout_s=0.5))
        sink.begin(identity(data), 1)
        link.stall()
        with pytest.raises(PeerUnreachable, match="not heard"):
            sink.flush()
        sink.close()
        link.flow()


# hostile clients


def let_in(keeper: Keeper, purpose: str = SAVE, size_pages: int = 8, name: str = "nv") -> Channel:
    peer = parse_peer(url(keeper))
    channel = dial(peer, connect_timeout_s=3, timeout_s=3)
    hello = RegionHello(
        protocol=1,
        purpose=purpose,  # type: ignore[arg-type]
        name=name,
        uuid=UUID,
        size_bytes=size_pages * PAGE_BYTES,
        epoch=1,
    )
    introduce(channel, peer, NO_CREDENTIALS, REGIONS, lambda: hello, 3)
    return channel


def answers(channel: Channel) -> list[Kind]:
    """What the keeper says until it hangs up."""
    heard = []
    try:
        while True:
            header, _ = channel.receive_frame(wire.SAVER_STREAM)
            if header.kind not in (Kind.HEARTBEAT, Kind.DIGESTS):
                heard.append(header.kind)
            if header.kind is Kind.FAILED:
                channel.close()
    except PeerUnreachable:
        return heard
    finally:
        channel.release()


def frame(kind: Kind, a: int = 0, b: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame as nobody of ours would send it."""
    size = len(payload) if length is None else length
    return wire._HEADER.pack(size, kind, 0, a, b, 0) + payload


PAGE = bytes(PAGE_BYTES) + page_digests(bytes(PAGE_BYTES))


@pytest.mark.parametrize(
    "bad",
    [
        frame(Kind.WRITE, 8, payload=PAGE),  # behind the end
        frame(Kind.WRITE, 2**64 - 1, payload=PAGE),
        frame(Kind.WRITE, 0, payload=PAGE * 257),
        frame(Kind.WRITE, 0, payload=PAGE[:-1]),
        frame(Kind.WRITE, 0),
        frame(Kind.WRITE, 0, length=2**32 - 1),
        frame(Kind.READ, 0, 1),
        frame(Kind.PAGES, 0, payload=bytes(PAGE_BYTES)),
        frame(Kind.SEAL, payload=b"\xc1"),
        frame(Kind.SEAL, payload=wire.encode(wire.Bye("x"))),
        frame(Kind.LOG, payload=bytes(8)),
        frame(Kind.HELLO, payload=bytes(64)),
        b"\xff" * 64,
    ],
)
def test_a_saver_that_breaks_the_rules_is_told_so_and_cut_off(lab: Lab, bad: bytes) -> None:
    keeper = lab.keeper()
    channel = let_in(keeper)
    channel.send_raw([bad])
    assert answers(channel) in ([], [Kind.FAILED])
    until(lambda: not keeper.status()["sessions"], "the session's end")
    assert lab.place().image == bytes(8 * PAGE_BYTES)
    assert lab.place().seal is None
    assert not lab.place().busy


@pytest.mark.parametrize(
    "bad",
    [
        frame(Kind.READ, 0, 0),
        frame(Kind.READ, 0, 1025),
        frame(Kind.READ, 0, 2**64 - 1),
        frame(Kind.READ, 2**64 - 1, 1),
        frame(Kind.READ, 7, 2),
        frame(Kind.WRITE, 0, payload=PAGE),
        frame(Kind.FLUSH, 1),
    ],
)
def test_a_restorer_that_breaks_the_rules_is_told_so_and_cut_off(lab: Lab, bad: bytes) -> None:
    keeper, data = lab.keeper(), region(8)
    save(lab.sink(keeper), data)
    channel = let_in(keeper, RESTORE)
    channel.send_raw([bad])
    assert answers(channel) == [Kind.FAILED]
    until(lambda: not keeper.status()["sessions"], "the session's end")
    assert (lab.place().image, lab.place().readers) == (data, 0)


def test_a_seal_without_a_flush_is_refused(lab: Lab) -> None:
    data = region(8)
    sink = lab.sink(lab.keeper())
    sink.begin(identity(data), 1)
    put(sink, data)
    with pytest.raises(ProtocolError, match="without a FLUSH"):
        sink.seal(seal_of(data))
    assert lab.place().seal is None


def test_random_frames_do_no_harm(lab: Lab) -> None:
    print(f"SUSTAIN_SEED={SEED}")
    rng = random.Random(SEED)
    keeper, data = lab.keeper(), region(8)
    save(lab.sink(keeper), data)
    kinds = [*wire.KEEPER_STREAM, *Kind]
    for _ in range(150):
        # READ only: no page of a sealed region may change, whatever comes.
        channel = let_in(keeper, RESTORE)
        for _ in range(rng.randrange(1, 6)):
            words = [rng.choice([0, 1, 7, 8, rng.randrange(2**64)]) for _ in range(2)]
            payload = rng.randbytes(rng.choice([0, 16, 100, PAGE_BYTES + DIGEST_BYTES]))
            length = rng.choice([None, None, rng.randrange(2**32)])
            try:
                channel.send_raw([frame(rng.choice(kinds), *words, payload=payload, length=length)])
            except PeerUnreachable:
                break
        channel.close()
        channel.release()
    with lab.source(keeper) as source:
        assert source.read(0, 8) == data
    assert lab.place().image == data


def test_a_keeper_takes_no_more_than_it_can_write(lab: Lab) -> None:
    keeper = lab.keeper()
    channel = let_in(keeper, size_pages=4096)
    lab.place().hold = hold = threading.Event()
    sent = [0]

    def flood() -> None:
        try:
            for number in range(4096 * 64):
                channel.send(Kind.WRITE, number % 4096, payload=PAGE)
                sent[0] += 1
        except PeerUnreachable:
            pass

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    before = -1
    while sent[0] != before:  # until it is stuck: what the sockets hold, and no more
        before = sent[0]
        thread.join(0.3)
    assert thread.is_alive()
    (saving,) = keeper._sessions
    assert isinstance(saving, SaveSession)
    assert len(saving._buffer) == len(PAGE)
    assert lab.place().writes == 0
    hold.set()
    until(lambda: lab.place().writes > before, "it goes on")
    channel.close()
    thread.join(LIMIT_S)
    channel.release()


def test_there_are_only_so_many_sessions(lab: Lab) -> None:
    keeper = lab.keeper()
    channels = [let_in(keeper, name=f"r{number}") for number in range(SESSIONS_LIMIT)]
    with pytest.raises(RegionBusy, match="sessions are open"):
        lab.sink(keeper).begin(identity(region(1)), 1)
    for each in channels:
        each.release()
    until(lambda: not keeper.status()["sessions"], "their end")
    save(lab.sink(keeper), region(1))


def test_a_client_that_never_says_hello_keeps_nobody_out(lab: Lab) -> None:
    keeper = lab.keeper(handshake_timeout_s=0.5)
    idle = [socket.create_connection(keeper.address) for _ in range(16)]
    until(lambda: _saved(lab, keeper), "there is room again")
    for each in idle:
        each.close()


def _saved(lab: Lab, keeper: Keeper) -> bool:
    try:
        save(lab.sink(keeper), region(1))
    except PeerUnreachable:
        return False
    return True


def test_stopping_ends_sessions_and_says_so(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(3)
    sink = lab.sink(keeper)
    sink.begin(identity(data), 1)
    put(sink, data)
    sink.flush()
    keeper.stop()
    with pytest.raises(PeerUnreachable, match="asked to end"):
        sink.flush()
    assert not lab.place().busy
    assert lab.place().seal is None


def test_a_defect_at_the_keeper_is_told_and_ends_one_session_only(lab: Lab) -> None:
    keeper, data = lab.keeper(), region(300)
    lab.place().error = ZeroDivisionError("oh")
    sink = lab.sink(keeper)
    sink.begin(identity(data), 1)
    with pytest.raises(RegionError, match="unexpected ZeroDivisionError: oh"):
        put_and_flush(sink, data)
    lab.place().error = None
    save(sink, data)
    assert lab.place().image == data
    assert any("ZeroDivisionError" in line for line in lab.said)


# hostile keepers


def lying(lab: Lab, lie: Callable[[Channel, wire.Header], None], data: bytes) -> Listener[Any, Any]:
    """Somebody with the key who welcomes everybody and then answers each frame with `lie`."""

    def serve(channel: Channel, handshake: ReceiverHandshake[Any, Any], _: RegionHello) -> None:
        seal = SealMessage.of(seal_of(data))
        welcome = RegionWelcome(
            uuid=UUID, size_bytes=len(data), name="nv", has_table=True, seal=seal, last_number=1
        )
        channel.send_raw([handshake.welcome(welcome)])
        channel.send(Kind.DIGESTS, 0, payload=page_digests(data))
        channel.send(Kind.DIGESTS, len(data) // PAGE_BYTES)
        while True:
            header, _payload = channel.receive_frame(wire.KEEPER_STREAM)
            if header.kind is not Kind.HEARTBEAT:
                lie(channel, header)

    listener = Listener(
        ("127.0.0.1", 0),
        NO_CREDENTIALS,
        REGIONS,
        serve,
        timeout_s=3,
        handshake_timeout_s=3,
        rejected=lambda *_: None,
    )
    listener.start()
    lab.ending.append(listener.stop)
    return listener


@pytest.mark.parametrize(
    "lie",
    [
        lambda channel, header: channel.send(Kind.PAGES, header.a + 1, payload=bytes(PAGE_BYTES)),
        lambda channel, header: channel.send(Kind.PAGES, header.a, payload=bytes(2 * PAGE_BYTES)),
        lambda channel, header: channel.send(Kind.FLUSHED, 1),
        lambda channel, header: channel.send(Kind.DIGESTS, 0, payload=bytes(16)),
        lambda channel, header: channel.send_raw([b"\xff" * 64]),
    ],
)
def test_a_keeper_that_answers_something_else_is_not_believed(lab: Lab, lie: Any) -> None:
    source = PeerSource(parse_peer(url(lying(lab, lie, region(8)))), "nv", lab.options())
    lab.ending.append(source.close)
    with pytest.raises(ProtocolError):
        source.read(3, 1)


@pytest.mark.parametrize(
    "lie",
    [
        lambda channel, header: channel.send(Kind.WRITTEN, 1 << 40),
        lambda channel, header: channel.send(Kind.FLUSHED, 2),
        lambda channel, header: channel.send(Kind.SEALED, 1),
        lambda channel, header: channel.send(Kind.PAGES, 0, payload=bytes(PAGE_BYTES)),
    ],
)
def test_a_keeper_that_acknowledges_what_was_not_sent_is_not_believed(lab: Lab, lie: Any) -> None:
    data = region(8)
    sink = PeerSink(parse_peer(url(lying(lab, lie, data))), "nv", lab.options())
    lab.ending.append(sink.close)
    sink.begin(identity(data), 1)
    with pytest.raises(ProtocolError):
        sink.flush()
