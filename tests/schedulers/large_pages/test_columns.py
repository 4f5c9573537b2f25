"""Dealing with columns: the same as NumPy's own ways, for every bit pattern, in few rows and in many."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.large_pages.columns import (
    PIECE,
    blank,
    column,
    later,
    masked,
    pieces,
    put,
    spread,
    write,
)

_MANY = 2 * PIECE + 77
shares = st.sampled_from([0.0, 0.0001, 0.03, 0.04, 0.5, 0.9999, 1.0])


def filled(count: int, kind: Any, seed: int) -> Any:
    """Any bits at all, NaN among them."""
    found = column(count, kind)
    found.view(np.uint8)[:] = np.random.default_rng(seed).integers(0, 256, found.nbytes, np.uint8)
    return found


times = st.one_of(st.floats(allow_nan=False, width=32), st.just(-np.inf))


@given(st.lists(st.tuples(st.booleans(), times, st.floats(-1e9, 1e12))))
def test_of_two_times_the_later_where_the_mask_is_set(rows: list[tuple[bool, float, float]]) -> None:
    where = np.array([each[0] for each in rows], np.bool_)
    ours, theirs = (np.array([each[place] for each in rows], np.float64) for place in (1, 2))
    out = np.empty(len(rows))
    later(ours, theirs, where, out)
    assert out.tolist() == np.where(where, np.maximum(ours, theirs), ours).tolist()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(share=shares, seed=st.integers(0, 1000), count=st.sampled_from([0, 1, 40, _MANY]))
def test_many_rows_are_written_and_blanked(kind: type, share: float, seed: int, count: int) -> None:
    where = np.random.default_rng(seed).random(count) < share
    ours, theirs, out = (filled(count, kind, seed + number) for number in range(3))
    wanted = np.where(where, ours, theirs)
    assert masked(where, ours).tobytes() == np.where(where, ours, np.zeros(1, kind)).tobytes()
    blank(where, ours, out)
    assert np.isnan(out[where]).all()
    assert out[~where].tobytes() == ours[~where].tobytes()
    write(theirs, where, ours)
    assert theirs.tobytes() == wanted.tobytes()


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans())), st.integers(0, 255))
def test_a_value_is_put_where_the_mask_says(rows: list[tuple[int, bool]], value: int) -> None:
    codes = np.array([each[0] for each in rows], np.uint8)
    put(codes, value, np.array([each[1] for each in rows], np.bool_))
    assert codes.tolist() == [value if there else old for old, there in rows]


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.lists(st.integers(0, 4)))
def test_what_is_said_of_a_target_is_said_of_its_blocks(of_each: list[bool], target: list[int]) -> None:
    target = sorted(each % len(of_each) for each in target)
    found = spread(np.array(of_each, np.bool_), np.array(target, np.int32))
    assert found.tolist() == [of_each[each] for each in target]


@pytest.mark.parametrize("count", [0, 1, PIECE, _MANY])
def test_a_column_begins_on_a_cache_line_and_so_does_each_piece(count: int) -> None:
    every = column(count, np.float32)
    assert len(every) == count
    parts = [every[rows] for rows in pieces(count)]
    assert sum(len(part) for part in parts) == count
    assert all(part.ctypes.data % 64 == 0 for part in parts)
