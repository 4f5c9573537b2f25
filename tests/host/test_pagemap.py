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
