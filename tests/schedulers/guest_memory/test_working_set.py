"""Rises of what a guest uses: within a time, however often it is looked at. And counters that began anew."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.model import Policy
from tests.schedulers.guest_memory.plans import GIB, MIB, NOW_S, guest, observation

EVERY_S = (0.5, 2.0, 5.0, 10.0)
FALL_S = Policy().fall_s


def surge(every_s: float, use: Callable[[float], float], until_s: float = 60.0) -> float:
    """The largest rise of late, after looks that were answered at once, of a guest that at second t uses use(t) bytes
    of anonymous memory."""
    return largest_rise(
        every_s,
        lambda at_s: {"active_anonymous_bytes": use(at_s), "inactive_anonymous_bytes": GIB - use(at_s)},
        until_s,
    )


def largest_rise(every_s: float, told: Callable[[float], dict[str, Any]], until_s: float = 60.0) -> float:
    """The same, of one that at second t tells those figures."""
    state = None
    for number in range(int(until_s / every_s) + 1):
        at_s = number * every_s
        now_s = NOW_S + at_s
        one = guest(classes_at_s=now_s, **told(at_s))
        state = decide(observation(one, available=8 * GIB, at_s=now_s), state, Policy(), now_s).state
    assert state is not None
    (found,) = state.columns["surge_bytes"]
    return float(found)


@pytest.mark.parametrize("every_s", EVERY_S)
def test_an_even_rise_counts_for_ten_seconds_of_it(every_s: float) -> None:
    """And not for what lies between two answers. Seldom answers may make it half as much again."""
    per_s = 5 * MIB
    assert 0.98 <= surge(every_s, lambda at_s: per_s * at_s) / (Policy().rise_s * per_s) <= 1.6


@pytest.mark.parametrize("every_s", EVERY_S)
def test_a_sudden_rise_counts_in_full(every_s: float) -> None:
    assert surge(every_s, lambda at_s: 200 * MIB * (at_s >= 60)) == 200 * MIB


def test_what_goes_up_and_down_rises_by_its_height_only() -> None:
    assert surge(2.0, lambda at_s: 100 * MIB * (at_s // 2 % 2)) == pytest.approx(100 * MIB, rel=0.01)


def reads(at_s: float) -> dict[str, Any]:
    """After a minute 200 MiB that were free are full of buffers."""
    new = 200 * MIB * (at_s >= 60)
    return {"inactive_buffer_bytes": GIB + new, "free_bytes": GIB - new}


@pytest.mark.parametrize("every_s", EVERY_S)
def test_new_buffers_are_a_rise_though_nothing_of_them_is_active_yet(every_s: float) -> None:
    assert largest_rise(every_s, reads) == 200 * MIB


def test_a_balloon_that_deflates_by_itself_is_no_rise() -> None:
    """The guest's kernel then takes what is in it neither from the total nor from what is used."""

    def told(at_s: float) -> dict[str, Any]:
        size = 200 * MIB * (at_s >= 60)
        return {"balloon_bytes": 4 * GIB - size, "free_bytes": GIB - size}

    assert largest_rise(2.0, told) == 0


def test_who_does_not_tell_its_lists_rises_by_what_is_active() -> None:
    assert largest_rise(2.0, lambda at_s: reads(at_s) | {"inactive_anonymous_bytes": None}) == 0


def test_a_guest_that_reads_is_left_room_to_read_as_much_again() -> None:
    before = decide(observation(guest(**reads(0)), available=8 * GIB), None, Policy(), NOW_S)
    for second, room in ((10.0, 0.0), (60.0, 200 * MIB)):
        at_s = NOW_S + second
        seen = observation(guest(classes_at_s=at_s, **reads(second)), available=8 * GIB, at_s=at_s)
        found = decide(seen, before.state, Policy(), at_s).plan.guest("a")
        assert found.active_bytes is not None
        # A tenth of it is left to it anyway.
        assert found.needs_bytes == pytest.approx(found.active_bytes + max(room, 0.1 * found.active_bytes))


