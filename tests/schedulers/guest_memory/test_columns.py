"""Observations as columns: each figure in its own place, unknown as NaN."""

import msgspec
import numpy as np
import pytest

from sustain.schedulers.guest_memory.columns import table, zero
from sustain.schedulers.guest_memory.model import (
    Figures,
    Guest,
    GuestPolicy,
    Host,
    Mechanism,
    Observation,
    Policy,
)

FIELDS = Figures.__struct_fields__


def seen(*guests: Guest) -> Observation:
    return Observation(at_s=0.0, host=Host(), guests=guests)


def guest(name: str, figures: Figures, *can: Mechanism) -> Guest:
    return Guest(name=name, kind="qemu", life=f"life of {name}", source="none", figures=figures, can=can)


@pytest.mark.parametrize("unknown", [*FIELDS, None])
def test_each_figure_is_in_its_place(unknown: str | None) -> None:
    told = [
        Figures(**{field: float(100 * row + place) for place, field in enumerate(FIELDS) if field != without})
        for row, without in enumerate((unknown, None, unknown))
    ]
    of = table(seen(*(guest(str(row), each) for row, each in enumerate(told))), Policy())
    for field in FIELDS:
        values = [getattr(each, field) for each in told]
        expected = [np.nan if each is None else each for each in values]
        assert np.array_equal(of[field], expected, equal_nan=True), field
        assert of[field].flags.c_contiguous


def test_nobody() -> None:
    of = table(seen(), Policy())
    assert set(of.figures) == set(FIELDS)
    assert {len(each) for each in (*of.figures.values(), *of.can, of.shares, of.most_bytes)} == {0}
    assert of.keys == ()


def test_what_is_unknown_is_nothing_and_the_rest_as_it_was() -> None:
    assert zero(np.array([np.nan, -1.0, np.inf, 0.0])).tolist() == [0.0, -1.0, np.inf, 0.0]


def test_what_can_be_done_is_what_is_possible_and_allowed() -> None:
    guests = (
        guest("a", Figures(), "balloon", "pageout"),
        guest("b", Figures(), "reclaim"),
        guest("c", Figures(), "balloon", "pageout"),
        guest("d", Figures()),
    )
    allowed = GuestPolicy(mechanisms=("pageout",))
    all_of_it = [(True, True, False), (False, False, True), (True, True, False), (False, False, False)]
    for policy, expected in (
        (Policy(), all_of_it),
        (Policy(guests={"c": allowed}), [*all_of_it[:2], (False, True, False), all_of_it[3]]),
        (Policy(default=allowed), [(False, True, False), (False,) * 3, (False, True, False), (False,) * 3]),
    ):
        of = table(seen(*guests), policy)
        assert list(zip(*(each.tolist() for each in of.can), strict=True)) == expected
    assert of.keys == tuple((each.name, each.life) for each in guests)


def test_a_name_that_is_taken_twice_is_two_rows() -> None:
    first = guest("a", Figures(size_bytes=1.0))
    of = table(seen(first, msgspec.structs.replace(first, life="another")), Policy())
    assert of.keys == (("a", "life of a"), ("a", "another"))
