"""Classes of packages, and that each is left later than it is entered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.packages.capacity import Room, slowdown, waiting
from sustain.schedulers.packages.classify import Class, classify
from sustain.schedulers.packages.model import Package
from sustain.schedulers.packages.policy import Policy

POLICY = Policy()


@pytest.mark.parametrize(
    ("load", "independent", "before", "wanted"),
    [
        (0.85, 0.0, None, Class.HIGH),
        (0.75, 0.0, None, Class.MEDIUM),
        (0.75, 0.0, Class.HIGH, Class.HIGH),
        (0.35, 0.0, Class.MEDIUM, Class.MEDIUM),
        (0.35, 0.0, Class.INEFFICIENT, Class.INEFFICIENT),
        (0.01, 0.9, None, Class.PARKED),
        (0.10, 0.60, None, Class.EFFICIENT),  # of its idle time, 67 %
        (0.10, 0.50, None, Class.INEFFICIENT),
        (0.10, 0.50, Class.EFFICIENT, Class.EFFICIENT),
        (0.10, 0.30, Class.EFFICIENT, Class.INEFFICIENT),
        (0.01, None, None, Class.LIGHT),
        (0.90, None, None, Class.HIGH),
    ],
)
def test_classes(load: float, independent: float | None, before: Class | None, wanted: Class) -> None:
    assert classify(load, independent, before, POLICY) is wanted


@given(st.floats(0, 1.2), st.one_of(st.none(), st.floats(0, 1)), st.sampled_from([None, *Class]))
def test_what_stands_still_stays_what_it_is(
    load: float, independent: float | None, before: Class | None
) -> None:
    once = classify(load, independent, before, POLICY)
    assert classify(load, independent, once, POLICY) is once


@given(st.floats(0.1, 60), st.integers(1, 64))
def test_waiting_grows_with_demand_and_falls_with_servers(demand: float, servers: int) -> None:
    assert waiting(demand, servers) >= 0
    if demand < 0.9 * servers:
        assert waiting(demand * 1.1, servers) >= waiting(demand, servers)
        assert waiting(demand, servers + 1) <= waiting(demand, servers)


def test_waiting_for_one_server_is_known_exactly() -> None:
    """M/M/1: ρ/(1−ρ) of the service time; Sakasegawa's formula is exact there."""
    assert waiting(0.5, 1) == pytest.approx(1.0)
    assert waiting(0.8, 1) == pytest.approx(4.0)


def test_what_is_known_of_frequency_counts_and_what_is_not_is_said() -> None:
    rooms = [Room(each, tuple(range(8)), 8, 8.0) for each in range(2)]
    known = {each: Package(number=each, base_hz=2.0e9, most_hz=3.4e9) for each in range(2)}
    found = slowdown(6.0, rooms, rooms[:1], known, 0.0, POLICY)
    # 3 of 8 cores on each: 3.0 GHz by the line; 6 of 8 on one: 2.4 GHz.
    assert found.frequency == pytest.approx(1 - 2.4 / 3.0)
    unknown = slowdown(6.0, rooms, rooms[:1], {}, 0.5, POLICY)
    assert unknown.frequency is None
    assert unknown.memory == pytest.approx(0.15)
    assert "of frequency nothing is known" in unknown.words
