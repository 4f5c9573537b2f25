"""Flags and idle marks of many frames at once, in files of the kernel's form; the kernel's own are in the lab."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host import kpageflags
from sustain.host.kpageflags import Marks

LRU, HEAD, TAIL, ZERO = 1 << 5, 1 << 15, 1 << 16, 1 << 24


def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def bitmap(root: Path, words: int) -> Path:
    path = root / "sys/kernel/mm/page_idle/bitmap"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(8 * words))
    return path


def marking(path: Path, write: Callable[[int, bytes, int], int] = os.pwrite) -> Callable[..., int]:
    """In place of os.pwrite for a file that is the bitmap: as in the kernel's, zeros leave alone what is there."""

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        with path.open("rb") as file:
            file.seek(at)
            there = file.read(len(data)).ljust(len(data), b"\0")
        return write(fd, bytes(one | other for one, other in zip(there, data, strict=True)), at)

    return pwrite


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
    Marks(frames, tmp_path).set()
    words = np.frombuffer(path.read_bytes(), np.uint64)
    assert {int(at): int(words[at]) for at in np.flatnonzero(words)} == {0: 3, 1: 2, 200: 1, 3999: 1 << 63}
    asked = column(0, 2, 64 * 3999 + 63, 65, 64, 1)
    assert Marks(asked, tmp_path).idle().tolist() == [True, False, True, True, False, True]
    assert Marks(column(), tmp_path).idle().tolist() == []
    Marks(column(), tmp_path).set()


def test_only_some_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bitmap(tmp_path, 300)
    monkeypatch.setattr(os, "pwrite", marking(path))
    marks = Marks(column(64 * 250, 7, 6, 5, 64 * 251), tmp_path)
    marks.set(np.array([False, True, False, True, False]))
    assert marks.idle().tolist() == [False, True, False, True, False]
    marks.set(np.zeros(5, np.bool_))
    assert np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint64)).tolist() == [0]


@pytest.mark.parametrize("gap", [0, 1, 40])
@pytest.mark.parametrize("most", [1, 3, 512])
def test_what_is_far_apart_or_spans_more_than_one_call_takes(
    gap: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kpageflags, "_BITMAP_GAP_WORDS", gap)
    monkeypatch.setattr(kpageflags, "_BITMAP_MOST_WORDS", most)
    path = bitmap(tmp_path, 3000)
    random = np.random.default_rng(most)
    frames = np.concatenate([np.arange(100, 1500), random.choice(np.arange(1500, 64 * 3000), 300)])
    frames = random.permutation(np.unique(frames)).astype(np.uint64)
    Marks(frames, tmp_path).set()
    assert Marks(frames, tmp_path).idle().all()
    bits = np.unpackbits(np.frombuffer(path.read_bytes(), np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == sorted(frames.tolist())


def test_the_last_frames_of_a_machine_that_are_no_whole_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux takes none of a word of which not all is there, and says 0; those of the words before are marked."""
    path = bitmap(tmp_path, 9)
    write = marking(path)

    def cut(fd: int, data: memoryview, at: int) -> int:
        kept = min(len(data), 8 * 8 - at)
        return write(fd, data[:kept], at) if kept > 0 else 0

    monkeypatch.setattr(os, "pwrite", cut)
    marks = Marks(column(64 * 7 + 1, 64 * 8 + 1), tmp_path)
    marks.set()
    assert marks.idle().tolist() == [True, False]


def test_a_kernel_that_takes_less_than_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does, 4 KiB of the bitmap at a time."""
    monkeypatch.setattr(kpageflags, "_BITMAP_MOST_WORDS", 1 << 17)
    bitmap(tmp_path, 2000)
    frames = np.arange(0, 64 * 2000, 3, dtype=np.uint64)
    read, write = os.preadv, os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, views, at: read(fd, [views[0][:4096]], at))
        patch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:4096], at))
        marks = Marks(frames, tmp_path)
        marks.set()
        assert marks.idle().all()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 0)
        with pytest.raises(HostError, match="takes no more"):
            marks.set()


def test_past_the_last_frame_nothing_is_idle(tmp_path: Path) -> None:
    bitmap(tmp_path, 2).write_bytes(bytes([255]) * 16)
    assert Marks(column(5, 127, 128, 10**6), tmp_path).idle().tolist() == [True, True, False, False]


def test_a_kernel_without(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="bitmap"):
        Marks(column(1), tmp_path).set()
    with pytest.raises(HostError, match="kpageflags"):
        kpageflags.kinds(column(1), tmp_path)
