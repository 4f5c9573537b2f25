"""Arrays: plain NumPy memory inside a store.

`Store.array` uses it. The array returned is an ordinary `numpy.ndarray` over the store's working view: any
code that writes into it (slices, views, `out=`, C extensions) changes the store, and the next commit finds
the changed pages by asking the kernel. The rejected alternative, an ndarray subclass that notes assignments,
misses every write that does not go through `__setitem__`.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from sustain import _native
from sustain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


def open_array(
    engine: _native.Engine, name: str, shape: "SupportsIndex | Iterable[SupportsIndex] | None", dtype: Any
) -> "np.ndarray[Any, Any]":
    """The array `name` of `engine`, made or grown as `shape` and `dtype` ask; see `Store.array`."""
    import numpy as np  # here: applications without arrays start without NumPy

    buffer, stored_dtype, stored_shape = engine.array_buffer(
        name,
        None if dtype is None else _dtype_text(np.dtype(dtype)),
        None if shape is None else _shape_tuple(shape),
        0 if dtype is None else np.dtype(dtype).itemsize,
    )
    if 0 in stored_shape:
        return np.empty(stored_shape, stored_dtype)
    # Not `np.ndarray(buffer=…)`: that gives the buffer back at once, and the engine could move it under the
    # array.
    return np.frombuffer(buffer, stored_dtype).reshape(stored_shape)


def _dtype_text(dtype: "np.dtype[Any]") -> str:
    """How a dtype is written in the store, such as "<i8". Raises ConfigError for those that have no such
    text."""
    if dtype.hasobject:
        raise ConfigError(
            f"an array of dtype {dtype} holds pointers to Python objects",
            hint="use a fixed-size dtype (i8, f8, S16, …); keep objects in a map, serialised",
        )
    if dtype.fields is not None or dtype.subdtype is not None:
        raise ConfigError(
            f"an array of the record dtype {dtype} cannot be stored",
            hint=f"store dtype 'V{dtype.itemsize}' and use array.view(record_dtype), or one array a field",
        )
    if dtype.itemsize == 0:
        raise ConfigError(
            f"dtype {dtype} has items of zero bytes",
            hint="give the item a length, such as S16 for 16 bytes",
        )
    return dtype.str


def _shape_tuple(shape: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    sides: Sequence[SupportsIndex] = (shape,) if isinstance(shape, SupportsIndex) else tuple(shape)
    result = tuple(operator.index(side) for side in sides)
    if any(side < 0 for side in result):
        raise ConfigError(f"an array of shape {result} cannot be", hint="every side is zero or more")
    return result
