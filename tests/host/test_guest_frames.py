"""The flags of a guest's frames: what is chosen by them, how they are asked for, and what this kernel says of ours."""

import base64
import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host.guest_frames import CHUNK_BYTES, FRAME_BYTES, GuestFrames, free, inactive_anonymous, large

LRU, ANON, ACTIVE, REFERENCED, BUDDY, HEAD, TAIL, BALLOON = (
    1 << bit for bit in (5, 12, 6, 2, 10, 15, 16, 23)
)
COLD = LRU | ANON


def chosen(*flags: int) -> list[tuple[int, int]]:
    return inactive_anonymous(np.array(flags, np.uint64))


def test_only_inactive_anonymous_frames_are_chosen() -> None:
    assert chosen(COLD, COLD, BUDDY, COLD | ACTIVE, LRU, COLD | REFERENCED, ANON, BALLOON, 0, COLD) == [
        (0, 2),
        (9, 10),
    ]
    assert chosen() == []
    assert chosen(COLD | BUDDY) == []  # whatever else it says: never what is free


def test_pages_of_a_large_one_are_what_its_head_is() -> None:
    assert chosen(COLD | HEAD, TAIL, TAIL, BUDDY) == [(0, 3)]  # before Linux 6.9
    assert chosen(COLD | HEAD, COLD | TAIL, COLD | TAIL) == [(0, 3)]
    assert chosen(COLD | HEAD | ACTIVE, TAIL, TAIL, COLD) == [(3, 4)]
    assert chosen(TAIL, TAIL) == []  # without a head nothing is known


def test_frames_in_large_pages() -> None:
    thp, head, tail = 1 << 22, 1 << 15, 1 << 16
    flags = np.array([0, head, tail, thp | head, thp | tail, thp | tail, 0, thp], np.uint64)
    assert large(flags) == [(3, 6), (7, 8)]


def test_free_frames_are_those_that_the_buddy_allocator_has() -> None:
    assert free(np.array([BUDDY, BUDDY, COLD, 0, BALLOON, BUDDY], np.uint64)) == [(0, 2), (5, 6)]
    assert free(np.array([], np.uint64)) == []


class MadeUp:
    """A guest agent that has kpageflags of so many frames, and a monitor with a hole from the second chunk on."""

    def __init__(self, flags: list[int]) -> None:
        self.data = struct.pack(f"<{len(flags)}Q", *flags)
        self.at = 0
        self.open = 0
        self.asked: list[str] = []
        self.garbage = False

    def ask(self, command: str, **arguments: Any) -> Any:
        match command:
            case "guest-file-open":
                assert arguments == {"path": "/proc/kpageflags", "mode": "r"}
                self.open += 1
                return 1
            case "guest-file-seek":
                self.at = arguments["offset"]
                return {"position": self.at, "eof": False}
            case "guest-file-read":
                if self.garbage:
                    return {"buf-b64": "?", "eof": False}
                piece = self.data[self.at :][: min(arguments["count"], 4096)]  # less than was asked for
                self.at += len(piece)
                return {"count": len(piece), "buf-b64": base64.b64encode(piece).decode(), "eof": not piece}
            case "guest-file-close":
                self.open -= 1
                return {}
            case "human-monitor-command":
                line = arguments["command-line"]
                self.asked.append(line)
                address = int(line.split()[1], 16)
                if address < CHUNK_BYTES:
                    return (
                        f"Host virtual address for {address:#x} (pc.ram) is {0x7F0000000000 + address:#x}\r\n"
                    )
                return f"No memory is mapped at address {address:#x}\r\n"
        raise AssertionError(command)


@contextlib.contextmanager
def of(made_up: MadeUp) -> Iterator[MadeUp]:
    yield made_up


def test_frames_are_asked_for_chunk_by_chunk() -> None:
    count = CHUNK_BYTES // FRAME_BYTES
    guest = MadeUp([BUDDY] * count + [0] * 7 + [COLD] * 3)
    frames = GuestFrames(64 << 20, lambda: of(guest), lambda: of(guest))
    assert frames.inactive_anonymous(0) == []
    assert frames.free(0) == [(0, CHUNK_BYTES)]
    begin = CHUNK_BYTES + 7 * FRAME_BYTES
    assert frames.inactive_anonymous(CHUNK_BYTES) == [(begin, begin + 3 * FRAME_BYTES)]
    assert frames.inactive_anonymous(2 * CHUNK_BYTES) == []  # beyond the end
    guest.garbage = True
    with pytest.raises(HostError, match="no piece of a file"):
        frames.inactive_anonymous(0)
    assert guest.open == 0


def test_where_a_chunk_lies_is_asked_once() -> None:
    guest = MadeUp([])
    frames = GuestFrames(3 << 30, lambda: of(guest), lambda: of(guest))
    assert frames.end_bytes == 5 << 30  # RAM may lie beyond the hole below 4 GiB
    assert frames.place(0) == frames.place(0) == 0x7F0000000000
    assert frames.place(CHUNK_BYTES) is None
    assert len(guest.asked) == 4


def test_this_kernels_own_flags_of_our_own_page() -> None:
    """What the bits mean is checked where it can be: a page that we have just written is anonymous, and not free."""
    with mmap.mmap(-1, FRAME_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        with Path("/proc/self/pagemap").open("rb") as file:
            file.seek(at // FRAME_BYTES * 8)
            frame = int.from_bytes(file.read(8), "little") & ((1 << 55) - 1)
        if os.geteuid() != 0 or frame == 0:
            pytest.skip("frames are only shown to root")
        with Path("/proc/kpageflags").open("rb", buffering=0) as file:
            file.seek(frame * 8)
            flags = int.from_bytes(file.read(8), "little")
    assert flags & ANON
    assert not flags & BUDDY
