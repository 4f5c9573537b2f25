"""Choosing between columns: the same as NumPy's own ways, for every bit pattern."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.large_pages.columns import put, select


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(data=st.data())
def test_one_or_the_other_as_the_mask_says(kind: type, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.booleans(), st.floats(width=32), st.floats(width=32)), max_size=9))
    where = np.array([each[0] for each in rows], np.bool_)
    ours, theirs = (np.array([each[place] for each in rows], kind) for place in (1, 2))
    found = select(where, ours, theirs)
    assert found.dtype == kind
    assert found.tobytes() == np.where(where, ours, theirs).tobytes()


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans())), st.integers(0, 255))
def test_a_value_is_put_where_the_mask_says(rows: list[tuple[int, bool]], value: int) -> None:
    column = np.array([each[0] for each in rows], np.uint8)
    put(column, value, np.array([each[1] for each in rows], np.bool_))
    assert column.tolist() == [value if there else old for old, there in rows]
