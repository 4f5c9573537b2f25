"""The parts of SQLite on a store that need no SQLite: the overlay against bytes, the locks against their rules."""

import threading

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sustain.store.sqlite.header import shown, written
from sustain.store.sqlite.locks import EXCLUSIVE, NONE, PENDING, RESERVED, SHARED, Locks
from sustain.store.sqlite.overlay import Overlay


class Plain:
    """A committed database."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size(self) -> int:
        return len(self.content)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def pwrite(self, data: bytes, offset: int) -> None:
        self.content.extend(bytes(max(0, offset + len(data) - len(self.content))))
        self.content[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


sizes = st.sampled_from([0, 1, 24, 512, 1024, 4095, 4096, 4097, 8192, 12_288, 20_000, 65_536])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), sizes, sizes, st.integers(1, 255)),
        st.tuples(st.just("truncate"), sizes, st.just(0), st.just(0)),
        st.tuples(st.just("read"), sizes, sizes, st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(base=sizes, work=steps)
@example(base=20_000, work=[("truncate", 24, 0, 0), ("truncate", 65_536, 0, 0)])
@example(base=20_000, work=[("truncate", 0, 0, 0), ("write", 12_288, 512, 7)])
def test_the_overlay_is_what_was_written_over_what_was_there(
    base: int, work: list[tuple[str, int, int, int]]
) -> None:
    below = Plain(b"b" * base)
    model, overlay = Plain(b"b" * base), Overlay(below)
    for what, at, length, byte in work:
        if what == "write":
            model.pwrite(bytes([byte]) * length, at) if length else None
            overlay.write(bytes([byte]) * length, at) if length else None
        elif what == "truncate":
            model.truncate(at)
            overlay.truncate(at)
        assert overlay.read(length, at) == model.pread(length, at)
        assert overlay.size == model.size
    assert overlay.read(200_000, 0) == model.content
    assert below.content == b"b" * base
    result = Plain(below.content)
    for offset, data in overlay.pieces():
        assert offset + len(data) <= overlay.size
        result.pwrite(data, offset)
    result.truncate(overlay.size)
    assert result.content == model.content


@given(
    work=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([SHARED, RESERVED, EXCLUSIVE, -SHARED, NONE])),
        max_size=40,
    )
)
def test_who_writes_is_alone(work: list[tuple[int, int]]) -> None:
    locks = Locks(threading.Lock())
    for holder, wanted in work:
        before = locks.level(holder)
        if wanted > NONE and (before >= wanted - 1 or (wanted == EXCLUSIVE and before > NONE)):
            granted = locks.take(holder, wanted)
            assert granted == (locks.level(holder) >= wanted)
            assert locks.level(holder) >= before
        elif wanted <= NONE and before > NONE:
            locks.lower(holder, -wanted)
            assert locks.level(holder) <= -wanted
        levels = sorted((locks.level(each) for each in range(4)), reverse=True)
        assert levels[1] < RESERVED, f"two of them write: {levels}"
        assert levels[0] < EXCLUSIVE or levels[1] == NONE, f"one writes where others read: {levels}"
        assert locks.reserved() == (levels[0] >= RESERVED)
        assert locks.held == (levels[0] > NONE)


def test_who_waits_for_readers_lets_no_new_ones_in() -> None:
    locks = Locks(threading.Lock())
    assert locks.take("reader", SHARED)
    assert locks.take("writer", SHARED)
    assert locks.take("writer", RESERVED)
    assert locks.take("other", SHARED)
    assert not locks.take("writer", EXCLUSIVE)
    assert locks.level("writer") == PENDING
    locks.lower("other", NONE)
    assert not locks.take("other", SHARED)
    assert not locks.take("reader", RESERVED)
    locks.lower("reader", NONE)
    assert locks.take("writer", EXCLUSIVE)


def test_the_header_says_no_wal_mode() -> None:
    page = bytearray(4096)
    page[18:20] = b"\1\1"
    assert shown(bytes(page)) == written(bytes(page)) == page
    page[18:20] = b"\2\2"
    page[24:28] = page[92:96] = (7).to_bytes(4, "big")
    kept = written(bytes(page))
    assert kept[18:20] == shown(bytes(page))[18:20] == b"\1\1"
    assert kept[24:28] == kept[92:96] == (8).to_bytes(4, "big")
    assert shown(bytes(page))[20:] == page[20:]
    assert shown(bytes(page[:16])) == page[:16]
