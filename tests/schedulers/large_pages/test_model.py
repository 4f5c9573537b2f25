"""Blocks in columns: what must hold of them, and that a recording gives back what was seen."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from sustain.errors import RecordingError
from sustain.schedulers.large_pages.model import (
    Blocks,
    HostView,
    Observation,
    Settings,
    Target,
    no_blocks,
    unknown_blocks,
)
from sustain.schedulers.recording import Header, Recorder, Recording

_HEADER = Header(
    scheduler="large-pages",
    sustain="0",
    host="h",
    kernel="6.12",
    started="2026-01-01T00:00:00",
    period_s=10.0,
)


def _seen() -> Observation:
    blocks = unknown_blocks(
        np.array([0, 1, 1], np.int32), np.array([2 << 20, 4 << 20, 2**47 - (2 << 20)], np.uint64)
    )
    blocks.touched[1] = 17.5
    blocks.large[2] = True
    return Observation(
        now_s=12.5,
        blocks=blocks,
        targets=(Target(name="a", pid=4, started=9), Target(name="b", pid=5, started=9, counting="damon")),
        host=HostView(free_bytes=1e9, settings=Settings(enabled="never")),
        notes=("a note",),
    )


def test_a_recording_gives_back_what_was_seen(tmp_path: Path) -> None:
    seen = _seen()
    with Recorder(tmp_path / "r", _HEADER) as recorder:
        recorder.write(seen)
    (found,) = Recording(tmp_path / "r", Observation, "large-pages")
    assert (found.now_s, found.targets, found.host, found.notes) == (
        seen.now_s,
        seen.targets,
        seen.host,
        seen.notes,
    )
    for name in Blocks.__struct_fields__:
        ours, theirs = getattr(seen.blocks, name), getattr(found.blocks, name)
        assert ours.dtype == theirs.dtype, name
        assert ours.tobytes() == theirs.tobytes(), name


def test_a_recording_with_a_damaged_column_says_its_line(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", _HEADER) as recorder:
        recorder.write(_seen())
    text = (tmp_path / "r").read_text().replace('"touched":"<f4', '"touched":"<f8')
    (tmp_path / "r").write_text(text)
    with pytest.raises(RecordingError, match="line 2: a column of float32 is wanted"):
        list(Recording(tmp_path / "r", Observation, "large-pages"))


def test_columns_have_one_length() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        msgspec.structs.replace(_seen().blocks, large=np.zeros(2, np.bool_))


def test_a_block_is_of_a_target_that_is_there() -> None:
    with pytest.raises(ValueError, match="not there"):
        Observation(now_s=0.0, blocks=_seen().blocks, targets=())
    assert len(Observation(now_s=0.0, blocks=no_blocks()).blocks) == 0


def test_rows_are_a_part_of_all_columns() -> None:
    part = _seen().blocks.rows(np.array([False, True, True]))
    assert len(part) == 2
    assert part.large.tolist() == [False, True]
    assert part.touched.tolist()[0] == 17.5
