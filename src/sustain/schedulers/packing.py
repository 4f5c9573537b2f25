"""Columns of numbers in observations, as text: a NumPy array of one dimension is `TYPE:BASE64`, compressed. Pure.

Used by `recording`, whose lines are JSON. TYPE is NumPy's own name of the element type ("<f4"), the base64 text is the
array's bytes through zlib. Rejected: lists of numbers. A host has hundreds of thousands of blocks, and a person who
reads a recording does not read these; `sustain replay` tells them.
"""

import base64
import typing
import zlib
from typing import Any

import numpy as np


def pack(value: object) -> str:
    """For msgspec's `enc_hook`. Raises NotImplementedError, as msgspec wants it, for what is no column."""
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.hasobject:
        raise NotImplementedError(f"{type(value).__name__} has no form in a recording")
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    return f"{little.dtype.str}:{base64.b64encode(zlib.compress(little.tobytes(), 1)).decode('ascii')}"


def unpack(kind: Any, value: object) -> Any:
    """For msgspec's `dec_hook`: the column, of the element type that `kind` names. Raises ValueError, which msgspec
    turns into its own error, for what is damaged or of another type."""
    (wanted,) = typing.get_args(typing.get_args(kind)[1])
    name, _, text = str(value).partition(":")
    if name != np.dtype(wanted).newbyteorder("<").str:
        raise ValueError(f"a column of {np.dtype(wanted)} is wanted, not {name[:8]!r}")
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
        return np.frombuffer(data, name).astype(wanted, copy=False)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"a column is damaged: {error}") from None
