"""Threads beside the writing of pages: order, errors, and that they end."""

import threading
from collections.abc import Iterator

import pytest

from sustain.errors import RegionIOError
from sustain.powerfail.regions.background import AHEAD, Buffers, EarlySync, Readback, ahead
from sustain.powerfail.regions.manifest import PAGE_BYTES
from sustain.powerfail.regions.scan import digests_of


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_reading_ahead_keeps_order_and_stays_near() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    seen: list[int] = []
    for item in ahead(make()):
        seen.append(item)
        assert len(made) <= len(seen) + AHEAD + 2
    assert seen == list(range(100))


def test_what_reading_raises_comes_after_what_was_read() -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise RegionIOError("gone")

    seen: list[int] = []
    with pytest.raises(RegionIOError, match="gone"):
        seen.extend(item for item in ahead(make()))
    assert seen == [1, 2]


def test_reading_ahead_ends_when_nobody_wants_more() -> None:
    items = ahead(iter(range(1000)))
    assert next(items) == 0
    items.close()


def test_buffers_are_not_given_out_again_too_soon() -> None:
    buffers = Buffers()
    given = [buffers.take(1) for _ in range(AHEAD + 3)]
    for number, buffer in enumerate(given):
        buffer[0] = number
    assert [buffer[0] for buffer in given] == list(range(AHEAD + 3))


def pages(count: int) -> bytearray:
    return bytearray(b"".join(number.to_bytes(2, "little") * (PAGE_BYTES // 2) for number in range(count)))


def test_reading_back_finds_what_does_not_fit() -> None:
    data = pages(1000)
    table = bytearray(digests_of(data))

    def read(first: int, buffer: memoryview) -> None:
        buffer[:] = data[first * PAGE_BYTES :][: len(buffer)]

    readback = Readback(read, table)
    data[700 * PAGE_BYTES] ^= 1
    data[701 * PAGE_BYTES + 4000] ^= 1
    for first in range(0, 1000, 100):
        readback.wrote(first, 100)
    assert readback.finish() == [(700, 2)]
    readback.wrote(0, 700)
    assert readback.finish() == []


def test_a_page_written_again_meanwhile_is_no_error() -> None:
    """The table says already what is only being written: it is looked at again at the end."""
    data = pages(10)
    table = bytearray(digests_of(data))
    looked, go_on = threading.Event(), threading.Event()

    def read(first: int, buffer: memoryview) -> None:
        if not looked.is_set():
            buffer[:] = bytes(len(buffer))  # as if it were of before
            looked.set()
            assert go_on.wait(10)
        else:
            buffer[:] = data[first * PAGE_BYTES :][: len(buffer)]

    readback = Readback(read, table)
    readback.wrote(3, 2)
    assert looked.wait(10)
    go_on.set()
    assert readback.finish() == []


def test_an_error_of_reading_back_is_raised_at_the_end() -> None:
    def read(first: int, buffer: memoryview) -> None:
        raise RegionIOError(f"page {first}")

    readback = Readback(read, bytes(16 * 100))
    for first in range(100):
        readback.wrote(first, 1)
    with pytest.raises(RegionIOError, match="page 0"):
        readback.finish()


def test_flushing_early_never_forgets_a_failure() -> None:
    flushes = 0

    def flush() -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 1:
            raise RegionIOError("lost")

    early = EarlySync(flush)
    for _ in range(300):
        early.wrote(1 << 20)
    with pytest.raises(RegionIOError, match="lost"):
        early.finish()
    fine = EarlySync(flush)
    fine.wrote(10)
    before = flushes
    fine.finish()
    assert flushes == before + 1
