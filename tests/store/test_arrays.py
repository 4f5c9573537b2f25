"""Arrays: whatever plain NumPy code writes is found by the next commit, in every capture mode."""

import contextlib
import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sustain

Array = np.ndarray[Any, Any]


def _ctypes_poke(array: Array) -> None:
    ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_int64))[4321] = 77


def _memoryview_poke(array: Array) -> None:
    memoryview(array).cast("B")[8 * 9000 : 8 * 9000 + 8] = (99).to_bytes(8, "little")


WRITES: dict[str, Callable[[Array], Any]] = {
    "one item": lambda a: a.__setitem__(5, 1),
    "last item": lambda a: a.__setitem__(-1, 1),
    "slice": lambda a: a.__setitem__(slice(100, 7000), 3),
    "strided": lambda a: a.__setitem__(slice(None, None, 513), -9),
    "fancy": lambda a: a.__setitem__([1, 9999, 5000], [7, 8, 9]),
    "mask": lambda a: a.__setitem__(np.arange(a.size) % 1000 == 0, 4),
    "view": lambda a: a[2000:3000].view("i4").__setitem__(slice(None), 5),
    "reshaped view": lambda a: a.reshape(100, 100)[:, 3].fill(6),
    "reversed view": lambda a: a[::-1].__setitem__(slice(0, 3), 2),
    "out=": lambda a: np.add(a, 10, out=a),
    "ufunc.at": lambda a: np.add.at(a, [3, 3, 8000], 1),
    "in place": lambda a: a.__ixor__(0x5555),
    "copyto": lambda a: np.copyto(a[4096:], 12),
    "sort": lambda a: a[::-1].sort(),
    "random out": lambda a: np.random.default_rng(1).random(out=a.view("f8")),
    "put": lambda a: a.put([17, 4000], 13),
    "ctypes": _ctypes_poke,
    "memoryview": _memoryview_poke,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_plain_writes_are_found(captured: sustain.Store, path: Path, write: Callable[[Array], Any]) -> None:
    array = captured.array("a", (10_000,), "i8")
    array[:] = np.arange(10_000)
    captured.commit()
    expected = np.arange(10_000)
    write(expected)
    for _ in range(2):  # the second time the pages are private already
        array[:] = np.arange(10_000)
        captured.commit()
        write(array)
        assert (array == expected).all()
        captured.commit()
        captured.rollback()  # shows what the commit really took
        assert (array == expected).all()
    captured.close()
    with sustain.open(path) as again:
        assert (again.array("a") == expected).all()


def test_random_writes_against_a_shadow(captured: sustain.Store, path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    mode = captured.capture
    array = captured.array("a", (200_000,), "i8")
    live, committed = np.zeros(200_000, "i8"), np.zeros(200_000, "i8")
    captured.commit()
    for _ in range(120):
        for _ in range(rng.randrange(20)):
            begin = rng.randrange(200_000)
            length = rng.choice([1, 1, 1, 8, 511, 513, 6000])
            value = rng.randrange(-1 << 62, 1 << 62)
            array[begin : begin + length] = value
            live[begin : begin + length] = value
        match rng.randrange(5):
            case 0:
                captured.rollback()
                live[:] = committed
            case 1:
                pass
            case 2 if rng.random() < 0.3:
                captured.close()
                captured = sustain.open(path, capture=mode)
                array = captured.array("a")
                live[:] = committed
            case _:
                captured.commit()
                committed[:] = live
        assert (array == live).all()
    captured.close()
    with sustain.open(path) as again:
        assert (again.array("a") == committed).all()


def test_the_log_takes_bytes_that_differ_and_not_pages(captured: sustain.Store) -> None:
    array = captured.array("a", (1_000_000,), "i8")
    array[:] = 1
    before = captured.commit()
    array[500_000] = 2
    one = captured.commit() - before
    assert one < 512
    before = captured.commit()
    array[::5000] = 3  # 200 items on 200 pages
    scattered = captured.commit() - before
    assert scattered < 200 * 64
    before = captured.commit()
    array[:] = array.copy()  # every page written, no byte differs
    assert captured.commit() - before < 512


def test_dtypes(captured: sustain.Store, path: Path) -> None:
    for number, dtype in enumerate(["?", "u1", "<i2", ">i4", "<f4", "<c16", "S7", "<U5", "<M8[us]", "V12"]):
        array = captured.array(f"a{number}", (50,), dtype)
        assert array.dtype == np.dtype(dtype)
        if np.dtype(dtype).kind == "M":
            array[1:3] = np.datetime64(5, "us")
        else:
            array[1:3] = np.ones(2, "u1").astype(dtype)
        captured.commit()
    shadows = {name: captured.array(name).copy() for name, _, _ in captured.objects()}
    assert len(shadows) == 10
    captured.close()
    with sustain.open(path) as again:
        for name, shadow in shadows.items():
            assert again.array(name).dtype == shadow.dtype
            assert again.array(name).tobytes() == shadow.tobytes()


@pytest.mark.parametrize("dtype", [object, "i4,f8", [("a", "i4")], ("i4", (2,)), "S"])
def test_dtypes_without_a_plain_form_are_refused(store: sustain.Store, dtype: Any) -> None:
    with pytest.raises(sustain.ConfigError) as caught:
        store.array("a", (3,), dtype)
    assert caught.value.hint
    assert store.objects() == []


def test_records_live_in_plain_bytes(store: sustain.Store) -> None:
    record = np.dtype([("id", "<u4"), ("name", "S12"), ("score", "<f8", (2,))])
    rows = store.array("rows", (50,), f"V{record.itemsize}").view(record)
    rows["id"] = 7
    rows[3]["name"] = b"ada"
    store.commit()
    again = store.array("rows").view(record)
    assert again["id"].sum() == 350
    assert again[3]["name"] == b"ada"


def test_shapes(store: sustain.Store) -> None:
    assert store.array("scalar-like", 5, "i4").shape == (5,)
    assert store.array("matrix", (3, 4), "f8").shape == (3, 4)
    assert store.array("numpy ints", (np.int64(3), np.int32(2)), "f8").shape == (3, 2)
    assert store.array("empty", (0,), "f8").shape == (0,)
    assert store.array("empty rows", (0, 3), "f8").shape == (0, 3)
    assert store.array("matrix").flags.c_contiguous
    assert store.array("matrix").ctypes.data % 64 == 0
    with pytest.raises(sustain.ConfigError):
        store.array("negative", (-1,), "f8")


def test_what_does_not_match_is_refused(store: sustain.Store) -> None:
    store.array("a", (3, 4), "f8")
    for dtype, shape in (("i8", (3, 4)), ("f8", (3, 5)), ("f8", (12,)), (">f8", (3, 4))):
        with pytest.raises(sustain.StoreError) as mismatch:
            store.array("a", shape, dtype)
        assert '"a"' in str(mismatch.value)
    with pytest.raises(sustain.NoSuchObject) as caught:
        store.array("nobody")
    assert "nobody" in str(caught.value)
    assert caught.value.hint


def test_arrays_grow_in_their_first_axis(captured: sustain.Store, path: Path) -> None:
    captured.array("a", (3, 4), "i8")[:] = 7
    captured.commit()
    for rows in (4, 100, 5000, 40_000):
        grown = captured.array("a", (rows, 4))
        assert grown.shape == (rows, 4)
        assert (grown[:3] == 7).all()
        grown[-1] = rows
        captured.commit()
        del grown
    captured.close()
    with sustain.open(path) as again:
        final = again.array("a")
        assert final.shape == (40_000, 4)
        expected = np.zeros((40_000, 4), "i8")
        expected[:3] = 7
        for rows in (4, 100, 5000, 40_000):
            expected[rows - 1] = rows
        assert (final == expected).all()


def test_growth_is_rolled_back(captured: sustain.Store) -> None:
    captured.array("a", (10,), "i8")[:] = 5
    captured.commit()
    captured.array("a", (100_000,))[50:] = 1
    captured.rollback()
    assert captured.array("a").tolist() == [5] * 10


def test_a_view_that_lives_keeps_its_memory(store: sustain.Store) -> None:
    """Growing may find room in place; if it cannot, it must refuse rather than move memory under a view."""
    old = store.array("a", (1000,), "i8")
    old[:] = 3
    view = old[10:20]
    store.array("in the way", (1000,), "i8")
    with contextlib.suppress(sustain.ObjectInUse):
        grown = store.array("a", (400_000,))
        grown[10] = 9
        assert view[0] == 9  # in place: the same memory
        grown[10] = 3
        del grown
    assert (view == 3).all()
    with pytest.raises(sustain.ObjectInUse) as caught:
        store.delete("a")
    assert caught.value.hint
    assert (view == 3).all()


def test_delete_after_the_views_are_gone(store: sustain.Store) -> None:
    array = store.array("a", (1000,), "i8")
    store.commit()
    del array
    store.delete("a")
    store.commit()
    assert store.objects() == []


def test_readers_get_read_only_arrays(store: sustain.Store, path: Path) -> None:
    store.array("a", (10,), "i8")[:] = 4
    store.commit()
    with sustain.open(path, readonly=True) as reader:
        seen = reader.array("a")
        assert seen.tolist() == [4] * 10
        assert not seen.flags.writeable
        with pytest.raises(ValueError):
            seen[0] = 1


@pytest.mark.parametrize("readonly", [True, False])
def test_a_view_may_be_looked_at_after_the_store_was_closed(
    store: sustain.Store, path: Path, readonly: bool
) -> None:
    store.array("a", (100_000,), "i8")[:] = 7
    store.commit()
    store.close()
    opened = sustain.open(path, readonly=readonly)
    view = opened.array("a")
    opened.close()
    assert (view == 7).all()
