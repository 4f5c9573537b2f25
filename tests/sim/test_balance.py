"""How the simulated kernel spreads groups: as even as their places allow, and no group where it may not run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sim.packages.balance import balanced, levelled

Floats = NDArray[np.float64]


def places(rows: list[list[int]]) -> Floats:
    """The groups may run where there is a 1."""
    found = np.array(rows, float)
    return found / found.sum(axis=1, keepdims=True)


def loads(want: list[float], rows: list[list[int]]) -> list[float]:
    shares = balanced(np.array(want, float), places(rows))
    return pytest.approx((np.array(want)[:, None] * shares).sum(axis=0).tolist(), abs=0.01)


def test_who_may_run_on_both_fills_up_the_one_that_has_room() -> None:
    assert loads([8, 4], [[1, 0], [1, 1]]) == [8, 4]
    assert loads([8, 12], [[1, 0], [1, 1]]) == [10, 10]
    assert loads([6, 6, 3], [[1, 0, 0], [1, 1, 0], [0, 1, 1]]) == [6, 6, 3]
    assert loads([6, 4, 7], [[1, 0, 0], [1, 1, 0], [0, 1, 1]]) == [6, 5.5, 5.5]


def test_a_chain_of_places_is_levelled_to_its_end() -> None:
    assert loads([9, 0, 0], [[1, 1, 0], [0, 1, 1], [1, 0, 0]]) == [4.5, 4.5, 0]
    assert loads([8, 6, 4], [[1, 1, 0], [0, 1, 1], [1, 0, 0]]) == [6, 6, 6]


def test_all_alike_stay_even_and_whole_ones_stay() -> None:
    even = places([[1, 1, 1], [1, 1, 1]])
    assert np.array_equal(balanced(np.array([3.0, 0.0]), even), even)
    whole = places([[1, 0], [0, 1]])
    assert balanced(np.array([3.0, 1.0]), whole) is whole


@given(st.floats(0, 50), st.lists(st.floats(0, 50), min_size=1, max_size=6))
def test_what_is_levelled(amount: float, before: list[float]) -> None:
    before_ = np.array(before)
    parts = levelled(amount, before_)
    after = before_ + parts
    assert (parts >= 0).all()
    assert parts.sum() == pytest.approx(amount, abs=1e-6)
    level = after[parts > 1e-9]
    if len(level):
        assert level.max() - level.min() < 1e-6
        assert after.min() >= level.max() - 1e-6


@given(st.data())
def test_no_move_makes_it_more_even(data: st.DataObject) -> None:
    packages = data.draw(st.integers(2, 4))
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, 1), min_size=packages, max_size=packages).filter(any),
            min_size=1,
            max_size=8,
        )
    )
    want = np.array(data.draw(st.lists(st.floats(0, 20), min_size=len(rows), max_size=len(rows))))
    may = places(rows)
    shares = balanced(want, may)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    assert (shares[may == 0] == 0).all()
    load = (want[:, None] * shares).sum(axis=0)
    for row in range(len(rows)):
        for there in np.flatnonzero(want[row] * shares[row] > 0.01):
            assert load[there] <= load[may[row] > 0].min() + 0.02, (rows, want, shares)
