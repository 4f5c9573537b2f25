"""What came of placing a group is heard: where it is now, and that somebody else has set it."""

from typing import Any

import numpy as np
import pytest

from sustain.schedulers.packages.model import Effect, Outcome, Place
from sustain.schedulers.packages.placing import heard
from sustain.schedulers.packages.state import NOT_PLACED, GroupMemory

PLACE = Place(
    group="web",
    life="1",
    kind="cgroup",
    cpus=(2, 3),
    packages=(1,),
    nodes=(1,),
    purpose="pack",
    reason="a test",
)


def memory(placed: int) -> GroupMemory:
    no, one = np.zeros(1, np.bool_), np.ones(1, np.bool_)
    return GroupMemory(
        names=("web",),
        lives=("1",),
        kinds=("cgroup",),
        mean=np.ones(1),
        placed=np.array([placed], np.int32),
        settled=no,
        hands_off=no,
        followed=no,
        aligned=no,
        movable=one,
        priority=np.zeros(1, np.int32),
        follow=one,
    )


@pytest.mark.parametrize("before", [NOT_PLACED, 0])
@pytest.mark.parametrize(
    ("outcome", "more", "placed", "followed", "hands_off"),
    [
        ("done", {}, True, True, False),
        ("again later", {"moved_bytes": 0.0}, True, False, False),  # its memory is on its way
        ("again later", {"written": 3}, True, False, False),  # some of its threads are there
        ("again later", {}, None, False, False),  # it had no turn: it is where it was
        ("refused", {}, None, False, True),  # where it was placed before it is still, until the next plan
        ("refused", {"written": 3}, None, False, True),  # and put back
        ("changed", {}, None, False, True),
        ("gone", {}, None, False, False),
    ],
)
def test_where_a_group_is(
    before: int, outcome: Outcome, more: dict[str, Any], placed: bool | None, followed: bool, hands_off: bool
) -> None:
    effect = Effect(action=PLACE, outcome=outcome, **more)
    now, sets = heard(memory(before), (effect,), ((0, 1),))
    assert now.placed.tolist() == [before if placed is None else 1 if placed else NOT_PLACED]
    assert (now.followed.tolist(), now.hands_off.tolist()) == ([followed], [hands_off])
    assert (sets[1:] == ((2, 3),)) == bool(placed)
