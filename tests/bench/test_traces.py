"""Recorded demand in files of each kind, and what is said of others."""

import math
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec import structs

from bench import traces
from sustain.errors import RecordingError
from sustain.schedulers.guest_memory.model import Observation
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
    assert found.points == {"a": [(0.0, 1.0), (60.0, 3.0)], "b": [(0.0, 5.0)]}
    assert found.guests(1) == ["a"]
    assert found.sampled("a", 30.0, 120.0) == [1.0, 1.0, 3.0, 3.0]


def test_the_longest_are_chosen_not_those_that_end_last(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("seconds,guest,demand\n0,long,1\n36000,long,2\n39999,late,3\n40000,late,4\n")
    found = traces.read(file)
    assert found.guests(2) == ["long", "late"]
    # Before it was there, a guest wanted nothing that could be replayed.
    assert found.points["late"] == [(0.0, 3.0), (1.0, 4.0)]
    # Also of points that nobody shifted.
    points = {"late": [(39.0, 3.0), (40.0, 4.0)], "long": [(0.0, 1.0), (36.0, 2.0)]}
    assert traces.Trace(points, "").guests(1) == ["long"]


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


@pytest.mark.parametrize(
    ("columns", "row", "said"),
    [
        ("seconds TEXT, guest TEXT, demand DOUBLE", ("soon", "a", 1.0), "row 2: seconds must be a number"),
        ("seconds TIMESTAMP, guest TEXT, demand DOUBLE", ("2026-01-01", "a", 1.0), "row 1: seconds must be a number"),
        ("seconds DOUBLE, guest TEXT, demand DOUBLE", (1.0, "a", math.nan), "row 2: demand must be finite"),
        ("seconds DOUBLE, guest TEXT, demand DOUBLE", (math.inf, "a", 1.0), "row 2: seconds must be finite"),
        ("seconds DOUBLE, guest TEXT, demand DOUBLE", (1.0, None, 1.0), "row 2: a value of .* is missing"),
        ("id INTEGER, duration BIGINT, cpu_usage DOUBLE", (7, -300, 1.0), "row 2: duration must be at least 0"),
        ("id INTEGER, duration BIGINT, cpu_usage DOUBLE", (7, 300, -1.0), "row 2: cpu_usage must be at least 0"),
        ("id INTEGER, duration TEXT, cpu_usage DOUBLE", (7, "long", 1.0), "row 2: duration must be a number"),
    ],
)  # fmt: skip
def test_parquet_of_what_is_no_demand(tmp_path: Path, columns: str, row: tuple[Any, ...], said: str) -> None:
    fine = ("2026-01-01" if "TIMESTAMP" in columns else 1, 1, 1)
    with pytest.raises(RecordingError, match=said) as raised:
        traces.read(parquet(tmp_path / "a", columns, [fine, row]))
    assert raised.value.hint


def recording(path: Path, *seen: Observation) -> Path:
    header = Header(
        scheduler="guest-memory",
        sustain="0",
        host="h",
        kernel="k",
        started="2026-01-01T00:00:00",
        period_s=10,
    )
    with Recorder(path, header) as recorder:
        for each in seen:
            recorder.write(each)
    return path


def test_a_recording_of_our_own(tmp_path: Path) -> None:
    seen = []
    for at in (1000.0, 1010.0):
        told = guest("b", active_buffer_bytes=None, total_bytes=2 * GIB, free_bytes=GIB, classes_at_s=at)
        silent = guest("c", active_buffer_bytes=None, free_bytes=None)
        seen.append(observation(guest("a", classes_at_s=at), told, silent, at_s=at))
    found = traces.read(recording(tmp_path / "rec", *seen))
    assert found.points == {"a": [(0.0, 1536 * MIB), (10.0, 1536 * MIB)], "b": [(0.0, GIB), (10.0, GIB)]}


def test_each_start_of_a_guest_and_each_boot_in_it_is_a_guest(tmp_path: Path) -> None:
    told = [("1", ""), ("1", "x"), ("1", ""), ("1", "y"), ("1", ""), ("2", "z")]
    seen = []
    for number, (life, boot) in enumerate(told):
        each = guest("a", active_buffer_bytes=None, total_bytes=9, free_bytes=8 - number)
        seen.append(observation(structs.replace(each, life=life, boot=boot), at_s=100.0 + number))
    assert traces.read(recording(tmp_path / "rec", *seen)).points == {
        "a": [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)],
        "a, start 2": [(0.0, 4.0), (1.0, 5.0)],
        "a, start 3": [(0.0, 6.0)],
    }


def test_two_boots_of_a_host_in_one_recording_are_refused(tmp_path: Path) -> None:
    seen = [observation(guest("a"), at_s=at) for at in (1000.0, 1010.0, 20.0)]
    with pytest.raises(RecordingError, match=r"line 4: .*another boot of the host") as raised:
        traces.read(recording(tmp_path / "rec", *seen))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column seconds, guest, demand"),
        (b"seconds,guest\n1,a\n", "no column demand"),
        (b"seconds,guest,demand\n1,a,much\n", "line 2: demand must be a number, and is 'much'"),
        (b"seconds,guest,demand\n1,a,1\nnan,a,1\n", "line 3: seconds must be finite, and is nan"),
        (b"seconds,guest,demand\n-inf,a,1\n", "line 2: seconds must be finite, and is -inf"),
        (b"seconds,guest,demand\n1,a,nan\n", "line 2: demand must be finite, and is nan"),
        (b"seconds,guest,demand\n1,a,1e999\n", "line 2: demand must be finite"),
        (b"seconds,guest,demand\n1,a,-0.5\n", "line 2: demand must be at least 0, and is -0.5"),
        (b"seconds,guest,demand\n1,a\n", "line 2: demand must be a number"),
        (b"seconds,demand,guest\n1,2\n", "line 2: has no guest"),
        (b"seconds,guest,demand\n1,a," + b"9" * 200_000, "field larger"),
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
