"""Every figure of a plan can be explained."""

import pytest

from sustain.schedulers.guest_memory.decide import decide
from sustain.schedulers.guest_memory.explain import explain
from sustain.schedulers.guest_memory.model import Policy
from sustain.schedulers.guest_memory.plan import GuestPlan
from tests.schedulers.guest_memory.plans import MIB, NOW_S, guest, observation


def test_the_figures_and_where_they_come_from_are_there() -> None:
    made = decide(observation(guest(), available=400 * MIB), None, Policy(), NOW_S).plan
    text = explain(made, "a", Policy())
    one = made.guest("a")
    for words in (
        "soft",
        "MemAvailable",
        "through its agent",
        "1.5 GiB = active anonymous",
        "1000 shares",
        "charged 4 times",
        "balloon 0 s",
        "by balloon    left",
        *one.reasons,
    ):
        assert words in text, words
    assert max(map(len, text.splitlines())) < 200


def test_it_says_why_a_guest_that_has_waited_counts_as_larger_than_it_seems() -> None:
    """All that it had when it waited; later what is left of that."""
    state = decide(observation(guest()), None, Policy(), NOW_S).state
    texts = []
    for number in (1, 2):
        now_s = NOW_S + 10 * number
        waited = guest(classes_at_s=now_s, stall_us=5e6)
        made = decide(observation(waited, at_s=now_s), state, Policy(), now_s)
        state, one = made.state, made.plan.guest("a")
        assert one.pressed == (number == 1)
        texts.append(explain(made.plan, "a", Policy()))
    assert "and all that it has, since it is pressed" in texts[0]
    assert one.working_set_bytes == one.doubted_bytes > one.measured_bytes
    assert "that are left of all it had when it was pressed, forgotten within 60 s" in texts[1]
    assert max(map(len, texts[1].splitlines())) < 200


def test_unknown_is_called_unknown() -> None:
    made = decide(observation(guest(classes_at_s=None), available=None), None, Policy(), NOW_S).plan
    text = explain(made, "a", Policy())
    assert "available     unknown" in text
    assert "age unknown" in text
    assert "nothing is to be done" in text


def test_a_guest_that_is_not_there_is_a_key_error() -> None:
    made = decide(observation(guest()), None, Policy(), NOW_S).plan
    with pytest.raises(KeyError):
        explain(made, "b", Policy())
    assert "a" in made
    assert isinstance(made.guest("a"), GuestPlan)
