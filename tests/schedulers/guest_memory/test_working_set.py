"""Rises of what a guest uses: within a time, however often it is looked at."""

from collections.abc import Callable

import pytest

from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.model import Policy
from tests.schedulers.guest_memory.plans import GIB, MIB, NOW_S, guest, observation

EVERY_S = (0.5, 2.0, 5.0, 10.0)


def surge(every_s: float, use: Callable[[float], float], until_s: float = 60.0) -> float:
    """The largest rise of late, after looks that were answered at once, of a guest that at second t uses use(t) bytes
    of anonymous memory."""
    state = None
    for number in range(int(until_s / every_s) + 1):
        at_s = number * every_s
        now_s = NOW_S + at_s
        one = guest(
            active_anonymous_bytes=use(at_s), inactive_anonymous_bytes=GIB - use(at_s), classes_at_s=now_s
        )
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
