"""States of the host, and their bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.errors import ConfigError
from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.host_state import ORDER, bounds, check, min_free_bytes, next_state
from sustain.schedulers.guest_memory.model import Bounds, GuestPolicy, Host, Policy
from tests.schedulers.guest_memory.plans import NOW_S, guest, observation

GIB = 1 << 30
AT = Bounds(clear_bytes=400, soft_bytes=64, hard_bytes=32, low_bytes=16)


def test_min_free_is_that_of_esx() -> None:
    assert min_free_bytes(28 * GIB) == pytest.approx(899 << 20, rel=0.01)
    assert min_free_bytes(128 * GIB) == pytest.approx(min_free_bytes(28 * GIB) + GIB)


@pytest.mark.parametrize(
    ("before", "available", "now"),
    [
        ("unknown", 500, "high"),
        ("unknown", 399, "clear"),
        ("high", 63, "soft"),
        ("high", 10, "low"),  # at once
        ("soft", 99, "soft"),  # left only at the goal
        ("soft", 100, "clear"),
        ("hard", 40, "hard"),
        ("hard", 64, "soft"),
        ("low", 31, "low"),
        ("low", 32, "hard"),
        ("low", 100, "clear"),
        ("clear", 439, "clear"),
        ("clear", 441, "high"),
    ],
)
def test_states_have_bounds_to_enter_and_others_to_leave(before: str, available: float, now: str) -> None:
    assert next_state(before, available, 100, AT) == now  # type: ignore[arg-type]


@given(st.sampled_from(ORDER), st.floats(0, 1e3))
def test_the_same_again_changes_nothing(before: str, available: float) -> None:
    once = next_state(before, available, 100, AT)  # type: ignore[arg-type]
    assert next_state(once, available, 100, AT) == once


@given(st.floats(1e6, 1e15), st.one_of(st.none(), st.floats(0, 1e15)))
def test_derived_bounds_fall_and_the_goal_is_above_soft(total: float, goal: float | None) -> None:
    found = bounds(Host(total_bytes=total), Policy(goal_free_bytes=goal))
    assert found is not None
    wanted, at = found
    assert wanted >= at.soft_bytes
    assert at.clear_bytes >= at.soft_bytes >= at.hard_bytes >= at.low_bytes > 0
    assert goal is None or wanted >= goal


def test_bounds_without_a_goal_are_worked_towards() -> None:
    """minFree is 655 MiB here: to stop there, below the operator's bound, would be to stay in that state for ever."""
    given = Bounds(clear_bytes=12 * GIB, soft_bytes=9 * GIB, hard_bytes=GIB, low_bytes=GIB / 2)
    policy = Policy(bounds=given)
    found = bounds(Host(total_bytes=16 * GIB), policy)
    assert found is not None
    goal, at = found
    assert at == given
    assert goal == pytest.approx(10 * GIB)
    made = decide(observation(guest(), available=8 * GIB), None, policy, NOW_S).plan
    assert made.host_state == "soft"
    assert [action.guest for action in made.actions] == ["a"]


def test_a_host_of_unknown_size_has_no_bounds_unless_given() -> None:
    assert bounds(Host(), Policy()) is None
    assert bounds(Host(), Policy(goal_free_bytes=100, bounds=AT)) == (100, AT)


@pytest.mark.parametrize(
    "wrong",
    [
        Policy(idle_tax=1.0),
        Policy(step=0.0),
        Policy(bounds=Bounds(clear_bytes=1, soft_bytes=2, hard_bytes=1, low_bytes=1)),
        Policy(bounds=AT, goal_free_bytes=10),
        Policy(default=GuestPolicy(shares=0)),
        Policy(guests={"a": GuestPolicy(reservation_bytes=2, limit_bytes=1)}),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: Policy) -> None:
    check(Policy())
    with pytest.raises(ConfigError):
        check(wrong)
