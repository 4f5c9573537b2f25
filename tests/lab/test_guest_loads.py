"""What the benchmark on real guests reckons with: loads that keep their pace, guests that begin from a saved one, a
host that is just so large, and pages that a guest calls free and the host has swapped."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bench.guests import (
    Case,
    Driver,
    Script,
    _frames,
    before_others,
    free_and_swapped_bytes,
    run,
    saved_guest,
)

from sustain.schedulers.guest_memory.model import Action, Balloon, Effect, Observation, Policy
from tests.lab.guests import GuestVm, Images, boot, host_swap, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def saved(guest_images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with saved_guest(guest_images, tmp_path_factory.mktemp("saved")) as path:
        yield path


def begun(name: str, images: Images, saved: Path, **options: object) -> GuestVm:
    return GuestVm(name, images, memory_mib=256, swap_mib=192, saved=saved, **options)  # type: ignore[arg-type]


def test_a_paced_load_does_no_more_and_a_killed_one_is_begun_again(guest_images: Images, saved: Path) -> None:
    paced, killed = begun("paced", guest_images, saved), GuestVm("killed", guest_images)  # without swap
    with before_others(), boot(paced, killed):
        # What the boot has touched and freed went back before it was saved.
        assert 0 < paced.resident_bytes() < killed.resident_bytes()
        drivers = [
            Driver(paced, Script(2000, ((0.5, "seek", 4 * MIB),)), 4.5),
            # More than it has: its kernel kills the workload.
            Driver(killed, Script(2000, ((0.0, "busy", 4 * MIB), (1.0, "anon", 200 * MIB), (3.0, "anon", 0))), 4.0),
        ]  # fmt: skip
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join(200)
            assert driver.died is None
            assert not driver.is_alive()
        assert drivers[0].killed == 0
        assert 2000 <= drivers[0].pages <= 2000 * 4.5
        assert drivers[1].killed >= 1
        assert killed.do("anon", 0) == ""  # commands and answers belong together again
        assert int(killed.do("work")) >= 0


def test_what_the_host_swaps_of_free_memory_is_counted(guest_images: Images, saved: Path) -> None:
    guest = begun("counted", guest_images, saved)
    with host_swap(512), boot(guest):
        frames = _frames(guest)
        guest.do("anon", 100 * MIB)
        assert free_and_swapped_bytes(guest, frames) == 0
        guest.do("anon", 0)
        guest.page_out()  # blindly
        until(lambda: guest.swapped_bytes() > 100 * MIB)
        found = free_and_swapped_bytes(guest, frames)
        # What the guest's processor keeps at hand, and what it has taken again for what was asked, is not among it.
        assert 80 * MIB < found <= guest.swapped_bytes() + 4 * MIB
        guest.do("anon", 100 * MIB)
        assert free_and_swapped_bytes(guest, frames) < found - 40 * MIB


class Shrink:
    """A policy that takes once, and gives back."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def plan(self, seen: Observation, effects: Sequence[Effect]) -> Sequence[Action]:
        self.seen.append(seen)
        made = []
        for guest in seen.guests:
            now = guest.figures.balloon_bytes
            if now is not None and guest.figures.free_bytes is not None:
                to = 192.0 * MIB if now == 256 * MIB else 256.0 * MIB
                life = guest.life
                made.append(
                    Balloon(guest=guest.name, life=life, from_bytes=now, to_bytes=to, reason="a test")
                )
        return made


def test_a_run_under_a_policy_is_accounted_for(guest_images: Images, saved: Path, tmp_path: Path) -> None:
    case = Case(
        scripts={"taken": Script(2000, ((0.0, "anon", 120 * MIB), (0.0, "busy", 8 * MIB), (0.5, "anon", 0)))},
        total_bytes=160 * MIB,
        goal_bytes=32 * MIB,
        seconds=5.0,
        period_s=1.0,
    )
    policy, shrink = Policy(goal_free_bytes=case.goal_bytes), Shrink()
    begun_s = time.monotonic()
    ran = run(case, guest_images, saved, tmp_path, policy, shrink)
    assert time.monotonic() - begun_s < 60
    assert all(guest.source == "balloon" for seen in shrink.seen[1:] for guest in seen.guests)
    assert 0 < ran.pages["taken"] <= 2000 * 8
    assert 60 * MIB < ran.held_bytes < 200 * MIB
    assert ran.ticks >= 3
    assert ran.swings >= 1
    assert ran.balloons["taken"][:2] == [192, 256]
    assert ran.killed == 0
    assert 0 < ran.tick_s < 0.5
    if ran.limited:
        assert ran.host_swapped_bytes > 0  # it held more than there is room for
