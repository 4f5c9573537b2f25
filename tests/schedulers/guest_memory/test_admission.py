"""Would one more guest fit?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.schedulers.guest_memory.admission import admit
from sustain.schedulers.guest_memory.model import GuestPolicy, Policy
from tests.schedulers.guest_memory.plans import GIB, MIB, guest, observation

POLICY = Policy(goal_free_bytes=GIB)


def test_it_fits_now() -> None:
    found = admit(observation(guest(), available=4 * GIB), None, POLICY, 2 * GIB)
    assert found.verdict == "now"
    assert (found.seconds, found.available_bytes, found.sources) == (0.0, 3 * GIB, ())


def test_it_fits_after_some_reclaim_from_whom_how_long_at_what_cost() -> None:
    seen = observation(guest("idle"), guest("busy", free_bytes=0.0, inactive_buffer_bytes=0.0,
                       inactive_anonymous_bytes=0.0, active_anonymous_bytes=3.3 * GIB), available=2 * GIB)  # fmt: skip
    found = admit(seen, None, POLICY, 1.5 * GIB)
    assert found.verdict == "after reclaim"
    (source,) = found.sources
    assert source.guest == "idle"
    assert source.mechanism == "balloon"
    assert source.amount_bytes == pytest.approx(0.5 * GIB, rel=1e-6)
    assert found.seconds == 10.0  # free memory goes in one step
    assert found.cost_s == 0
    slower = admit(seen, None, POLICY, 2.5 * GIB)
    assert slower.verdict == "after reclaim"
    assert slower.seconds is not None
    assert slower.seconds > found.seconds
    assert slower.cost_s is not None
    assert slower.cost_s > 0


def test_it_does_not_fit_and_by_how_much() -> None:
    found = admit(observation(guest(), available=2 * GIB), None, POLICY, 16 * GIB)
    assert found.verdict == "no"
    assert found.seconds is None
    assert found.short_bytes is not None
    given_up = sum(each.amount_bytes for each in found.sources)
    assert found.short_bytes == pytest.approx(16 * GIB - GIB - given_up)


def test_reserved_memory_is_not_promised() -> None:
    policy = Policy(goal_free_bytes=GIB, default=GuestPolicy(reservation_bytes=4 * GIB))
    assert admit(observation(guest(), available=GIB), None, policy, GIB).verdict == "no"


def test_an_unknown_host_gives_no_answer() -> None:
    found = admit(observation(guest(), available=None), None, POLICY, GIB)
    assert found.verdict == "unknown"
    assert found.risk


def test_the_risk_says_what_could_go_wrong() -> None:
    stale = guest("stale", classes_at_s=None)
    found = admit(observation(stale, guest(), available=2 * GIB), None, POLICY, 1 * GIB)
    assert found.verdict == "now"
    assert any("1 of the guests" in each for each in found.risk)
    assert any("all guests used all" in admit_risk for admit_risk in admit(
        observation(guest(resident_bytes=GIB, free_bytes=3.5 * GIB, inactive_buffer_bytes=0.0), available=2 * GIB),
        None, POLICY, GIB).risk)  # fmt: skip


@settings(max_examples=60)
@given(st.floats(0, 8), st.floats(0.1, 16), st.floats(0.1, 16))
def test_a_smaller_one_fits_no_later(available: float, one: float, other: float) -> None:
    seen = observation(guest("a"), guest("b", free_bytes=100 * MIB), available=available * GIB)
    order = ("now", "after reclaim", "no")
    small, large = (admit(seen, None, POLICY, size * GIB) for size in sorted((one, other)))
    assert order.index(small.verdict) <= order.index(large.verdict)
    if large.seconds is not None:
        assert small.seconds is not None
        assert small.seconds <= large.seconds
