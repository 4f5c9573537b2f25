"""Bandwidth is measured while something is on its way, flushes included, and pauses do not count."""

import pytest

from sustain.powerfail.regions.meter import Meter

MIB = 1 << 20


def test_nothing_is_known_before_something_was_taken() -> None:
    meter = Meter()
    assert meter.low() is None
    meter.sent(8 * MIB, 0.0)
    assert meter.low() is None
    meter.taken(100, 0.1)  # too little to say anything
    assert meter.low() is None


def test_a_quarter_of_a_second_is_a_sample() -> None:
    meter = Meter()
    meter.sent(8 * MIB, 10.0)
    meter.taken(2 * MIB, 10.1)
    assert meter.low() is None
    meter.taken(2 * MIB, 10.4)
    assert meter.low() == pytest.approx(10 * MIB)


def test_a_slow_link_is_a_sample_once_a_megabyte_has_gone() -> None:
    meter = Meter()
    meter.sent(MIB, 0.0)
    for step in range(1, 17):
        assert meter.low() is None
        meter.taken(MIB // 16, float(step))
    assert meter.low() == pytest.approx(MIB / 16)


def test_pauses_do_not_count() -> None:
    meter = Meter()
    for start in (0.0, 100.0, 200.0, 300.0):
        meter.sent(MIB, start)
        meter.taken(MIB, start + 0.1)
    assert meter.low() == pytest.approx(10 * MIB)


def test_a_flush_counts() -> None:
    meter = Meter()
    meter.sent(4 * MIB, 0.0)
    meter.taken(4 * MIB, 0.1)
    meter.flush_asked(0.1)
    meter.flushed(4.0)
    assert meter.low() == pytest.approx(MIB)


def test_what_was_cut_says_nothing() -> None:
    meter = Meter()
    meter.sent(8 * MIB, 0.0)
    meter.stopped()
    meter.sent(2 * MIB, 100.0)
    meter.taken(2 * MIB, 101.0)
    assert meter.low() == pytest.approx(2 * MIB)


def test_the_low_end_counts() -> None:
    meter = Meter()
    for start, seconds in enumerate([0.5, 0.5, 0.5, 4.0, 0.5]):
        meter.sent(MIB, 10.0 * start)
        meter.taken(MIB, 10.0 * start + seconds)
    assert meter.low() == pytest.approx(MIB / 4)
