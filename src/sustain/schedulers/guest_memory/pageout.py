"""Moving a guest's coldest memory to the host's swap by `process_madvise`, and looking at what came of it.

Used by `act`, one `Pager` for each life of a guest, from one thread at a time. A hand goes around the guest's memory.
Where the guest can be asked (`host.guest_frames`), only frames go that it holds to be anonymous and inactive; what it
calls free, uses or could simply drop is never touched, and when it does not answer any more, nothing is. What a guest
that never answered calls free the host cannot know, and the result says so.

A block of which much has come back since it was moved is in use, and is left alone for a number of rounds that doubles
each time: what is hot is found out by trying it once. A block that is mapped large is only split when most of it goes.
The kernel promises nothing (without swap it says that all went well), so what is reported are pages counted before and
after. Rejected: whole ranges in the order of addresses, as host swappers do it to guests: free pages, and hot ones
again and again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sustain.errors import HostError
from sustain.host import maps, swaps
from sustain.host.guest_frames import CHUNK_BYTES
from sustain.host.madvise import Advice, Advisor
from sustain.host.pagemap import Census, Pagemap, Run
from sustain.host.processes import Identity

BLOCK_BYTES = 2 << 20  # what a host maps large
PAGE_BYTES = 4096
_SPLIT_SHARE = 0.5  # of a block mapped large that must go for it to be split
_HOT_SHARE = 0.25  # of what was moved of a block and has come back: it is in use
_MOST_ROUNDS = 64
_TRIED_BYTES = 4 * CHUNK_BYTES  # in vain
_SPARED_SWAP = 1 / 16  # of the host's swap is left to others

_UNASKED = "which of it the guest calls free is not known: "
_ASKED = "the guest has no more memory that is anonymous, inactive, and in the host's memory"
_BLIND = "the rest comes back when it is moved, is not in memory, or is in swap already"


class Frames(Protocol):
    """`host.guest_frames.GuestFrames`, as it is used here."""

    @property
    def end_bytes(self) -> int: ...

    def place(self, address: int) -> int | None: ...

    def inactive_anonymous(self, address: int) -> list[Run]: ...


@dataclass(frozen=True, slots=True)
class PagedOut:
    """What was seen. Bytes."""

    freed_bytes: int  # of the host's memory
    moved_bytes: int  # to swap
    problem: str | None  # why it was less, or what is not known of it


class Pager:
    """The memory of one guest's process."""

    def __init__(self, who: Identity, frames: Frames | None = None, root: Path = Path("/")) -> None:
        """Raises HostError when the guest's RAM is not found in its process, or cannot be swapped."""
        areas = maps.guest_ram(who.pid, root=root)
        if not areas:
            raise HostError(
                f"process {who.pid}: no RAM of a guest found in it", hint="is it QEMU, with 64 MiB or more?"
            )
        if any(each.backing in ("hugetlb", "file") for each in areas):
            raise HostError(
                f"process {who.pid}: its guest's RAM is a file or in reserved huge pages, which are not swapped",
                hint="use its balloon, or start it with ordinary memory",
            )
        self.who = who
        self._areas = areas
        self._root = root
        self._frames = frames
        self._answered = False
        self._hand = 0
        self._habits = _Habits()

    def page_out(self, amount_bytes: int, go_on: Callable[[], bool] = lambda: True) -> PagedOut:
        """Move about that much, within one round; ends early when `go_on` says so. Raises HostError."""
        before = swaps.read(self._root)
        if not before.areas:
            return PagedOut(0, 0, "this host has no swap, so nothing can be moved there")
        room_bytes = int(before.free_bytes - before.total_bytes * _SPARED_SWAP)
        if room_bytes < BLOCK_BYTES:
            return PagedOut(0, 0, f"the host's swap is full: {before.free_bytes} bytes are left")
        unasked = self._unasked()
        left_bytes = min(amount_bytes, room_bytes)
        freed = moved = tried = 0
        refused: str | None = None
        table = Pagemap(self.who.pid, self._root)
        try:
            with Advisor(self.who) as advisor:
                for start, end, runs in self._chunks(None if unasked else self._frames):
                    here = table.census(start, end)
                    chosen = _first(self._choose(_overlap(runs, here.present), here, table), left_bytes)
                    if chosen:
                        refused = advisor.advise(chosen, Advice.PAGEOUT).problem or refused
                        after = table.census(start, end)
                        gone = here.present_bytes - after.present_bytes
                        went = max(
                            0, gone if self._shared(start) else after.swapped_bytes - here.swapped_bytes
                        )
                        freed, moved, left_bytes = freed + gone, moved + went, left_bytes - went
                        tried += sum(until - begin for begin, until in chosen)
                        self._habits.moved(chosen)  # what did not go counts as come back
                    if tried >= _TRIED_BYTES and not moved:
                        refused = refused or "the kernel moves none of it; is swap forbidden to its cgroup?"
                        break
                    if left_bytes < PAGE_BYTES or not go_on():
                        break
        finally:
            table.close()
        growth = _compressed(swaps.read(self._root)) - _compressed(before)
        freed -= max(0, min(growth, moved))  # swap that lies in memory itself
        problem = None if unasked is None else _UNASKED + unasked
        if left_bytes >= max(PAGE_BYTES, min(amount_bytes, room_bytes) // 10):
            why = refused or (_BLIND if unasked else _ASKED)
            problem = f"{moved} bytes of {amount_bytes} went to swap: {why}" + (
                f"; {problem}" if problem else ""
            )
        elif amount_bytes > room_bytes:
            problem = f"{moved} bytes of {amount_bytes} went to swap, which had no room for more"
        return PagedOut(freed, moved, problem)

    def _unasked(self) -> str | None:
        """Why the guest cannot be asked for its frames; None: it can. Raises HostError when it could, and does not
        answer now."""
        if self._frames is None:
            return "there is no way to ask it"
        if not self._answered:
            try:
                self._frames.inactive_anonymous(0)
            except HostError as error:
                return str(error)
            self._answered = True
        return None

    def _chunks(self, frames: Frames | None) -> Iterator[tuple[int, int, list[Run]]]:
        """One round, from where the last one ended: host addresses, and the runs in them that might go."""
        if frames is None:
            places = [
                (at, min(at + CHUNK_BYTES, area.end))
                for area in self._areas
                for at in range(area.start, area.end, CHUNK_BYTES)
            ]
            for _ in places:
                start, end = places[self._hand % len(places)]
                self._hand += 1
                yield start, end, [(start, end)]
            return
        count = -(-frames.end_bytes // CHUNK_BYTES)
        for _ in range(count):
            address = self._hand % count * CHUNK_BYTES
            self._hand += 1
            place = frames.place(address)
            if place is None or not self._holds(place, place + CHUNK_BYTES):
                continue
            away = place - address
            runs = [(begin + away, end + away) for begin, end in frames.inactive_anonymous(address)]
            yield place, place + CHUNK_BYTES, runs

    def _shared(self, address: int) -> bool:
        """Whether it lies in shared memory, of which the page tables do not show what is in swap."""
        return any(each.start <= address < each.end and each.backing == "shared" for each in self._areas)

    def _holds(self, start: int, end: int) -> bool:
        return any(each.start <= start and end <= each.end for each in self._areas)

    def _choose(self, runs: list[Run], here: Census, table: Pagemap) -> list[Run]:
        """Without the blocks that are in use, and those that are mapped large and would be split for little."""
        found: list[Run] = []
        for block, parts in _by_block(runs).items():
            if self._habits.in_use(block, table):
                continue
            size = sum(end - start for start, end in parts)
            large = here.huge_bytes and table.census(block, block + BLOCK_BYTES).huge_bytes
            if not large or size >= BLOCK_BYTES * _SPLIT_SHARE:
                found.extend(parts)
        return found


class _Habits:
    """Which blocks are in use, by what came back of them."""

    def __init__(self) -> None:
        self._out: dict[int, list[Run]] = {}  # block → what was moved of it
        self._rest: dict[int, tuple[int, int]] = {}  # block → (rounds left, rounds the next time)

    def moved(self, runs: Iterable[Run]) -> None:
        for block, parts in _by_block(runs).items():
            self._out.setdefault(block, []).extend(parts)

    def in_use(self, block: int, table: Pagemap) -> bool:
        """Asked once a round."""
        left, following = self._rest.get(block, (0, 1))
        parts = self._out.pop(block, [])
        out = sum(end - start for start, end in parts)
        back = sum(table.census(start, end).present_bytes for start, end in parts)
        if parts and back > out * _HOT_SHARE:
            left, following = following, min(2 * following, _MOST_ROUNDS)
        elif parts:
            self._out[block] = parts  # it stayed cold
        if left:
            self._rest[block] = (left - 1, following)
        return left > 0


def _by_block(runs: Iterable[Run]) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for start, end in runs:
        at = start
        while at < end:
            block = at // BLOCK_BYTES * BLOCK_BYTES
            until = min(end, block + BLOCK_BYTES)
            found.setdefault(block, []).append((at, until))
            at = until
    return found


def _overlap(runs: Iterable[Run], others: Iterable[Run]) -> list[Run]:
    """What is in both; each in the order of addresses."""
    found: list[Run] = []
    rest = list(others)
    at = 0
    for start, end in runs:
        while at < len(rest) and rest[at][1] <= start:
            at += 1
        for begin, until in rest[at:]:
            if begin >= end:
                break
            found.append((max(start, begin), min(end, until)))
    return found


def _first(runs: list[Run], most_bytes: int) -> list[Run]:
    found: list[Run] = []
    for start, end in runs:
        if most_bytes < PAGE_BYTES:
            break
        until = min(end, start + most_bytes // PAGE_BYTES * PAGE_BYTES)
        found.append((start, until))
        most_bytes -= until - start
    return found


def _compressed(now: swaps.Swaps) -> int:
    return sum(each.zram.memory_bytes or 0 for each in now.areas if each.zram)
