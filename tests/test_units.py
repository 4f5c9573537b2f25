"""Sizes and durations: what people write is read exactly, everything else is refused with a hint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.errors import ConfigError
from sustain.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (0, 0),
        (4096, 4096),
        ("17", 17),
        ("17B", 17),
        ("256MiB", 256 << 20),
        ("256 mib", 256 << 20),
        ("1.5GiB", 3 << 29),
        ("0.1KiB", None),
        ("64M", 64 << 20),
        ("10MB", 10_000_000),
        ("2t", 2 << 40),
        (".5KiB", 512),
        ("", None),
        ("MiB", None),
        ("1 2", None),
        ("1e3", None),
        ("-5", None),
        (-5, None),
        ("5 parsecs", None),
        ("½MiB", None),
        (True, None),
        (1.5, None),
        (None, None),
    ],
)
def test_parse_size(text: int | str, size_bytes: int | None) -> None:
    if size_bytes is None:
        with pytest.raises(ConfigError, match="log size") as caught:
            parse_size(text, "log size")
        assert caught.value.hint
    else:
        assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("3s", 3.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        (2, 2.0),
        (0.25, 0.25),
        ("7", 7.0),
        ("", None),
        ("soon", None),
        ("-1s", None),
        (-1.0, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
    ],
)
def test_parse_duration(text: float | str, duration_s: float | None) -> None:
    if duration_s is None:
        with pytest.raises(ConfigError, match="lease time") as caught:
            parse_duration(text, "lease time")
        assert caught.value.hint
    else:
        assert parse_duration(text) == pytest.approx(duration_s)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_format_size(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0, "0 s"),
        (12e-6, "12 µs"),
        (0.0032, "3.2 ms"),
        (4.5, "4.5 s"),
        (119, "119 s"),
        (720, "12 min"),
        (9000, "2.5 h"),
    ],
)
def test_format_duration(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


@given(st.integers(0, 1 << 50))
def test_what_is_formatted_can_be_read_and_is_close(size_bytes: int) -> None:
    value, unit = format_size(size_bytes).split()
    assert abs(float(value) * parse_size(f"1 {unit}") - size_bytes) <= size_bytes * 0.006
