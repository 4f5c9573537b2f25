"""What can still be moved on the battery, and how commits are slowed to keep to it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.powerfail.budget import Bandwidth, BudgetPolicy, budget_bytes, delay_s, usable_s
from sustain.powerfail.decide import PowerMemory, PowerPolicy, decide
from sustain.powerfail.readings import from_nut, unknown

NS = 1_000_000_000
POLICY = BudgetPolicy(margin_s=10, latency_s=2)


def after(*said: tuple[float, str, float | None]) -> PowerMemory:
    """Of readings (second, status, runtime)."""
    memory = PowerMemory()
    for at_s, status, runtime_s in said:
        variables = {"ups.status": status, "battery.runtime.low": "60"}
        if runtime_s is not None:
            variables["battery.runtime"] = str(runtime_s)
        reading = unknown(int(at_s * NS), "lost") if status == "?" else from_nut(variables, int(at_s * NS))
        memory = decide(reading, memory, PowerPolicy(), int(at_s * NS))
    return memory


def test_on_ac_the_whole_runtime_less_what_is_held_back() -> None:
    assert usable_s(after((0, "OL", 600)), POLICY, 0)[0] == 600 - 60 - 12


def test_in_an_outage_the_countdown_bounds_what_the_battery_says() -> None:
    memory = after((0, "OL", 600), (1, "OB", 300), (31, "OB", 900))
    assert usable_s(memory, POLICY, 31 * NS)[0] == 300 - 30 - 72


def test_a_runtime_that_collapses_counts_at_once() -> None:
    memory = after((0, "OL", 600), (1, "OB", 600), (2, "OB", 100))
    assert usable_s(memory, POLICY, 2 * NS)[0] == 100 - 72


def test_a_reading_grows_old_in_an_outage() -> None:
    memory = after((0, "OL", 600), (1, "OB", 600), (2, "OB", 200))
    assert usable_s(memory, POLICY, 52 * NS)[0] == pytest.approx(200 - 50 - 72)


def test_a_runtime_that_is_said_late_is_counted_from_the_beginning() -> None:
    memory = after((0, "OL", None), (1, "OB", None), (21, "OB", 300))
    assert usable_s(memory, POLICY, 21 * NS)[0] == 300 - 20 - 72


@pytest.mark.parametrize("said", [(2, "OB LB", 500), (2, "FSD OB", 500)])
def test_nothing_is_left_when_it_is_low_or_forced(said: tuple[float, str, float]) -> None:
    memory = after((0, "OL", 600), (1, "OB LB", 600), said)
    assert usable_s(memory, POLICY, 3 * NS)[0] == 0


def test_unknown_is_unknown_and_not_zero() -> None:
    assert usable_s(PowerMemory(), POLICY, 0)[0] is None
    assert usable_s(after((0, "OL", None)), POLICY, 0)[0] is None
    assert usable_s(after((0, "OL", None)), replace(POLICY, assumed_runtime_s=200), 0)[0] == 200 - 72
    assert budget_bytes(100, None) == 0


def test_a_source_that_is_lost_on_ac_takes_nothing_out_of_the_battery() -> None:
    seconds, why = usable_s(after((0, "OL", 600), (100, "?", None)), POLICY, 100 * NS)
    assert seconds == 600 - 72
    assert "100 s ago" in why


def test_the_low_bandwidth_is_what_was_nearly_always_reached() -> None:
    measured = Bandwidth(samples=100)
    assert measured.low() is None
    for _ in range(99):
        measured.note(1000, 1.0)
    measured.note(10, 1.0)
    assert measured.low() == 1000
    for _ in range(9):
        measured.note(500, 1.0)
    assert measured.low() == 500
    measured.note(0, 1.0)
    measured.note(100, 0.0)
    assert budget_bytes(60, measured.low()) == 30_000


def test_a_fall_of_the_bandwidth_counts_soon() -> None:
    measured = Bandwidth(samples=64)
    for _ in range(64):
        measured.note(1000, 1.0)
    for _ in range(4):
        measured.note(100, 1.0)
    assert measured.low() == 100


def test_delays_grow_between_the_thresholds() -> None:
    assert delay_s(0, 0, POLICY) == 0
    assert delay_s(499, 1000, POLICY) == 0
    assert delay_s(900, 1000, POLICY) is None
    assert delay_s(1, 0, POLICY) is None
    found = [delay_s(n, 1000, POLICY) for n in range(500, 900)]
    assert found == sorted(each for each in found if each is not None)
    assert 0 < (found[-1] or 0) <= POLICY.delay_limit_s


@given(st.integers(0, 2**50), st.integers(0, 2**50))
def test_more_unshipped_never_waits_less(unshipped: int, budget: int) -> None:
    now, more = delay_s(unshipped, budget, POLICY), delay_s(unshipped + 1, budget, POLICY)
    assert more is None or (now is not None and more >= now)
