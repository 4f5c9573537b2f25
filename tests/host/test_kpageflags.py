"""Flags and idle marks of many frames at once, in files of the kernel's form; the kernel's own are in the lab."""

from pathlib import Path

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host import kpageflags

LRU, HEAD, TAIL, ZERO = 1 << 5, 1 << 15, 1 << 16, 1 << 24


def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def bitmap(root: Path, words: int) -> Path:
    path = root / "sys/kernel/mm/page_idle/bitmap"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(8 * words))
    return path


def test_kinds_of_frames_in_any_order_and_far_apart(tmp_path: Path) -> None:
    flags = np.zeros(5000, np.uint64)
    flags[[7, 4999]] = LRU
    flags[512], flags[513] = LRU | HEAD, TAIL
    flags[9] = ZERO
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kpageflags").write_bytes(flags.tobytes())
    found = kpageflags.kinds(column(4999, 512, 513, 9, 7, 8, 7), tmp_path)
    assert found.alone.tolist() == [True, False, False, False, True, False, True]
    assert found.head.tolist() == [False, True, False, False, False, False, False]
    assert found.tail.tolist() == [False, False, True, False, False, False, False]
    assert found.zero.tolist() == [False, False, False, True, False, False, False]


def test_marks_are_set_and_read_where_they_belong(tmp_path: Path) -> None:
    path = bitmap(tmp_path, 4000)
    frames = column(64 * 3999 + 63, 0, 1, 65, 64 * 200)
    kpageflags.mark_idle(frames, tmp_path)
    words = np.frombuffer(path.read_bytes(), np.uint64)
    assert {int(at): int(words[at]) for at in np.flatnonzero(words)} == {0: 3, 1: 2, 200: 1, 3999: 1 << 63}
    asked = column(0, 2, 64 * 3999 + 63, 65, 64, 1)
    assert kpageflags.idle(asked, tmp_path).tolist() == [True, False, True, True, False, True]
    assert kpageflags.idle(column(), tmp_path).tolist() == []


def test_what_spans_more_than_one_call_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kpageflags, "_MOST_WORDS", 3)
    bitmap(tmp_path, 100)
    frames = column(*range(0, 6400, 61))
    kpageflags.mark_idle(frames, tmp_path)
    assert kpageflags.idle(frames, tmp_path).all()
    assert not kpageflags.idle(frames + np.uint64(1), tmp_path).any()


def test_a_kernel_without(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="bitmap"):
        kpageflags.mark_idle(column(1), tmp_path)
    with pytest.raises(HostError, match="kpageflags"):
        kpageflags.kinds(column(1), tmp_path)
