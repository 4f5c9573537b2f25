"""process_madvise, and a census of pages before and after it, on a child that holds memory for us."""

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import madvise, maps, pagemap, processes, swaps
from sustain.host.madvise import Advice, Advisor
from sustain.host.pagemap import PAGE_BYTES, Pagemap
from sustain.host.processes import Identity, identify

MIB = 1 << 20

# 16 MiB of memory, aligned to 2 MiB and kept out of children, as QEMU's is; half of it large where that can be had.
HOLDER = """
import ctypes, mmap, sys
size, huge = 16 << 20, 2 << 20
view = mmap.mmap(-1, size + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(view))
start = -(-at // huge) * huge
libc = ctypes.CDLL(None)
assert libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), 10) == 0  # DONTFORK
libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size // 2), 14)  # HUGEPAGE
libc.madvise(ctypes.c_void_p(start + size // 2), ctypes.c_size_t(size // 2), 15)  # NOHUGEPAGE
for page in range(0, size - (4 << 20), 4096):
    view[start - at + page] = page // 4096 % 255 + 1
print(start, flush=True)
sys.stdin.readline()
print(all(view[start - at + page] == page // 4096 % 255 + 1 for page in range(0, size - (4 << 20), 4096)), flush=True)
sys.stdin.read()
"""


class Holder:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.start = int(self.process.stdout.readline())
        who = identify(self.process.pid)
        assert who is not None
        self.who = who

    def intact(self) -> bool:
        """Whether its memory still holds what it wrote; it touches all of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "True\n"


@pytest.fixture
def holder() -> Iterator[Holder]:
    held = Holder()
    yield held
    held.process.kill()
    held.process.communicate()


@pytest.fixture
def swap() -> Iterator[None]:
    """Swap for this test: what this machine has, or a zram device of our own."""
    if swaps.read().free_bytes >= 64 * MIB:
        yield
        return
    try:
        number = int(Path("/sys/class/zram-control/hot_add").read_text())
    except OSError:
        pytest.skip("this machine has no swap and lets us make none")
    device = Path(f"/dev/zram{number}")
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(64 * MIB))
        subprocess.run(["mkswap", "-q", str(device)], check=True)
        subprocess.run(["swapon", str(device)], check=True)
        try:
            yield
        finally:
            subprocess.run(["swapoff", str(device)], check=True)
    finally:
        Path("/sys/class/zram-control/hot_remove").write_text(str(number))


def census(held: Holder) -> pagemap.Census:
    table = Pagemap(held.who.pid)
    try:
        return table.census(held.start, held.start + 16 * MIB)
    finally:
        table.close()


def test_page_out_moves_pages_to_swap_and_willneed_back(holder: Holder, swap: None) -> None:
    before = census(holder)
    assert (before.present_bytes, before.swapped_bytes) == (12 * MIB, 0)
    with Advisor(holder.who) as advisor:
        out = advisor.advise([(holder.start + 8 * MIB, holder.start + 12 * MIB)], Advice.PAGEOUT)
        assert (out.taken_bytes, out.problem) == (4 * MIB, None)
        after = census(holder)
        assert after.swapped_bytes > 3 * MIB
        assert after.present_bytes + after.swapped_bytes == 12 * MIB
        assert all(start >= holder.start + 8 * MIB for start, _ in after.swapped)
        memory = processes.memory(holder.who.pid)
        assert memory is not None
        assert memory.swapped is not None
        assert memory.swapped >= after.swapped_bytes
        advisor.advise([(holder.start + 8 * MIB, holder.start + 12 * MIB)], Advice.WILLNEED)
    assert holder.intact()
    assert census(holder).present_bytes == 12 * MIB


def test_without_swap_page_out_says_yes_and_does_nothing(holder: Holder) -> None:
    if swaps.read().areas:
        pytest.skip("this machine has swap")
    with Advisor(holder.who) as advisor:
        out = advisor.advise([(holder.start, holder.start + 12 * MIB)], Advice.PAGEOUT)
    assert (out.taken_bytes, out.problem) == (12 * MIB, None)
    if not swaps.read().areas:  # somebody may have switched some on meanwhile
        assert census(holder).present_bytes == 12 * MIB


def test_large_pages_are_counted_and_split_by_cold(holder: Holder) -> None:
    before = census(holder)
    if not before.huge_bytes:
        pytest.skip("this machine gave no large pages, or cannot tell them")
    memory = processes.memory(holder.who.pid)
    assert memory is not None
    assert memory.huge == before.huge_bytes
    with Advisor(holder.who) as advisor:
        advisor.advise([(holder.start, holder.start + PAGE_BYTES)], Advice.COLD)
        after = census(holder)
        assert after.huge_bytes == before.huge_bytes - 2 * MIB
        advisor.advise([(holder.start, holder.start + 2 * MIB)], Advice.COLLAPSE)
    assert census(holder).huge_bytes == before.huge_bytes


def test_what_is_not_mapped_is_passed_over_and_said(holder: Holder) -> None:
    hole = 1 << 20  # below the lowest address that may be mapped by this program
    ranges = [(holder.start, holder.start + PAGE_BYTES), (hole, hole + PAGE_BYTES)]
    ranges += [
        (holder.start + at * PAGE_BYTES, holder.start + (at + 1) * PAGE_BYTES) for at in range(2, 2000)
    ]
    with Advisor(holder.who) as advisor:
        said = advisor.advise(ranges, Advice.COLD)
    assert said.taken_bytes == 1999 * PAGE_BYTES
    assert said.skipped_bytes == {errno.ENOMEM: PAGE_BYTES}
    assert "not mapped" in (said.problem or "")


def test_a_range_larger_than_one_call_takes() -> None:
    size = 5 << 30  # reserved, not used
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000) as view:  # NORESERVE
        start = int(__import__("numpy").frombuffer(view, "u1").ctypes.data)
        who = identify(os.getpid())
        assert who is not None
        with Advisor(who) as advisor:
            assert advisor.advise([(start, start + size)], Advice.COLD).taken_bytes == size


def test_a_process_that_has_gone_or_is_another(holder: Holder) -> None:
    with pytest.raises(HostError, match="No such process"):
        Advisor(Identity(holder.who.pid, holder.who.start_ticks + 1))
    with pytest.raises(HostError):
        Advisor(Identity((1 << 22) + 1, 1))
    with Advisor(holder.who) as advisor:
        holder.process.kill()
        holder.process.wait()
        with pytest.raises(HostError) as caught:
            advisor.advise([(holder.start, holder.start + PAGE_BYTES)], Advice.COLD)
    assert caught.value.errno == errno.ESRCH


def test_what_the_kernel_refuses_altogether(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(madvise, "_PROCESS_MADVISE", 4000)  # a call that no kernel has
    with Advisor(holder.who) as advisor, pytest.raises(HostError) as caught:
        advisor.advise([(holder.start, holder.start + PAGE_BYTES)], Advice.COLD)
    assert "5.10" in caught.value.hint


def test_the_ram_of_a_guest_is_found_among_other_memory(holder: Holder) -> None:
    (area,) = maps.guest_ram(holder.who.pid, 16 * MIB) or ()
    assert (area.start, area.size_bytes, area.backing) == (holder.start, 16 * MIB, "anonymous")
    assert maps.guest_ram(holder.who.pid) == ()  # nothing of 64 MiB
    assert maps.guest_ram(holder.who.pid, 1 << 30) == ()  # not enough
    assert maps.guest_ram((1 << 22) + 1) is None
