"""Pages of a snapshot in a replica: written from any memory, compared with their sums in the end, holes too."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import sustain
from sustain._native import LogTail, Replica, page_digests, page_sums
from sustain.errors import StoreCorrupt

PAGE = 4096
IMAGE_PAGES = 16384  # so that several threads compare
RUNS = {0: 3, 700: 1, 9000: 200, IMAGE_PAGES - 1: 1}


def begin(path: Path) -> tuple[Replica, dict[int, bytes]]:
    """A replica with these runs of pages."""
    replica = Replica.create_for_snapshot(
        str(path), IMAGE_PAGES * PAGE, 2 << 20, "memory", os.urandom(16), 1, [(1, 0)], 0, 0, 0
    )
    written = {first: os.urandom(count * PAGE) for first, count in RUNS.items()}
    for number, (first, data) in enumerate(written.items()):
        room = bytearray(number + len(data))
        room[number:] = data
        view = memoryview(room)[number:]  # wherever it lies
        replica.write_pages(first, view, page_sums(first, view) if number % 2 else None)
    return replica, written


def image_offset(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(8192)
    return max(int.from_bytes(head[at + 96 : at + 104], "little") for at in (0, 4096))


def test_what_was_written_is_there(tmp_path: Path) -> None:
    replica, written = begin(tmp_path / "a.sus")
    replica.finish_snapshot()
    for first, data in written.items():
        assert replica.page_digests(first, len(data) // PAGE) == page_digests(data)
    assert replica.page_digests(5000, 8) == page_digests(bytes(8 * PAGE))
    replica.close()


def flipped(file: int, at: int) -> None:
    byte = os.pread(file, 1, at)
    os.pwrite(file, bytes([byte[0] ^ 4]), at)


def zeroed(file: int, at: int) -> None:
    os.pwrite(file, bytes(PAGE), at // PAGE * PAGE)


@pytest.mark.parametrize(
    ("page", "damage"),
    [
        (0, flipped),
        (2, zeroed),
        (9199, flipped),
        (IMAGE_PAGES - 1, zeroed),
        (1, flipped),
        (5000, flipped),
        (15000, flipped),
    ],
)
def test_each_page_is_compared(tmp_path: Path, page: int, damage: Callable[[int, int], None]) -> None:
    """Written ones, and holes that something came into."""
    path = tmp_path / "a.sus"
    replica, _ = begin(path)
    file = os.open(path, os.O_RDWR)
    damage(file, image_offset(path) + page * PAGE + 77)
    os.close(file)
    with pytest.raises(StoreCorrupt, match=rf"page {page} "):
        replica.finish_snapshot()
    replica.close()
    with pytest.raises(sustain.StoreError):
        sustain.open(path)


def test_runs_of_used_pages(tmp_path: Path) -> None:
    with sustain.create(tmp_path / "a.sus", size="8MiB", log_size="2MiB", durability="memory") as store:
        file = store.file("blob")
        for at in (0, 900_000, 3_000_000):
            file.pwrite(os.urandom(200_000), at)
        store.commit()
        store.checkpoint()
        log = LogTail(str(tmp_path / "a.sus"))
        pages, page = log.image_size() // PAGE, 0
        single: list[int] = []
        while (page := log.next_used_page(page)) < pages:
            single.append(page)
            page += 1
        runs: list[int] = []
        page = 0
        while (run := log.next_used_run(page, 16))[1]:
            assert 1 <= run[1] <= 16
            runs += range(run[0], sum(run))
            page = sum(run)
        assert runs == single
        assert len(single) > 150
        assert run == (pages, 0)
        log.close()
