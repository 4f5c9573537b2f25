"""The actuator on a real guest: its balloon and the host's memory, its pages and the host's swap."""

import base64
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.host.guest_agent import GuestAgent
from sustain.host.guest_frames import CHUNK_BYTES
from sustain.host.pagemap import Pagemap
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.handles import QemuHandle
from sustain.schedulers.guest_memory.model import Balloon, PageOut
from sustain.schedulers.journal import Journal
from tests.lab.guests import GuestVm, host_swap

pytestmark = pytest.mark.lab

MIB = 1 << 20
BUDDY = 1 << 10


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as opened:
        yield opened


def handle_of(guest: GuestVm) -> QemuHandle:
    config = GuestConfig(name=guest.name, qmp=str(guest.qmp_path), guest_agent=str(guest.agent_path))
    return QemuHandle(config, Path("/"), timeout_s=10.0, period_s=5)


def test_a_balloon_moves_memory_to_the_host_and_back(
    boot_guest: Callable[..., GuestVm], journal: Journal
) -> None:
    guest = boot_guest("balloon")
    guest.do("cache", 96 * MIB)
    handle = handle_of(guest)
    actuator = Actuator({guest.name: handle}, journal, limit_s=60)
    life = handle.life()
    assert life is not None
    size, before = guest.balloon_bytes(), guest.resident_bytes()
    action = Balloon(
        guest=guest.name, life=life, from_bytes=size, to_bytes=size - 128 * MIB, reason="the cache is old"
    )
    (effect,) = actuator.carry_out([action])
    assert effect.done, effect
    assert guest.balloon_bytes() == size - 128 * MIB
    assert effect.freed_bytes is not None
    assert effect.freed_bytes > 48 * MIB  # what was never used could not be freed
    assert abs((before - guest.resident_bytes()) - effect.freed_bytes) < 16 * MIB
    report = actuator.restore()
    assert [each.outcome for each in report.undone if each.entry.kind == "balloon"] == ["restored"]
    assert handle.balloon() is not None
    guest.do("anon", 64 * MIB)  # it has its memory again


def flags_of(guest: GuestVm, size_bytes: int) -> tuple[int, ...]:
    """All of the guest's frames, by its agent, in one piece and not by the code under test."""
    with GuestAgent(str(guest.agent_path), 30) as agent:
        handle = agent.ask("guest-file-open", path="/proc/kpageflags", mode="r")
        data = b""
        while len(data) < size_bytes // 4096 * 8:
            answer = agent.ask("guest-file-read", handle=handle, count=1 << 20)
            data += base64.b64decode(answer["buf-b64"])
            if answer["eof"]:
                break
        agent.ask("guest-file-close", handle=handle)
    return struct.unpack(f"<{len(data) // 8}Q", data)


def test_what_the_guest_calls_free_is_never_moved_to_swap(
    boot_guest: Callable[..., GuestVm], journal: Journal
) -> None:
    guest = boot_guest("pageout")
    size = guest.memory_mib * MIB
    guest.do("cache", 64 * MIB)
    guest.do("drop")  # free now, and still in the host's memory
    guest.do("anon", 80 * MIB)
    handle = handle_of(guest)
    life, who = handle.life(), handle.process()
    assert life is not None
    assert who is not None
    free_before = {frame for frame, flags in enumerate(flags_of(guest, size)) if flags & BUDDY}
    action = PageOut(guest=guest.name, life=life, amount_bytes=48 * MIB, reason="it is cold")
    with host_swap(256):
        (effect,) = Actuator({guest.name: handle}, journal, limit_s=120).carry_out([action])
        assert effect.done, effect
        assert effect.problem is None
        swapped = guest.swapped_bytes()
        assert abs(swapped - 48 * MIB) < 4 * MIB
        frames = handle.frames()
        assert frames is not None
        table = Pagemap(who.pid)
        moved: set[int] = set()
        for address in range(0, size, CHUNK_BYTES):
            place = frames.place(address)
            assert place is not None
            for start, end in table.census(place, place + CHUNK_BYTES).swapped:
                moved |= {(at - place + address) // 4096 for at in range(start, end, 4096)}
        table.close()
        assert len(moved) > 10_000
        assert len(free_before) > 10_000
        assert not moved & free_before
        assert guest.do("work") is not None  # the guest is alive
    assert guest.swapped_bytes() == 0
