"""Whatever comes to a listener: the connection ends, nothing else does. Bytes from nobody, to a plain port and to a TLS
port; and frames from somebody who has the credentials and means harm.

Held after each round: the listener lets a good peer in, has reported no defect, has no thread and no descriptor left
over, has not grown, and no file but its own has changed. SUSTAIN_FUZZ is how many cases a round has, SUSTAIN_SEED
begins another sequence.
"""

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sustain.errors import SustainError
from sustain.powerfail.regions.frames import REGIONS, RegionHello
from sustain.powerfail.regions.kept import keeper_of
from sustain.powerfail.regions.serve import KeeperConfig
from sustain.replication import wire
from sustain.replication.auth import STORES, ShipperHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.dial import dial, introduce
from sustain.replication.outlet import LinkConfig
from sustain.replication.urls import Peer
from sustain.replication.wire import HEADER_BYTES, PAYLOAD_LIMIT, Account, Hello, Kind, SnapshotBegin

from .certificates import Authority
from .conftest import LINK, Lab, fill, until
from .make_corpus import frames

SEED = int(os.environ.get("SUSTAIN_SEED", "20260110"))
CASES = int(os.environ.get("SUSTAIN_FUZZ", "120"))
GROWTH_BYTES = 96 << 20  # well above one frame for each of 16 connections, far below what a frame may name
WORDS = (0, 1, 7, 4096, 8192, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
CORPUS = list(frames().values())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fingerprint(directory: Path, but: tuple[str, ...]) -> dict[str, bytes]:
    """What lies in `directory`, without what begins with one of `but`."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not str(path.relative_to(directory)).startswith(but)
    }


@pytest.fixture(autouse=True)
def no_thread_dies() -> Iterator[None]:
    """An exception that ends a thread is a traceback that a user sees."""
    died: list[str] = []
    hook = threading.excepthook
    threading.excepthook = lambda what: died.append(f"{what.exc_type.__name__}: {what.exc_value}")
    yield
    threading.excepthook = hook
    assert died == []


def held(said: list[str], before: tuple[int, int, int]) -> None:
    """No defect was reported, and nothing is left over."""
    assert [line for line in said if "unexpected" in line or "defect" in line] == []
    threads, files, memory = before
    until(lambda: threading.active_count() <= threads, "no thread is left over")
    until(lambda: descriptors() <= files, "no descriptor is left over")
    assert resident_bytes() - memory < GROWTH_BYTES


def now() -> tuple[int, int, int]:
    return threading.active_count(), descriptors(), resident_bytes()


def mutated(random_: random.Random, data: bytes) -> bytes:
    """`data`, a little different, or much."""
    made = bytearray(data)
    for _ in range(random_.randrange(1, 4)):
        at = random_.randrange(len(made)) if made else 0
        what = random_.randrange(6)
        if what == 0 and made:
            made[at] ^= 1 << random_.randrange(8)
        elif what == 1:
            del made[at:]
        elif what == 2:
            made[at:at] = random_.randbytes(random_.choice((1, 8, 64, 4096)))
        elif what == 3 and len(made) >= HEADER_BYTES:
            made[0:4] = random_.choice((0, 1, 511, 1 << 20, 1 << 31, (1 << 32) - 1)).to_bytes(4, "little")
        elif what == 4 and len(made) >= HEADER_BYTES:
            place = random_.choice((8, 16, 24))
            made[place : place + 8] = random_.choice(WORDS).to_bytes(8, "little")
        else:
            made += random_.choice(CORPUS)
    return bytes(made)


def send_and_hang_up(address: tuple[str, int], data: bytes) -> None:
    """Send `data` and nothing after it; wait until the listener has hung up, too."""
    with socket.create_connection(address, timeout=20) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass


def client_hello(tls_of: Credentials) -> bytes:
    """What a TLS client begins with."""
    assert tls_of.tls is not None
    session = tls_of.tls.client("127.0.0.1")
    assert not session.shake()
    return session.outgoing()


@pytest.mark.parametrize("secured", [False, True])
def test_bytes_from_nobody(lab: Lab, tmp_path: Path, secured: bool) -> None:
    random_ = random.Random(SEED)
    authority = Authority.made(tmp_path / "ca")
    good = authority.host("a").load() if secured else Credentials(b"k" * 32)
    receiver = lab.receiver(credentials=authority.host("b").load() if secured else good)
    begins = [*CORPUS, client_hello(authority.host("c").load()), b"GET / HTTP/1.1\r\n\r\n"]
    store = lab.create()
    send_and_hang_up(receiver.address, b"x")
    files, before = fingerprint(tmp_path, ("a.sus", "b.sus")), now()
    for _ in range(CASES):
        send_and_hang_up(receiver.address, mutated(random_, random_.choice(begins)))
    held(lab.said, before)
    assert fingerprint(tmp_path, ("a.sus", "b.sus")) == files
    assert not (tmp_path / "b.sus").exists()
    lab.ship(receiver, link=with_credentials(good))
    store.wait(fill(store, 0, 3), copies=1, timeout=20)


def with_credentials(credentials: Credentials) -> LinkConfig:
    return replace(LINK, credentials=credentials)


def let_in(address: tuple[str, int], credentials: Credentials, hello: Hello) -> Channel:
    peer = Peer(*address)
    channel = dial(peer, connect_timeout_s=20, timeout_s=20)
    try:
        introduce(channel, peer, credentials, STORES, lambda: hello, 20)
    except BaseException:
        channel.release()
        raise
    return channel


def odd_begin(random_: random.Random, hello: Hello) -> bytes:
    """A SNAPSHOT_BEGIN that is right but for one thing, or is right."""
    facts = {
        "store": hello.store,
        "image_size": hello.image_size,
        "log_size": hello.log_size,
        "durability": "memory",
        "epoch": hello.epoch,
        "history": hello.history,
        "start": 0,
        "start_seq": 0,
        "start_chain": 0,
        "common": None,
        "reason": "../../etc/passwd\n\x1b[2J",
        "total_bytes": 0,
        "compare": False,
    }
    field = random_.choice([*facts, "none"])
    odd: dict[str, object] = {
        "store": b"o" * 16,
        "history": random_.choice(([], [(9, 9), (1, 0)], [(1, 0)] * 128, [(1, (1 << 63) - 1)])),
        "common": random_.choice(WORDS[:-1]),
        "compare": True,
        "durability": random_.choice(("disk", "pmem")),
    }
    if field not in ("none", "reason"):
        facts[field] = odd.get(field, random_.choice(WORDS[:-1]))
    message = wire.encode(SnapshotBegin(**facts))  # type: ignore[arg-type]
    return wire.pack_header(Kind.SNAPSHOT_BEGIN, len(message)) + message


def odd_frame(random_: random.Random, kinds: list[Kind], word: Callable[[], int]) -> bytes:
    kind = random_.choice(kinds)
    limit = PAYLOAD_LIMIT[kind]
    length = random_.choice((0, 1, 4096, 4112, limit, random_.randrange(limit + 1)))
    length = min(length, limit, 300_000)
    named = random_.choice((length, length, length, limit, 1 << 31))
    header = wire._HEADER.pack(named, kind, random_.choice((0, 0, 0, 1)), word(), word(), word())
    return header + random_.randbytes(length)


def odd_account(random_: random.Random, hello: Hello) -> bytes:
    facts = {name: random_.choice(WORDS[:-1]) for name in Account.__struct_fields__}
    facts |= {"store": random_.choice((hello.store, b"o" * 16)), "replica": random_.randbytes(16)}
    facts |= {"host": "../../etc/passwd\n\x1b[2J", "writer": random_.random() < 0.5}
    message = wire.encode(Account(**facts))
    return wire.pack_header(Kind.ACCOUNT, len(message)) + message


@pytest.mark.parametrize("secured", [False, True])
def test_frames_from_a_hostile_primary(lab: Lab, tmp_path: Path, secured: bool) -> None:
    random_ = random.Random(SEED + 1)
    authority = Authority.made(tmp_path / "ca")
    good = authority.host("a").load() if secured else NO_CREDENTIALS
    receiver = lab.receiver(
        credentials=authority.host("b").load() if secured else NO_CREDENTIALS, size_limit=64 << 20
    )
    store = lab.create()
    running = lab.ship(receiver, link=with_credentials(good))
    position = fill(store, 0, 20)
    store.wait(position, copies=1, timeout=20)
    hello = running.shipper.hello()
    running.stop()
    until(lambda: receiver.status()["primary"] is None, "the session has ended")
    names = ("a.sus", "b.sus")
    files, before = fingerprint(tmp_path, names), now()
    kinds = sorted(wire.RECEIVER_STREAM)

    def word() -> int:
        return random_.choice((*WORDS, position, position, hello.image_size // 4096, random_.getrandbits(64)))

    refused: list[str] = []
    for _ in range(CASES):
        try:
            channel = let_in(receiver.address, good, hello)
        except SustainError as error:
            refused.append(str(error))
            continue
        try:
            with contextlib.suppress(SustainError):
                if random_.random() < 0.6:
                    channel.send_raw([odd_begin(random_, hello)])
                else:
                    channel.send(Kind.RESUME, position, position, 1)
                for _ in range(random_.randrange(1, 5)):
                    odd = (
                        odd_account(random_, hello)
                        if random_.random() < 0.2
                        else odd_frame(random_, kinds, word)
                    )
                    channel.send_raw([odd])
        finally:
            channel.release()
    until(lambda: receiver.status()["primary"] is None, "the last session has ended")
    assert [each for each in refused if "has not ended yet" not in each] == []
    held(lab.said, before)
    assert receiver.failure is None
    assert fingerprint(tmp_path, names) == files
    assert {each.name for each in tmp_path.iterdir()} - {"ca", "a.sus"} <= {
        "b.sus",
        "b.sus.incoming",
        "b.sus.accounts.json",
    } | {each.name for each in tmp_path.glob("b.sus.orphan-*")}
    lab.ship(receiver, link=with_credentials(good))
    store.wait(fill(store, 20, 3), copies=1, timeout=20)


@pytest.mark.parametrize("kind", [Kind.RESUME, Kind.HEARTBEAT])
@pytest.mark.parametrize("words", [((1 << 64) - 1, 1), (1, 1 << 63)])
def test_a_position_that_no_log_reaches_keeps_nobody_out(
    lab: Lab, kind: Kind, words: tuple[int, int]
) -> None:
    """It used to be noted, and the receiver's next WELCOME could not be read by anybody."""
    store, receiver = lab.create(), lab.receiver()
    running = lab.ship(receiver)
    position = fill(store, 0, 3)
    store.wait(position, copies=1, timeout=20)
    hello = running.shipper.hello()
    running.stop()
    channel = let_in(receiver.address, NO_CREDENTIALS, hello)
    channel.send(kind, position, *words)
    until(lambda: any("no log reaches" in line for line in lab.said), "it is turned away")
    channel.release()
    lab.ship(receiver)
    store.wait(fill(store, 3, 3), copies=1, timeout=20)


def test_a_snapshot_of_other_sizes_than_were_announced(lab: Lab) -> None:
    store, receiver = lab.create(), lab.receiver(size_limit=64 << 20)
    fill(store, 0, 3)
    running = lab.ship(lab.receiver("c"))
    hello = running.shipper.hello()
    running.stop()
    channel = let_in(receiver.address, NO_CREDENTIALS, hello)
    begin = SnapshotBegin(
        store=hello.store,
        image_size=1 << 40,
        log_size=hello.log_size,
        durability="memory",
        epoch=hello.epoch,
        history=hello.history,
        start=0,
        start_seq=0,
        start_chain=0,
        common=None,
        reason="",
        total_bytes=0,
        compare=False,
    )
    channel.send(Kind.SNAPSHOT_BEGIN, payload=wire.encode(begin))
    until(lambda: any("does not fit" in line for line in lab.said), "it is refused")
    channel.release()
    assert list(lab.directory.glob("b.sus*")) == []


@pytest.mark.parametrize("secured", [False, True])
def test_frames_from_a_hostile_saver(tmp_path: Path, secured: bool) -> None:
    random_ = random.Random(SEED + 2)
    authority = Authority.made(tmp_path / "ca")
    good = authority.host("a").load() if secured else NO_CREDENTIALS
    said: list[str] = []
    keeper = keeper_of(
        str(tmp_path / "kept"),
        KeeperConfig(
            listen=("127.0.0.1", 0),
            credentials=authority.host("b").load() if secured else NO_CREDENTIALS,
            size_limit=lambda: 1 << 20,
            timeout_s=3.0,
            heartbeat_s=0.2,
            report=said.append,
        ),
    )
    keeper.start()
    try:
        send_and_hang_up(keeper.address, b"x")
        files, before = fingerprint(tmp_path, ("kept",)), now()
        kinds = sorted(wire.KEEPER_STREAM)

        def word() -> int:
            return random_.choice((*WORDS, *range(8), random_.getrandbits(64)))

        for number in range(CASES // 2):
            hello = RegionHello(
                protocol=wire.PROTOCOL,
                purpose=random_.choice(("save", "save", "restore")),
                name=random_.choice(("nv", "nv", "other", "-", "_..")),
                uuid=b"u" * 16,
                size_bytes=random_.choice((64 << 10, 64 << 10, 4096, 0, 4095, 1 << 21, (1 << 63) - 1)),
                epoch=random_.choice((1, 1, number, 0)),
                host="h",
            )
            peer = Peer(*keeper.address)
            channel = dial(peer, connect_timeout_s=20, timeout_s=20)
            try:
                with contextlib.suppress(SustainError):
                    introduce(channel, peer, good, REGIONS, lambda hello=hello: hello, 20)  # type: ignore[misc]
                    for _ in range(random_.randrange(1, 5)):
                        channel.send_raw([odd_frame(random_, kinds, word)])
            finally:
                channel.release()
        held(said, before)
        assert fingerprint(tmp_path, ("kept",)) == files
        allowed = {"nv", "other", "-", "_.."}
        assert {each.name for each in (tmp_path / "kept").iterdir() if each.is_dir()} <= allowed
    finally:
        keeper.stop()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", ".", "..", ".hidden", "a\0b", "a\n", "x" * 65, "", "é"]
)
def test_a_region_whose_name_is_a_path(tmp_path: Path, name: str) -> None:
    """The name is the only thing of a peer that becomes part of a path."""
    keeper = keeper_of(str(tmp_path / "kept"), KeeperConfig(listen=("127.0.0.1", 0)))
    keeper.start()
    try:
        peer = Peer(*keeper.address)
        channel = dial(peer, connect_timeout_s=20, timeout_s=20)
        try:
            handshake = ShipperHandshake(b"", REGIONS)
            _, payload = channel.receive_frame(wire.SHIPPER_HANDSHAKE)
            facts = {"protocol": 1, "purpose": "save", "uuid": b"u" * 16, "size_bytes": 4096, "epoch": 1}
            hello = RegionHello(**facts, name=name)  # type: ignore[arg-type] # it is read more strictly than made
            channel.send_raw([handshake.hello(payload, hello)])
            header, payload = channel.receive_frame(wire.SAVER_HANDSHAKE)
            assert header.kind is Kind.REFUSE
        finally:
            channel.release()
    finally:
        keeper.stop()
    assert [each for each in tmp_path.rglob("*") if each.name != "kept"] == []
