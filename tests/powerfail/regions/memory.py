"""A place for one region in memory, as strict as a directory about the order of things, and breakable on purpose."""

import threading
from dataclasses import dataclass, field

from sustain._native import digest, page_digests
from sustain.errors import (
    NotARegion,
    PeerRefused,
    RegionBusy,
    RegionCorrupt,
    RegionUnsealed,
    WrongGeneration,
)
from sustain.powerfail.regions.manifest import DIGEST_BYTES, PAGE_BYTES, RegionIdentity, Seal
from sustain.powerfail.regions.sink import Held, Sink, Source


@dataclass
class Place:
    """What lies there, and what is to go wrong."""

    identity: RegionIdentity | None = None
    image: bytearray = field(default_factory=bytearray)
    table: bytearray = field(default_factory=bytearray)
    epoch: int = 0
    seal: Seal | None = None
    last_number: int = 0
    writes: int = 0  # pages
    readers: int = 0
    busy: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    full_at: int | None = None  # page from which there is no room
    error: Exception | None = None  # what the next write raises
    hold: threading.Event | None = None  # writes wait for it


class MemorySink(Sink):
    def __init__(self, place: Place) -> None:
        self.url = "memory:"
        self._place, self._open = place, False
        self._unflushed: set[int] = set()

    def begin(self, identity: RegionIdentity, epoch: int) -> Held:
        place = self._place
        with place.lock:
            if place.busy or place.readers:
                raise RegionBusy("memory: in use", hint="wait")
            if epoch < place.epoch:
                raise PeerRefused(f"memory: epoch {epoch} is over", hint="stop")
            if place.identity not in (None, identity):
                raise PeerRefused("memory: another region", hint="another name")
            place.busy = self._open = True
            place.epoch = epoch
        if place.identity is None:
            place.identity = identity
            place.image = bytearray(identity.pages * PAGE_BYTES)
            place.table = bytearray(page_digests(place.image))
        return Held(bytes(place.table), place.seal, place.last_number)

    def write(self, first_page: int, data: bytes | memoryview, digests: bytes) -> None:
        place, pages = self._place, len(data) // PAGE_BYTES
        if place.hold is not None:
            assert place.hold.wait(20)
        if place.error is not None:
            raise place.error
        place.seal = None
        place.writes += pages
        place.image[first_page * PAGE_BYTES : (first_page + pages) * PAGE_BYTES] = data
        place.table[first_page * DIGEST_BYTES : (first_page + pages) * DIGEST_BYTES] = digests
        self._unflushed.update(range(first_page, first_page + pages))

    def flush(self) -> None:
        place = self._place
        bad = []
        for page in sorted(self._unflushed):
            found = page_digests(place.image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            if place.table[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES] != found:
                place.table[page * DIGEST_BYTES : (page + 1) * DIGEST_BYTES] = found
                bad.append(page)
        self._unflushed.clear()
        if bad:
            raise RegionCorrupt(f"memory: damaged pages {bad}", hint="write them again")

    def seal(self, seal: Seal) -> None:
        place = self._place
        if digest(place.table) != seal.table_digest:
            raise RegionCorrupt("memory: another table", hint="save again")
        if seal.number <= place.last_number:
            raise WrongGeneration("memory: an old number", hint="a higher one")
        place.seal, place.last_number = seal, seal.number

    def close(self) -> None:
        if self._open:
            self._open = self._place.busy = False


class MemorySource(Source):
    def __init__(self, place: Place) -> None:
        self.url = "memory:"
        self._place = place
        with place.lock:
            if place.identity is None:
                raise NotARegion("memory: nothing is saved here", hint="the name?")
            if place.busy:
                raise RegionBusy("memory: in use", hint="wait")
            if place.seal is None:
                raise RegionUnsealed("memory: not complete", hint="another destination")
            place.readers += 1
        self._closed = False

    def identity(self) -> RegionIdentity:
        assert self._place.identity is not None
        return self._place.identity

    def seal(self) -> Seal:
        assert self._place.seal is not None
        return self._place.seal

    def table(self) -> bytes:
        return bytes(self._place.table)

    def read(self, first_page: int, pages: int) -> bytes:
        return bytes(self._place.image[first_page * PAGE_BYTES : (first_page + pages) * PAGE_BYTES])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._place.lock:
                self._place.readers -= 1
