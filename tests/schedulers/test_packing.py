"""Columns in recordings: what goes in comes out, and what is no such column is refused."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sustain.schedulers.packing import pack, unpack


class _Columns(msgspec.Struct, eq=False):
    share: NDArray[np.float32]
    where: NDArray[np.uint64]


def _again(columns: _Columns) -> _Columns:
    return msgspec.json.decode(msgspec.json.encode(columns, enc_hook=pack), type=_Columns, dec_hook=unpack)


@given(
    st.lists(st.floats(width=32)),
    st.lists(st.integers(0, 2**64 - 1)),
)
def test_what_goes_in_comes_out(shares: list[float], places: list[int]) -> None:
    found = _again(_Columns(np.array(shares, np.float32), np.array(places, np.uint64)))
    assert found.share.dtype == np.float32
    assert found.where.dtype == np.uint64
    assert found.share.tobytes() == np.array(shares, np.float32).tobytes()
    assert found.where.tolist() == places


def test_a_big_endian_column_is_written_as_a_little_endian_one() -> None:
    found = _again(_Columns(np.array([1.5], ">f4"), np.array([7], ">u8")))
    assert (found.share.tolist(), found.where.tolist()) == ([1.5], [7])


@pytest.mark.parametrize(
    "text",
    ["<f8:" + pack(np.zeros(1)).partition(":")[2], "<f4:!", "<f4:AAAA", "", pack(np.zeros(3, np.uint8))],
)
def test_what_is_no_such_column_is_refused(text: str) -> None:
    line = msgspec.json.encode({"share": text, "where": pack(np.zeros(0, np.uint64))})
    with pytest.raises(msgspec.ValidationError, match="column"):
        msgspec.json.decode(line, type=_Columns, dec_hook=unpack)


@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.array([object()]), {1}])
def test_what_has_no_form_is_not_written(value: object) -> None:
    with pytest.raises(NotImplementedError):
        pack(value)
