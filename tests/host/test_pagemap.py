"""PAGEMAP_SCAN and soft-dirty bits, of this process and in a recorded file."""

import ctypes
import mmap
import os
import struct
from pathlib import Path

import pytest

from sustain.errors import RegionIOError
from sustain.host import pagemap
from sustain.host.pagemap import PAGE_BYTES, NotRegistered, Pagemap

_PRESENT, _SOFT_DIRTY, _SWAPPED = 1 << 63, 1 << 55, 1 << 62


def recorded(root: Path, entries: list[int]) -> Pagemap:
    folder = root / "proc/7"
    folder.mkdir(parents=True)
    (folder / "pagemap").write_bytes(struct.pack(f"<{len(entries)}Q", *entries))
    (folder / "clear_refs").write_text("")
    return Pagemap(7, root)


def test_soft_dirty_pages_and_those_that_are_not_mapped(tmp_path: Path) -> None:
    clean, dirty = _PRESENT, _PRESENT | _SOFT_DIRTY
    table = recorded(tmp_path, [dirty, clean, dirty, dirty, 0, clean, _SWAPPED, _SWAPPED | _SOFT_DIRTY])
    runs = table.soft_dirty(1 * PAGE_BYTES, 8 * PAGE_BYTES)
    assert runs == [(2 * PAGE_BYTES, 5 * PAGE_BYTES), (7 * PAGE_BYTES, 8 * PAGE_BYTES)]
    assert table.soft_dirty(PAGE_BYTES, 2 * PAGE_BYTES) == []
    table.clear_soft_dirty()
    assert (tmp_path / "proc/7/clear_refs").read_text() == "4"
    with pytest.raises(RegionIOError, match="gone"):
        table.soft_dirty(0, 9 * PAGE_BYTES)
    table.close()


def test_runs_go_on_over_the_borders_of_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagemap, "_CHUNK_PAGES", 3)
    table = recorded(tmp_path, [_PRESENT | _SOFT_DIRTY] * 7 + [_PRESENT] * 2)
    assert table.soft_dirty(0, 9 * PAGE_BYTES) == [(0, 7 * PAGE_BYTES)]
    table.close()


def test_memory_that_is_not_registered_is_told_from_a_kernel_without_the_call(tmp_path: Path) -> None:
    if not pagemap.has_scan():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    with mmap.mmap(-1, PAGE_BYTES) as page:
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        table = Pagemap(os.getpid())
        with pytest.raises(NotRegistered):
            table.written(at, at + PAGE_BYTES, protect=True)
        table.close()
    table = recorded(tmp_path, [0])
    with pytest.raises(RegionIOError) as caught:  # a plain file knows no such call
        table.written(0, PAGE_BYTES, protect=False)
    assert not isinstance(caught.value, NotRegistered)
    table.close()


def test_a_process_that_is_not_there() -> None:
    with pytest.raises(RegionIOError, match="pagemap"):
        Pagemap((1 << 22) + 1)


def test_a_census_of_entries_on_kernels_without_the_call(tmp_path: Path) -> None:
    of_file = 1 << 61
    entries = [0, _PRESENT | 5, _PRESENT | 9, _SWAPPED, _PRESENT | of_file, 0, _SWAPPED | of_file]
    table = recorded(tmp_path, entries)
    found = table.census(0, len(entries) * PAGE_BYTES)
    assert found == pagemap.Census(
        present_bytes=3 * PAGE_BYTES,
        swapped_bytes=2 * PAGE_BYTES,
        file_bytes=PAGE_BYTES,
        huge_bytes=None,
        zero_bytes=None,
        present=((PAGE_BYTES, 3 * PAGE_BYTES), (4 * PAGE_BYTES, 5 * PAGE_BYTES)),
        swapped=((3 * PAGE_BYTES, 4 * PAGE_BYTES), (6 * PAGE_BYTES, 7 * PAGE_BYTES)),
    )
    with pytest.raises(RegionIOError, match="gone"):
        table.census(0, 100 * PAGE_BYTES)
    table.close()


def test_both_ways_of_a_census_agree() -> None:
    with mmap.mmap(-1, 64 * PAGE_BYTES) as view:
        for page in (*range(3, 9), 20, 63):
            view[page * PAGE_BYTES] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        end = start + 64 * PAGE_BYTES
        table = Pagemap(os.getpid())
        scanned = table.census(start, end)
        assert scanned.present_bytes == scanned.file_bytes == 8 * PAGE_BYTES  # a shared mapping
        assert scanned.present[0] == (start + 3 * PAGE_BYTES, start + 9 * PAGE_BYTES)
        parts = list(table._entries(start, end))
        assert sum(until - begin for begin, until, _ in parts) == scanned.present_bytes
        table.close()


def test_many_runs_before_an_empty_stretch_are_told_once() -> None:
    size, used = 16 << 20, 12 << 20
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as view:
        view.madvise(mmap.MADV_NOHUGEPAGE)
        pages = range(0, used, 2 * PAGE_BYTES)
        for page in pages:
            view[page] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        table = Pagemap(os.getpid())
        found = table.census(start, start + size)
        assert found.present == tuple((start + page, start + page + PAGE_BYTES) for page in pages)
        assert found.present_bytes == len(pages) * PAGE_BYTES
        table.close()


def test_blocks_are_counted_and_large_ones_known() -> None:
    if not pagemap.has_scan():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    block = pagemap.BLOCK_BYTES
    with mmap.mmap(-1, 6 * block, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as view:
        at = ctypes.addressof(ctypes.c_char.from_buffer(view))
        start = -(-at // block) * block
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(5 * block), 15)  # NOHUGEPAGE
        for number, pages in enumerate((0, 512, 1, 200, 300)):
            for page in range(pages):
                view[start - at + number * block + (page * 3 % 512) * PAGE_BYTES] = 1
        first = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(2 * block), 14)  # HUGEPAGE
        collapsed = (
            first == 0 and libc.madvise(ctypes.c_void_p(start + block), ctypes.c_size_t(block), 25) == 0
        )
        table = Pagemap(os.getpid())
        try:
            found = table.blocks(start, start + 5 * block)
            none = table.blocks(start, start)
        finally:
            table.close()
    assert found.start == start
    assert found.present.tolist() == [0, 512, 1, 200, 300]
    assert found.huge.tolist() == [False, collapsed, False, False, False]
    assert len(none.present) == 0


def test_blocks_over_the_borders_of_what_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if not pagemap.has_scan():
        pytest.skip("this kernel has no PAGEMAP_SCAN")
    monkeypatch.setattr(pagemap, "_CHUNK_BLOCKS", 2)
    monkeypatch.setattr(pagemap, "_RUNS", 100)  # of the kernel's answers too
    test_blocks_are_counted_and_large_ones_known()


def test_blocks_without_a_scan_are_refused(tmp_path: Path) -> None:
    table = recorded(tmp_path, [_PRESENT] * 1024)
    with pytest.raises(RegionIOError, match="not known") as caught:
        table.blocks(0, pagemap.BLOCK_BYTES)
    assert "6.7" in caught.value.hint
    table.close()


def test_frames(tmp_path: Path) -> None:
    table = recorded(tmp_path, [_PRESENT | 77, _SWAPPED | 5, 0, _PRESENT | _SOFT_DIRTY | 3])
    assert pagemap.frame_of(table.entries(0, 4 * PAGE_BYTES)).tolist() == [77, 0, 0, 3]
    table.close()
