"""What every place for saved regions keeps to, whichever it is: `Sink` and `Source` of sustain.powerfail.regions."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sustain import PeerRefused, RegionBusy, RegionCorrupt, RegionUnsealed, WrongGeneration
from sustain.errors import NotARegion
from sustain.powerfail.regions.kept import keeper_of
from sustain.powerfail.regions.manifest import PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.scan import digests_of, table_digest, zero_table
from sustain.powerfail.regions.serve import KeeperConfig
from sustain.powerfail.regions.sink import Sink, Source, open_sink, open_source
from sustain.replication.credentials import NO_CREDENTIALS
from sustain.replication.urls import join

NAME = "vm1"
SIZE = 40 * PAGE_BYTES - 100
REGION = RegionIdentity(b"u" * 16, SIZE, NAME)


@pytest.fixture(params=["file", "tcp", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/saved%20here"
        return
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/some/where"
        return
    keeper = keeper_of(str(tmp_path / "saved here"), KeeperConfig(("127.0.0.1", 0)))
    keeper.start()
    yield f"tcp://{join(*keeper.address)}"
    keeper.stop()


@pytest.fixture
def to(url: str) -> Callable[[], Sink]:
    return lambda: open_sink(url, credentials=NO_CREDENTIALS, name=NAME)


@pytest.fixture
def of(url: str) -> Callable[[], Source]:
    return lambda: open_source(url, credentials=NO_CREDENTIALS, name=NAME)


Sinks = Callable[[], Sink]
Sources = Callable[[], Source]


def content(seed: int, size: int = SIZE) -> bytes:
    """Some pages of zeros, some not."""
    draw = random.Random(seed)
    pages = [
        bytes(PAGE_BYTES) if draw.random() < 0.3 else draw.randbytes(PAGE_BYTES)
        for _ in range(-(-size // PAGE_BYTES))
    ]
    return b"".join(pages)[:size]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % PAGE_BYTES)


def a_seal(data: bytes, number: int, epoch: int = 1) -> Seal:
    return Seal(epoch, number, "host-a", table_digest(digests_of(data)), 1, "test")


def put(sink: Sink, data: bytes, first: int = 0, pages: int | None = None) -> None:
    part = padded(data)[first * PAGE_BYTES :][: None if pages is None else pages * PAGE_BYTES]
    sink.write(first, part, digests_of(part))


def written(sink: Sink, data: bytes | bytearray, digests: bytes) -> None:
    """To the end of the flush: an error may come anywhere on the way."""
    sink.write(0, bytes(data), digests)
    sink.flush()


def saved(to: Sinks, data: bytes, number: int = 1, epoch: int = 1) -> None:
    with to() as sink:
        sink.begin(replace(REGION, size_bytes=len(data)), epoch)
        put(sink, data)
        sink.flush()
        sink.seal(a_seal(data, number, epoch))


def read(of: Sources) -> bytes:
    with of() as source:
        pages = source.identity().pages
        table = source.table()
        data = b"".join(bytes(source.read(first, min(7, pages - first))) for first in range(0, pages, 7))
        assert digests_of(data) == table
        assert table_digest(table) == source.seal().table_digest
        return data[: source.identity().size_bytes]


def test_what_is_sealed_is_read_again(to: Sinks, of: Sources) -> None:
    data = content(1)
    with to() as sink:
        held = sink.begin(REGION, 4)
        assert held.table in (None, zero_table(REGION.pages))
        assert (held.seal, held.last_number) == (None, 0)
        for first in (10, 0, 20, 30):
            put(sink, data, first, 10)
        sink.flush()
        sink.seal(a_seal(data, 5, 4))
    assert read(of) == data
    with of() as source:
        assert source.identity() == REGION
        assert source.seal() == a_seal(data, 5, 4)
    with to() as sink:
        held = sink.begin(REGION, 4)
        assert held.table == digests_of(data)
        assert held.seal == a_seal(data, 5, 4)
        assert held.last_number == 5


def test_a_save_goes_on_from_what_is_held(to: Sinks, of: Sources) -> None:
    saved(to, content(1))
    data = bytearray(content(1))
    data[5 * PAGE_BYTES : 7 * PAGE_BYTES] = content(2)[: 2 * PAGE_BYTES]
    with to() as sink:
        sink.begin(REGION, 1)
        put(sink, bytes(data), 5, 2)
        sink.flush()
        sink.seal(a_seal(data, 2))
    assert read(of) == data


def test_flushed_pages_stay_without_a_seal(to: Sinks) -> None:
    data = content(1)
    with to() as sink:
        sink.begin(REGION, 1)
        put(sink, data)
        sink.flush()
    with to() as sink:
        held = sink.begin(REGION, 1)
        assert held.table == digests_of(data)
        assert held.seal is None
        sink.seal(a_seal(data, 1))


def test_unsealed_is_refused(to: Sinks, of: Sources) -> None:
    with pytest.raises(NotARegion):
        of().close()
    with to() as sink:
        sink.begin(REGION, 1)
    with of() as source, pytest.raises(RegionUnsealed) as caught:
        source.seal()
    assert caught.value.hint
    with of() as source, pytest.raises(RegionUnsealed):
        source.table()


def test_a_former_primary_is_refused(to: Sinks, of: Sources) -> None:
    data = content(1)
    saved(to, data, epoch=1)
    with to() as sink:
        sink.begin(REGION, 3)
    with to() as sink, pytest.raises(PeerRefused, match="epoch 2 is over"):
        sink.begin(REGION, 2)
    with to() as sink:
        sink.begin(REGION, 3)
        with pytest.raises(WrongGeneration):
            sink.seal(a_seal(data, 2, epoch=2))
        sink.seal(a_seal(data, 2, epoch=3))
    assert read(of) == data


def test_another_region_of_that_name_is_refused(to: Sinks, of: Sources) -> None:
    saved(to, content(1))
    with to() as sink, pytest.raises(PeerRefused, match="another region"):
        sink.begin(replace(REGION, uuid=b"v" * 16), 1)
    assert read(of) == content(1)


def test_seal_numbers_rise(to: Sinks) -> None:
    data = content(1)
    saved(to, data, number=9)
    with to() as sink:
        sink.begin(REGION, 1)
        for number in (1, 9):
            with pytest.raises(WrongGeneration):
                sink.seal(a_seal(data, number))
        sink.seal(a_seal(data, 10))
        put(sink, content(2))
    with to() as sink:
        held = sink.begin(REGION, 1)
        assert held.last_number == 10


def test_only_what_is_there_can_be_sealed(to: Sinks, of: Sources) -> None:
    data = content(1)
    with to() as sink:
        sink.begin(REGION, 1)
        put(sink, data, 0, 39)
        sink.flush()
        with pytest.raises(RegionCorrupt):
            sink.seal(a_seal(data, 1))
    with of() as source, pytest.raises(RegionUnsealed):
        source.seal()


def test_pages_that_are_not_what_their_digests_say_never_come_to_a_seal(to: Sinks, of: Sources) -> None:
    data = padded(content(1))
    digests = digests_of(data)
    with to() as sink:
        sink.begin(REGION, 1)
        broken = bytearray(data)
        broken[17 * PAGE_BYTES + 99] ^= 4
        with pytest.raises(RegionCorrupt, match=r"\b17\b"):
            written(sink, broken, digests)
    with to() as sink:
        sink.begin(REGION, 1)
        with pytest.raises(RegionCorrupt):
            sink.seal(Seal(1, 1, "", table_digest(digests), 0, ""))
        put(sink, data, 17, 1)
        put(sink, data)
        sink.flush()
        sink.seal(Seal(1, 1, "", table_digest(digests), 0, ""))
    assert read(of) == data[:SIZE]


@pytest.mark.parametrize("size", [PAGE_BYTES, 7 * PAGE_BYTES + 1, 100 * PAGE_BYTES, SIZE - 1, SIZE + 1])
def test_a_region_may_change_its_size(to: Sinks, of: Sources, size: int) -> None:
    saved(to, content(1))
    with to() as sink:
        held = sink.begin(replace(REGION, size_bytes=size), 1)
        cut = (content(1) + bytes(size))[:size]
        if held.table is not None:
            assert held.table == digests_of(cut)
        assert held.seal is None
    data = content(2, size)
    saved(to, data, number=2)
    assert read(of) == data


def test_one_save_at_a_time(url: str, to: Sinks, of: Sources) -> None:
    if url.startswith("tcp:"):
        pytest.skip("a keeper lets the newer connection take over: test_peer.py")
    if url.startswith("s3:"):
        pytest.skip("the later one wins: test_objects.py")
    saved(to, content(1))
    with to() as sink:
        sink.begin(REGION, 1)
        with to() as other, pytest.raises(RegionBusy):
            other.begin(REGION, 1)
        put(sink, content(2))
        sink.flush()
        sink.seal(a_seal(content(2), 2))
    assert read(of) == content(2)


def test_names_do_not_meet(url: str, to: Sinks, of: Sources) -> None:
    saved(to, content(1))
    other = RegionIdentity(b"o" * 16, SIZE, "vm2")
    with open_sink(url, credentials=NO_CREDENTIALS, name="vm2") as sink:
        sink.begin(other, 1)
        put(sink, content(2))
        sink.flush()
        sink.seal(a_seal(content(2), 1))
    assert read(of) == content(1)


def test_closing_twice_and_after_nothing_is_fine(to: Sinks, of: Sources) -> None:
    sink = to()
    sink.close()
    sink.close()
    saved(to, content(1))
    source = of()
    source.close()
    source.close()
