"""One destination that fails in every way a destination can: nothing is lost, nothing is sealed that is not whole."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain import _native
from sustain.clock import SystemClock
from sustain.errors import PeerRefused, PeerUnreachable, RegionCorrupt, WrongGeneration
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.medium import Medium, open_medium
from sustain.powerfail.regions.sink import Held, Sink
from sustain.powerfail.regions.stream import Goal, Stream, StreamConfig
from tests.powerfail.regions.shipping import until

PAGES = 300


class Place:
    """What lies at a destination: what was flushed, and what only arrived. Connections come and go."""

    def __init__(self) -> None:
        self.durable = bytearray(PAGES * PAGE_BYTES)
        self.arrived: dict[int, bytes] = {}
        self.sealed: Seal | None = None
        self.last_number = 0
        self.connections = 0
        self.trouble: list[str] = []  # what goes wrong next, in this order, when its step comes
        self.lock = threading.Lock()

    def strikes(self, step: str) -> bool:
        with self.lock:
            if self.trouble and self.trouble[0] == step:
                self.trouble.pop(0)
                return True
            return False


class FaultySink(Sink):
    """A connection to the place; what was not flushed is lost with it."""

    url = "test://place"

    def __init__(self, place: Place) -> None:
        self._place = place
        place.connections += 1
        if place.strikes("connect"):
            raise PeerUnreachable("test://place: no connection", hint="")

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        place = self._place
        if place.strikes("refuse"):
            raise PeerRefused("test://place: epoch 1 is over", hint="")
        place.arrived.clear()
        table = None if place.strikes("forget") else _native.page_digests(place.durable)
        return Held(table, place.sealed, place.last_number)

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        place = self._place
        place.sealed = None
        for at in range(len(digests) // DIGEST_BYTES):
            page = bytes(data[at * PAGE_BYTES : (at + 1) * PAGE_BYTES])
            assert _native.page_digests(page) == digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
            place.arrived[first_page + at] = page
        if place.strikes("write"):
            raise PeerUnreachable("test://place: the connection broke", hint="")

    def flush(self) -> None:
        place = self._place
        if place.strikes("corrupt"):
            for page in list(place.arrived)[::2]:  # every other page did not get there as it was
                del place.arrived[page]
            self._settle()
            raise RegionCorrupt("test://place: pages are not what was sent", hint="")
        if place.strikes("flush"):
            raise PeerUnreachable("test://place: the connection broke", hint="")
        self._settle()

    def _settle(self) -> None:
        for page, data in self._place.arrived.items():
            self._place.durable[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = data
        self._place.arrived.clear()

    def seal(self, seal: Seal) -> None:
        place = self._place
        assert not place.arrived, "flush comes before seal"
        if place.strikes("seal"):
            raise PeerUnreachable("test://place: the connection broke", hint="")
        if seal.number <= place.last_number:
            raise WrongGeneration("test://place: not newer", hint="")
        if seal.table_digest != _native.digest(_native.page_digests(place.durable)):
            raise RegionCorrupt("test://place: holds other pages", hint="")
        place.sealed, place.last_number = seal, seal.number
        if place.strikes("sealed"):
            raise PeerUnreachable("test://place: the answer is lost", hint="")

    def close(self) -> None:
        pass


@pytest.fixture
def region(tmp_path: Path) -> Path:
    path = tmp_path / "region"
    path.write_bytes(random.Random(1).randbytes(PAGES * PAGE_BYTES - 1000))  # the last page is not whole
    return path


@pytest.fixture
def medium(region: Path) -> Iterator[Medium]:
    with open_medium(region) as opened:
        yield opened


def start(medium: Medium, place: Place) -> Stream:
    identity = RegionIdentity(b"u" * 16, medium.size_bytes, "nv")
    config = StreamConfig(identity, epoch=1, owner="a", rate=1e12, scan_rate=1e12)
    stream = Stream("test://place", lambda: FaultySink(place), medium, config, SystemClock(), lambda: None)
    stream._measured_s = float("inf")  # no page is sent to measure the bandwidth
    stream.start()
    return stream


def change(region: Path, pages: list[int], byte: bytes) -> list[tuple[int, int]]:
    with region.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE_BYTES)
            file.write(byte * 50)
    return [(page, 1) for page in sorted(pages)]


def holds(place: Place, region: Path) -> bool:
    data = region.read_bytes()
    return bytes(place.durable[: len(data)]) == data and not any(place.durable[len(data) :])


TROUBLES = ["connect", "forget", "write", "flush", "corrupt", "seal"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_after_one_fault_all_of_it_is_there_and_sealed(region: Path, medium: Medium, trouble: str) -> None:
    place = Place()
    place.trouble = [trouble]
    stream = start(medium, place)
    try:
        stream.finish(Goal(1, "test"))
        until(lambda: stream.state == "sealed", f"not sealed: {stream.error}")
        assert not place.trouble, "the fault did not strike"
        assert holds(place, region)
        assert place.sealed is not None
        assert stream.acked == place.sealed.number == 1
    finally:
        stream.stop()


def test_random_faults_while_pages_change(region: Path, medium: Medium) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    place = Place()
    stream = start(medium, place)
    number = 0
    try:
        for turn in range(12):
            with place.lock:
                place.trouble = [chance.choice(TROUBLES) for _ in range(chance.randrange(3))]
            for step in range(chance.randrange(1, 6)):
                pages = chance.sample(range(PAGES), chance.choice([1, 7, 150]))
                stream.mark(change(region, pages, bytes([turn * 16 + step])))
            if chance.random() < 0.3:
                stream.suspect_all()
            number += 1
            stream.finish(Goal(number, "test"))
            until(lambda: stream.state == "sealed", f"not sealed: {stream.error}")
            assert holds(place, region)
            assert place.sealed is not None
            with place.lock:
                place.trouble = []
            stream.resume()
            until(lambda: place.sealed is None, "the seal is not broken")
    finally:
        stream.stop()


def test_when_the_answer_to_a_seal_is_lost_it_is_not_taken_for_another_ones(
    region: Path, medium: Medium
) -> None:
    """It was sealed with this number, and nothing has been written since: so it stands."""
    place = Place()
    place.trouble = ["sealed"]
    stream = start(medium, place)
    try:
        stream.finish(Goal(1, "test"))
        until(lambda: stream.state in ("sealed", "refused"), f"not sealed: {stream.error}")
        assert stream.state == "sealed", stream.error
        assert place.sealed is not None
        assert place.sealed.number == 1
        assert holds(place, region)
    finally:
        stream.stop()


def test_a_refusal_is_final(medium: Medium) -> None:
    place = Place()
    place.trouble = ["refuse"]
    stream = start(medium, place)
    try:
        until(lambda: stream.state == "refused", "not refused")
        stream.join(30)
        assert not stream.is_alive()
        stream.finish(Goal(1, "test"))
        assert (stream.state, place.connections) == ("refused", 1)
    finally:
        stream.stop()


def test_what_is_there_already_is_not_sent(region: Path, medium: Medium) -> None:
    place = Place()
    place.durable[: medium.size_bytes] = region.read_bytes()
    stream = start(medium, place)
    try:
        stream.finish(Goal(1, "test"))
        until(lambda: stream.state == "sealed", f"not sealed: {stream.error}")
        assert stream.sent_bytes == 0
        stream.resume()
        until(lambda: place.sealed is None, "the seal is not broken")
        before = stream.sent_bytes
        stream.mark(change(region, [5, 299], b"x"))
        stream.finish(Goal(2, "test"))
        until(lambda: stream.state == "sealed", f"not sealed: {stream.error}")
        assert holds(place, region)
        assert stream.sent_bytes - before <= 3 * PAGE_BYTES
    finally:
        stream.stop()
