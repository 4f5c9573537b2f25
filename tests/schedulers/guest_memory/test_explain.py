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
