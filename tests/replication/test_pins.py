"""How far the log is kept, for whom, and how long a destination waits before it tries again."""

import random

from hypothesis import given
from hypothesis import strategies as st

from sustain.replication.pins import UNKNOWN, Backoff, Pin, Verdict, decide_pins

PINS = st.lists(
    st.builds(Pin, st.integers(0, 15), st.integers(0, 2000), st.booleans()),
    unique_by=lambda pin: pin.slot,
    max_size=16,
)


def test_nobody_pins() -> None:
    assert decide_pins([], 1000, 1000, 0.75) == Verdict(UNKNOWN, ())


def test_one_that_moves_is_kept_however_far_behind() -> None:
    assert decide_pins([Pin(0, 0, True)], 1000, 1000, 0.75) == Verdict(0, ())


def test_one_that_does_not_move_is_kept_up_to_the_limit() -> None:
    assert decide_pins([Pin(0, 250, False)], 1000, 1000, 0.75) == Verdict(250, ())
    assert decide_pins([Pin(0, 249, False)], 1000, 1000, 0.75) == Verdict(UNKNOWN, (0,))


@given(PINS, st.integers(0, 2000))
def test_the_floor_is_what_the_kept_need(pins: list[Pin], committed: int) -> None:
    verdict = decide_pins(pins, committed, 1000, 0.75)
    kept = [pin for pin in pins if pin.slot not in verdict.dropped]
    assert verdict.floor == min((pin.lsn for pin in kept), default=UNKNOWN)
    for pin in pins:
        assert (pin.slot in verdict.dropped) == (not pin.moving and committed - pin.lsn > 750)


@given(st.integers(0, 2**32), st.lists(st.booleans(), max_size=30))
def test_backoff_doubles_within_bounds_and_begins_again(seed: int, resets: list[bool]) -> None:
    backoff, expected = Backoff(0.1, 5.0, random.Random(seed).uniform), 0.1
    for reset in resets:
        if reset:
            backoff.reset()
            expected = 0.1
        wait = backoff.next()
        assert expected / 2 <= wait <= expected
        expected = min(expected * 2, 5.0)
    assert 1.0 <= Backoff(0.1, 5.0, random.Random(seed).uniform).next(at_least_s=2.0) <= 2.0
