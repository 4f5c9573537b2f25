"""The bitmap of idle pages, in a made tree: who marks and looks is right about bits; what the kernel does with them is
the kernel's (a machine with the bitmap runs the last test)."""

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host import page_idle
from sustain.host.maps import Area

PRESENT = 1 << 63


class Tree:
    """A process whose page n of memory lies in frame 1000 + 3n, where it is present."""

    def __init__(self, root: Path, pages: int, absent: set[int]) -> None:
        self.root = root
        (root / "proc/5").mkdir(parents=True)
        (root / "sys/kernel/mm/page_idle").mkdir(parents=True)
        self.pagemap = root / "proc/5/pagemap"
        entries = [0 if n in absent else PRESENT | (1000 + 3 * n) for n in range(pages)]
        self.pagemap.write_bytes(np.array(entries, np.uint64).tobytes())
        self.bitmap = root / "sys/kernel/mm/page_idle/bitmap"
        self.bitmap.write_bytes(bytes(8 * ((1000 + 3 * pages) // 64 + 1)))

    def use(self, frame: int) -> None:
        """What the kernel does when a page is used."""
        bits = bytearray(self.bitmap.read_bytes())
        bits[frame // 8] &= ~(1 << frame % 8)
        self.bitmap.write_bytes(bytes(bits))

    def idle(self) -> set[int]:
        bits = np.unpackbits(np.frombuffer(self.bitmap.read_bytes(), np.uint8), bitorder="little")
        return set(np.flatnonzero(bits).tolist())


def area(first: int, last: int) -> Area:
    return Area(first * 4096, last * 4096, "anonymous", "")


def test_marked_used_moved_and_gone(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 100, absent={3, 4})
    assert page_idle.available(tmp_path)
    sample = page_idle.mark(5, (area(0, 10), area(50, 60)), 1000, 1, tmp_path)
    assert sample.drawn == 20
    expected = {1000 + 3 * n for n in (*range(10), *range(50, 60)) if n not in (3, 4)}
    assert tree.idle() == {frame for _, frame in sample.pages} == expected
    for n in (0, 1, 55):
        tree.use(1000 + 3 * n)
    entries = np.frombuffer(tree.pagemap.read_bytes(), np.uint64).copy()
    entries[5] = PRESENT | 7  # moved: whether it was used nobody knows
    entries[6] = 0  # gone
    tree.pagemap.write_bytes(entries.tobytes())
    assert page_idle.look(5, sample, tmp_path) == page_idle.Use(accessed=3, idle=13)


def test_a_sample_is_of_all_areas(tmp_path: Path) -> None:
    Tree(tmp_path, 3000, absent=set())
    sample = page_idle.mark(5, (area(0, 1000), area(2000, 3000)), 500, 7, tmp_path)
    assert len(sample.pages) == 500
    low = sum(address < 1000 * 4096 for address, _ in sample.pages)
    assert 180 < low < 320
    assert all(not 1000 <= address // 4096 < 2000 for address, _ in sample.pages)
    assert page_idle.mark(5, (area(0, 1000), area(2000, 3000)), 500, 7, tmp_path) == sample


def test_frames_that_are_hidden(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 10, absent=set())
    tree.pagemap.write_bytes(np.full(10, PRESENT, np.uint64).tobytes())
    with pytest.raises(HostError, match="hidden") as caught:
        page_idle.mark(5, (area(0, 10),), 5, 1, tmp_path)
    assert "root" in caught.value.hint


def test_none_here(tmp_path: Path) -> None:
    assert not page_idle.available(tmp_path)
    with pytest.raises(HostError):
        page_idle.mark(5, (area(0, 1),), 1, 1, tmp_path)


_OTHER = """
import sys
from pathlib import Path
from sustain.host.page_idle import Held
held = Held(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_counts_at_a_time_and_who_it_is_is_said(tmp_path: Path) -> None:
    Tree(tmp_path, 10, absent=set())
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(HostError, match="bitmap: another process counts by it") as caught:
            page_idle.Held(tmp_path)
        assert (caught.value.errno, caught.value.hint != "") == (errno.EBUSY, True)
        # As the kernel writes it, of this file: the pids of whoever holds it, and of one that waits.
        found = page_idle.path(tmp_path).stat()
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        (tmp_path / "proc/locks").write_text(
            f"1: POSIX  ADVISORY  WRITE 3 {place} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4 00:01:2 0 EOF\n"
            f"3: FLOCK  ADVISORY  WRITE {other.pid} {place} 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 6 {place} 0 EOF\n"
        )
        (tmp_path / f"proc/{other.pid}").mkdir()
        (tmp_path / f"proc/{other.pid}/comm").write_text("sustain\n")
        with pytest.raises(HostError, match=rf"bitmap: process {other.pid} \(sustain\) counts by it"):
            page_idle.Held(tmp_path)
        other.kill()  # whatever ends it
        other.wait()
        held = page_idle.Held(tmp_path)
        with pytest.raises(HostError, match="counts by it"):
            page_idle.Held(tmp_path)  # also another user in the same process
        held.close()
        held.close()
        page_idle.Held(tmp_path).close()


def test_the_kernel_tells_who_holds_it(tmp_path: Path) -> None:
    bitmap = page_idle.path(tmp_path)
    bitmap.parent.mkdir(parents=True)
    bitmap.touch()
    (tmp_path / "proc").symlink_to("/proc")
    assert page_idle.holder(tmp_path) == ""
    held = page_idle.Held(tmp_path)
    numbers = bitmap.stat()
    known = f":{numbers.st_ino} " in Path("/proc/locks").read_text()
    assert known, "this kernel tells no locks here"
    assert page_idle.holder(tmp_path).startswith(f"process {os.getpid()} (")
    held.close()
    assert page_idle.holder(tmp_path) == ""


def forget_translations() -> None:
    """Have the processor look up our pages anew: marking leaves its translations alone, and with one of before it does
    not set a page's accessed bit again. The kernel empties them when more than some dozen pages change their rights at
    once. A real processor soon forgets them by itself; an emulated one, not for a long time."""
    size = 256 * 4096
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as scratch:
        scratch.madvise(mmap.MADV_NOHUGEPAGE)
        scratch.write(bytes([1]) * size)
        at = ctypes.c_void_p(ctypes.addressof(byte := ctypes.c_char.from_buffer(scratch)))
        for rights in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            assert ctypes.CDLL(None).mprotect(at, ctypes.c_size_t(size), rights) == 0
        del byte  # else the memory cannot be given back


@pytest.mark.skipif(
    not page_idle.available(), reason="this kernel has no page_idle (CONFIG_IDLE_PAGE_TRACKING)"
)
def test_the_kernels_own() -> None:
    size = 512 * 4096
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        pages = np.frombuffer(memory, np.uint8)
        pages[::4096] = 1
        at = pages.ctypes.data
        sample = page_idle.mark(os.getpid(), (Area(at, at + size, "anonymous", ""),), 512, 1)
        forget_translations()
        pages[: size // 2 : 4096] = 2
        used = page_idle.look(os.getpid(), sample)
        del pages
    assert used.accessed + used.idle == 512
    assert used.accessed == 256


@pytest.mark.skipif(
    not page_idle.available(), reason="this kernel has no page_idle (CONFIG_IDLE_PAGE_TRACKING)"
)
def test_the_kernels_own_is_held_by_one() -> None:
    held = page_idle.Held()
    with pytest.raises(HostError, match=rf"process {os.getpid()} \(.+\) counts by it"):
        page_idle.Held()
    held.close()
    assert page_idle.holder() == ""
