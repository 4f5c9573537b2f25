"""Who maps a file: of real processes, and in a recorded tree."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sustain.errors import RegionIOError
from sustain.host import maps
from sustain.host.processes import child_faults

MAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 77                         /usr/bin/cat
7f0000000000-7f0000200000 rw-s 00100000 fe:00 42                         /srv/a region
7f0000200000-7f0000201000 r--s 00000000 fe:00 42                         /srv/a region (deleted)
7f0000300000-7f0000301000 rw-p 00000000 fe:00 42                         /srv/a region
7f0000400000-7f0000401000 rw-s 00000000 fe:01 42                         /other/device
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
"""
STAT = "{pid} (a (b) c) S 1 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0 0"


def tree(root: Path, pid: int, ticks: int, text: str | None) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(STAT.format(pid=pid, ticks=ticks))
    if text is not None:
        (folder / "maps").write_text(text)


def test_a_recorded_process(tmp_path: Path) -> None:
    tree(tmp_path, 10, 1234, MAPS)
    tree(tmp_path, 11, 1235, MAPS.replace("fe:00 42 ", "fe:00 420"))
    tree(tmp_path, 12, 1236, None)
    (tmp_path / "proc/self").mkdir()
    found = maps.mappers(b"fe:00 42", root=tmp_path)
    assert found.hidden == 1
    (mapper,) = found.found
    assert mapper.who == (10, 1234)
    assert mapper.writes
    assert mapper.mappings == (
        maps.Mapping(0x7F0000000000, 0x7F0000200000, 0x100000, writable=True, shared=True),
        maps.Mapping(0x7F0000200000, 0x7F0000201000, 0, writable=False, shared=True),
        maps.Mapping(0x7F0000300000, 0x7F0000301000, 0, writable=True, shared=False),
    )
    assert maps.mappers(b"fe:00 42", [12], root=tmp_path) == maps.Mappers((), 1)
    assert maps.mappings_of(10, b"fe:00 4", tmp_path) == ()


@pytest.mark.parametrize("folder", ["disk", "/dev/shm"])
def test_this_process(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "region" if folder == "disk" else Path(folder) / f"sustain-maps-{os.getpid()}"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    try:
        key = maps.key_of(path)
        assert maps.mappings_of(os.getpid(), key) == ()
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, offset=mmap.PAGESIZE) as view:
            path.unlink()  # a path is no identity
            (found,) = maps.mappings_of(os.getpid(), key) or ()
            assert (found.end - found.start, found.offset) == (len(view), mmap.PAGESIZE)
            assert found.writable
            assert found.shared
            assert os.getpid() in [each.who.pid for each in maps.mappers(key).found]
    finally:
        path.unlink(missing_ok=True)


def test_what_cannot_be_mapped_is_said(tmp_path: Path) -> None:
    with pytest.raises(RegionIOError, match="cannot be mapped"):
        maps.key_of(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(RegionIOError, match="cannot be mapped"):
        maps.key_of(tmp_path / "empty")


def test_a_process_that_has_gone() -> None:
    assert maps.mappings_of((1 << 22) + 1, b"fe:00 1") is None
    assert maps.mappers(b"fe:00 1", [(1 << 22) + 1]) == maps.Mappers((), 0)


def test_children_that_came_and_went_show_in_the_parent() -> None:
    before = child_faults(os.getpid())
    assert before is not None
    assert child_faults(os.getpid()) == before
    subprocess.run([sys.executable, "-c", ""], check=True)
    after = child_faults(os.getpid())
    assert after is not None
    assert after > before
    assert child_faults((1 << 22) + 1) is None


SMAPS = """7f0000000000-7f0010000000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me dc ac hg
7f0010000000-7f0020000000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me dc ac
7f0030000000-7f0038000000 rw-s 00000000 00:01 9 /memfd:memory-backend-memfd (deleted)
KernelPageSize:        4 kB
VmFlags: rd wr sh mr mw me ms dc
7f0040000000-7f0048000000 rw-s 00000000 00:0e 8 /dev/hugepages/guest ram
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms dc ht
7f0050000000-7f0051000000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me dc
7f0060000000-7f0080000000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac
"""


def test_the_ram_of_a_recorded_guest(tmp_path: Path) -> None:
    folder = tmp_path / "proc/5"
    folder.mkdir(parents=True)
    (folder / "smaps").write_text(SMAPS)
    anonymous, shared, large = (
        maps.Area(0x7F0000000000, 0x7F0020000000, "anonymous", ""),  # two areas of one block
        maps.Area(0x7F0030000000, 0x7F0038000000, "shared", "/memfd:memory-backend-memfd (deleted)"),
        maps.Area(0x7F0040000000, 0x7F0048000000, "hugetlb", "/dev/hugepages/guest ram"),
    )
    assert maps.guest_ram(5, root=tmp_path) == (anonymous, shared, large)
    assert maps.guest_ram(5, 512 << 20, tmp_path) == (anonymous,)
    assert maps.guest_ram(5, 768 << 20, tmp_path) == (anonymous, shared, large)
    assert maps.guest_ram(5, 100 << 20, tmp_path) == ()  # 16 MiB of video memory are not its RAM
