"""Recordings: what was written is read; what is cut off or damaged is said, after what is whole."""

from pathlib import Path

import pytest

from sustain.errors import RecordingError
from sustain.schedulers.recording import Header, Recorder, Recording
from sustain.testing.scheduler import Dials

HEADER = Header(
    scheduler="dials",
    sustain="0.1.0",
    host="h",
    kernel="6.12",
    started="2026-01-31T12:00:00+00:00",
    period_s=10,
    policy={"goal": 3},
)
SEEN = [Dials(float(at), {"a": at, "b": 7}) for at in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r"
    with Recorder(path, HEADER) as recorder:
        for each in SEEN:
            recorder.write(each)
        assert recorder.count == 3
    return path


def test_what_was_written_is_read(path: Path) -> None:
    recording = Recording(path, Dials, "dials")
    assert recording.header == HEADER
    assert list(recording) == list(recording) == SEEN


def test_each_observation_is_in_the_file_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", HEADER)
    recorder.write(SEEN[0])
    assert list(Recording(tmp_path / "r", Dials, "dials")) == SEEN[:1]
    recorder.close()


def test_cut_off_anywhere_it_yields_what_is_whole_and_then_says_so(path: Path) -> None:
    data = path.read_bytes()
    whole = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    for end in range(len(data)):
        path.write_bytes(data[:end])
        if end < whole[0]:
            with pytest.raises(RecordingError, match="not a recording") as caught:
                Recording(path, Dials, "dials")
            assert caught.value.hint
            continue
        found, lines = [], sum(each <= end for each in whole) - 1
        recording = Recording(path, Dials, "dials")
        if end in whole:
            found = list(recording)
        else:
            with pytest.raises(
                RecordingError, match=f"line {lines + 2} is cut off; the {lines} observations"
            ):
                found.extend(recording)
        assert found == SEEN[:lines]


def test_damage_is_named_by_its_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"a":1', b'"a":"one"'))
    found: list[Dials] = []
    with pytest.raises(RecordingError, match=r"line 3: .*values"):
        found.extend(Recording(path, Dials, "dials"))
    assert found == SEEN[:1]


def test_what_it_is_not_for(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="recorded by the dials scheduler"):
        Recording(path, Dials, "guest-memory")
    with pytest.raises(RecordingError, match="exists"):
        Recorder(path, HEADER)
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "none", Dials, "dials")
    path.write_bytes(path.read_bytes().replace(b'"recording":1', b'"recording":9'))
    with pytest.raises(RecordingError, match="version 9"):
        Recording(path, Dials, "dials")
