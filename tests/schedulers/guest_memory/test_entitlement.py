"""Shares, reservations, limits and the tax on idle memory, by properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.guest_memory.entitlement import fill

SIZE = st.floats(0, 1e12, allow_subnormal=False)
GUEST = st.tuples(SIZE, st.floats(1, 1e5), SIZE, SIZE)  # working set, shares, two bounds
GUESTS = st.lists(GUEST, min_size=1, max_size=12)
TAX = st.sampled_from((0.0, 0.5, 0.75, 0.95))


def columns(guests: list[tuple[float, ...]]) -> list[np.ndarray]:
    working, shares, one, other = (np.array(column) for column in zip(*guests, strict=True))
    return [working, shares, np.minimum(one, other), np.maximum(one, other)]


@given(GUESTS, st.floats(0, 1e13), TAX)
def test_what_there_is_is_shared_out_and_bounds_hold(
    guests: list[tuple[float, ...]], capacity: float, tax: float
) -> None:
    working, shares, least, most = columns(guests)
    found = fill(capacity, working, shares, least, most, tax)
    assert (found >= least * (1 - 1e-9)).all()
    assert (found <= most * (1 + 1e-9)).all()
    expected = min(max(capacity, least.sum()), most.sum())
    assert found.sum() == pytest.approx(expected, rel=1e-6, abs=1.0)


@given(GUESTS, st.floats(0, 1e13), TAX, st.floats(1, 10))
def test_more_shares_never_get_less(
    guests: list[tuple[float, ...]], capacity: float, tax: float, factor: float
) -> None:
    working, shares, least, most = columns(guests)
    before = fill(capacity, working, shares, least, most, tax)
    shares[0] *= factor
    after = fill(capacity, working, shares, least, most, tax)
    assert after[0] >= before[0] - max(1.0, 1e-6 * before[0])


def test_without_a_tax_equal_shares_are_equal_memory() -> None:
    both = np.array([1.0, 1.0])
    found = fill(360.0, np.array([20.0, 256.0]), both, 0 * both, 256 * both, 0.0)
    assert found == pytest.approx([180, 180])


def test_the_tax_moves_idle_memory_to_who_uses_it() -> None:
    """An idle page is charged four times: (360 - 20 - P) + … solves to 20 + (P_busy - 20) / 4."""
    both = np.array([1.0, 1.0])
    found = fill(280.0, np.array([20.0, 256.0]), both, 0 * both, 256 * both, 0.75)
    assert found[1] == pytest.approx(212)
    assert found[0] == pytest.approx(20 + (212 - 20) / 4)


def test_shares_count_in_proportion() -> None:
    found = fill(300.0, np.full(2, 1e3), np.array([1.0, 2.0]), np.zeros(2), np.full(2, 1e3), 0.75)
    assert found == pytest.approx([100, 200])


def test_nobody_is_no_error() -> None:
    none = np.zeros(0)
    assert fill(100.0, none, none, none, none, 0.75).size == 0
