"""process_madvise, and a census of pages before and after it, on a child that holds memory for us."""

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from sustain.errors import HostError
from sustain.host import madvise, maps, processes, swaps
from sustain.host.madvise import Advice, Advisor
from sustain.host.pagemap import PAGE_BYTES
from sustain.host.processes import Identity, identify
from tests.host.held import MIB, Holder, some_swap
from tests.host.swap import taking_turns


@pytest.fixture
def holder() -> Iterator[Holder]:
    with Holder(16 * MIB) as held:
        yield held


def test_page_out_moves_pages_to_swap_and_willneed_back(holder: Holder) -> None:
    with some_swap():
        before = holder.census()
        assert (before.present_bytes, before.swapped_bytes) == (12 * MIB, 0)
        with Advisor(holder.who) as advisor:
            out = advisor.advise([(holder.start + 8 * MIB, holder.start + 12 * MIB)], Advice.PAGEOUT)
            assert (out.taken_bytes, out.problem) == (4 * MIB, None)
            after = holder.census()
            assert after.swapped_bytes > 3 * MIB
            assert after.present_bytes + after.swapped_bytes == 12 * MIB
            assert all(start >= holder.start + 8 * MIB for start, _ in after.swapped)
            memory = processes.memory(holder.who.pid)
            assert memory is not None
            assert memory.swapped is not None
            assert memory.swapped >= after.swapped_bytes
            advisor.advise([(holder.start + 8 * MIB, holder.start + 12 * MIB)], Advice.WILLNEED)
        assert holder.touch()
        assert holder.census().present_bytes == 12 * MIB


def test_without_swap_page_out_says_yes_and_does_nothing(holder: Holder) -> None:
    with taking_turns():
        if swaps.read().areas:
            pytest.skip("this machine has swap")
        with Advisor(holder.who) as advisor:
            out = advisor.advise([(holder.start, holder.start + 12 * MIB)], Advice.PAGEOUT)
        assert (out.taken_bytes, out.problem) == (12 * MIB, None)
        assert holder.census().present_bytes == 12 * MIB


def test_large_pages_are_counted_and_split_by_cold(holder: Holder) -> None:
    before = holder.census()
    if not before.huge_bytes:
        pytest.skip("this machine gave no large pages, or cannot tell them")
    memory = processes.memory(holder.who.pid)
    assert memory is not None
    assert memory.huge == before.huge_bytes
    with Advisor(holder.who) as advisor:
        advisor.advise([(holder.start, holder.start + PAGE_BYTES)], Advice.COLD)
        after = holder.census()
        assert after.huge_bytes == before.huge_bytes - 2 * MIB
        advisor.advise([(holder.start, holder.start + 2 * MIB)], Advice.COLLAPSE)
    assert holder.census().huge_bytes == before.huge_bytes


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


def test_without_memory_for_it_batches_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", none)
    madvise.empty_batches()