@pytest.mark.parametrize(("boot", "pressed"), [("one", True), ("two", False)])
def test_counters_of_another_boot_are_not_reckoned_with_those_before(boot: str, pressed: bool) -> None:
    """A guest that began anew has waited for longer since than it had before."""
    before = msgspec.structs.replace(guest(stall_us=1e6), boot="one")
    later_s = NOW_S + 10
    after = msgspec.structs.replace(guest(stall_us=4e6, classes_at_s=later_s), boot=boot)
    state = decide(observation(before, available=8 * GIB), None, Policy(), NOW_S).state
    seen = observation(after, available=8 * GIB, at_s=later_s)
    decision = decide(seen, state, Policy(), later_s)
    assert decision.plan.guest("a").pressed == pressed
    # And from then on they are.
    last_s = NOW_S + 20
    last = msgspec.structs.replace(guest(stall_us=6e6, classes_at_s=last_s), boot=boot)
    decision = decide(observation(last, available=8 * GIB, at_s=last_s), decision.state, Policy(), last_s)
    assert decision.plan.guest("a").stall == pytest.approx(0.2)


def states(waits: Callable[[float], bool], until_s: float, every_s: float = 5.0) -> list[dict[str, float]]:
    """What is remembered of a guest of which 512 MiB are active, after each look; one that waits does all the time."""
    state, found, stall_us = None, [], 0.0
    for number in range(int(until_s / every_s) + 1):
        now_s = NOW_S + number * every_s
        stall_us += 1e6 * every_s * waits(number * every_s)
        one = guest(
            classes_at_s=now_s,
            stall_us=stall_us,
            active_anonymous_bytes=256 * MIB,
            active_buffer_bytes=192 * MIB,
            unreclaimable_bytes=64 * MIB,
        )
        state = decide(observation(one, available=8 * GIB, at_s=now_s), state, Policy(), now_s).state
        found.append({name: float(column[0]) for name, column in state.columns.items()})
    return found


@pytest.mark.parametrize(
    ("times", "spared_s"),
    [
        ((), None),
        ((20.0,), 60.0),
        ((20.0, 60.0), 60.0),  # nothing was taken from it meanwhile
        ((20.0, 100.0), 120.0),
        ((20.0, 100.0, 240.0), 240.0),
        ((20.0, 100.0, 240.0, 500.0), FALL_S),
        ((20.0, 100.0, 110.0 + FALL_S), 60.0),  # by then it is forgotten
    ],
)
def test_who_waits_again_is_spared_for_longer(times: tuple[float, ...], spared_s: float | None) -> None:
    found = states(lambda at_s: any(each <= at_s < each + 10 for each in times), max((20.0, *times)) + 15)[-1]
    if spared_s is None:
        assert math.isnan(found["spared_s"])
    else:
        assert found["spared_s"] == spared_s


def test_the_lists_of_who_has_waited_are_believed_again() -> None:
    """Within the time for which it is spared, by which two thirds of what was doubted is forgotten."""
    found = states(lambda at_s: 20 <= at_s < 30, 400.0)
    before, waiting, later, last = (found[int(at_s / 5)] for at_s in (15, 25, 85, 400))
    assert before["measured_bytes"] == pytest.approx(512 * MIB)
    assert math.isnan(before["doubted_bytes"])
    all_of_it = waiting["doubted_bytes"]
    assert all_of_it > 2 * GIB
    assert waiting["measured_bytes"] == pytest.approx(512 * MIB)
    rest = (later["doubted_bytes"] - 512 * MIB) / (all_of_it - 512 * MIB)
    assert rest == pytest.approx(math.exp(-1), rel=0.01)
    assert last["doubted_bytes"] == pytest.approx(512 * MIB, rel=0.02)
