"""Recorded demand in files of each kind, and what is said of others."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from bench import traces
from sustain.errors import RecordingError
from sustain.schedulers.recording import Header, Recorder
from tests.schedulers.guest_memory.plans import GIB, MIB, guest, observation


def parquet(path: Path, columns: str, rows: list[tuple[Any, ...]]) -> Path:
    with duckdb.connect() as database:
        database.execute(f"CREATE TABLE rows ({columns})")
        for row in rows:
            database.execute(f"INSERT INTO rows VALUES ({', '.join('?' * len(row))})", row)
        database.execute(f"COPY rows TO '{path}' (FORMAT parquet)")
    return path


def test_csv_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("guest,demand,seconds\na,3,60\na,1,0\nb,5,30\n")
    found = traces.read(file)
    assert found.points == {"a": [(0.0, 1.0), (60.0, 3.0)], "b": [(30.0, 5.0)]}
    assert found.guests(1) == ["a"]
    assert found.sampled("a", 30.0, 120.0) == [1.0, 1.0, 3.0, 3.0]


def test_parquet_of_three_columns(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a", "seconds DOUBLE, guest TEXT, demand DOUBLE", [(10, "a", 1), (20, "a", 2)])
    assert traces.read(file).points == {"a": [(0.0, 1.0), (10.0, 2.0)]}


def test_fragments_of_opendc_follow_each_other(tmp_path: Path) -> None:
    rows = [(7, 300_000, 1.5), (8, 300_000, 9.0), (7, 600_000, 2.5), (7, 300_000, 0.0)]
    file = parquet(tmp_path / "a.parquet", "id INTEGER, duration BIGINT, cpu_usage DOUBLE", rows)
    found = traces.read(file)
    assert found.points == {"7": [(0.0, 1.5), (300.0, 2.5), (900.0, 0.0)], "8": [(0.0, 9.0)]}
    assert "processors" in found.demand
    assert found.sampled("7", 300.0, 1200.0) == [1.5, 2.5, 2.5, 0.0]


def test_a_recording_of_our_own(tmp_path: Path) -> None:
    header = Header(
        scheduler="guest-memory",
        sustain="0",
        host="h",
        kernel="k",
        started="2026-01-01T00:00:00",
        period_s=10,
    )
    with Recorder(tmp_path / "rec", header) as recorder:
        for at in (1000.0, 1010.0):
            told = guest("b", active_buffer_bytes=None, total_bytes=2 * GIB, free_bytes=GIB, classes_at_s=at)
            silent = guest("c", active_buffer_bytes=None, free_bytes=None)
            recorder.write(observation(guest("a", classes_at_s=at), told, silent, at_s=at))
    found = traces.read(tmp_path / "rec")
    assert found.points == {"a": [(0.0, 1536 * MIB), (10.0, 1536 * MIB)], "b": [(0.0, GIB), (10.0, GIB)]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column seconds, guest, demand"),
        (b"seconds,guest\n1,a\n", "no column demand"),
        (b"seconds,guest,demand\n1,a,much\n", "line 2: seconds and demand must be numbers"),
        (b"seconds,guest,demand\n", "nobody's demand"),
        (b"PAR1 and so on", "no Parquet that can be read"),
        (b'{"recording": 99}', "is not a recording"),
        (b"\x7fELF\xff\xfe\n", "no column"),
    ],
)
def test_a_wrong_file_is_named_with_a_hint(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "wrong"
    file.write_bytes(content)
    with pytest.raises(RecordingError, match=said) as raised:
        traces.read(file)
    assert str(file) in str(raised.value)
    assert raised.value.hint


def test_parquet_of_something_else_tells_its_columns(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a", "id INTEGER, mem_capacity BIGINT", [(1, 2)])
    with pytest.raises(RecordingError, match="has the columns id, mem_capacity"):
        traces.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        traces.read(tmp_path / "none")
