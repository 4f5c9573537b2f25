"""What can still be moved on the battery, and how commits are slowed to keep to it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.powerfail.budget import (
    ALONE,
    NO_LIMITS,
    POWER_STATES,
    Bandwidth,
    BudgetPolicy,
    Limits,
    Reach,
    budget_bytes,
    limits,
    usable_now_s,
    usable_s,
)
from sustain.powerfail.decide import Power, PowerMemory, PowerPolicy, decide
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
    measured.note(10, 1.0)
    assert measured.low() == 10, "one sample is all there is"
    for _ in range(99):
        measured.note(1000, 1.0)
    assert measured.low() == 1000, "one in a hundred does not count"
    for _ in range(9):
        measured.note(500, 1.0)
    for _ in range(3):
        measured.note(1000, 1.0)
    assert measured.low() == 500
    assert measured.low(percentile=50.0) == 1000
    measured.note(100, 0.0)
    assert budget_bytes(60, measured.low()) == 30_000


def test_a_fall_of_the_bandwidth_counts_at_once_and_a_rise_has_to_last() -> None:
    measured = Bandwidth(samples=64)
    for _ in range(64):
        measured.note(1000, 1.0)
    measured.note(100, 1.0)
    assert measured.low() == 100
    for _ in range(2):
        measured.note(1000, 1.0)
        assert measured.low() == 100
    measured.note(1000, 1.0)
    assert measured.low() == 1000
    for _ in range(10):
        measured.note(0, 1.0)
        measured.note(1000, 1.0)
    assert measured.low() == 0, "nothing was moved, and that was measured"


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=200))
def test_the_low_bandwidth_is_one_that_was_measured_and_no_more_than_the_newest(rates: list[float]) -> None:
    measured = Bandwidth()
    for rate in rates:
        measured.note(int(rate), 1.0)
    low = measured.low()
    assert low in [int(rate) for rate in rates[-64:]]
    assert low is not None
    assert low <= min(int(rate) for rate in rates[-3:])


def test_battery_time_runs_down_on_battery_only() -> None:
    said = 100 * NS
    assert usable_now_s(None, 0, Power.ON_AC, 0) is None
    assert usable_now_s(said, 0, Power.ON_AC, 1000 * NS) == 100
    assert usable_now_s(said, 0, Power.UNKNOWN, 1000 * NS) == 100
    for power in (Power.FLAPPING, Power.ON_BATTERY, Power.LOW, Power.FORCED_SHUTDOWN):
        assert usable_now_s(said, 0, power, 30 * NS) == 70
        assert usable_now_s(said, 0, power, 1000 * NS) == 0
    assert usable_now_s(said, 50 * NS, Power.ON_BATTERY, 0) == 100, "a clock that was read before"


def test_every_state_of_the_power_has_its_number() -> None:
    assert set(POWER_STATES) == set(Power)


REACHES = st.builds(
    Reach,
    acked=st.none() | st.integers(0, 2**50),
    bandwidth=st.none() | st.floats(0, 1e12),
    required=st.booleans(),
)
SECONDS = st.floats(0, 1e6)


def test_without_a_battery_there_is_no_limit() -> None:
    assert limits(None, [Reach(5, 1e6, True)], POLICY) == NO_LIMITS == Limits(0, 0, 0, 0)


def test_what_is_not_known_gives_no_credit() -> None:
    unknown_bandwidth, unknown_end, known = Reach(10_000, None), Reach(None, 1e6), Reach(10_000, 1000.0)
    for reaches in ([unknown_bandwidth], [unknown_end, unknown_bandwidth]):
        assert limits(10, reaches, POLICY).limit_lsn == 1
    for reaches in ([], [unknown_end], [unknown_end, unknown_end]):
        assert limits(10, reaches, POLICY) == ALONE, "nothing would be saved by waiting"
    found = limits(10, [unknown_end, known], POLICY)
    assert (found.delay_lsn, found.limit_lsn, found.budget_bytes) == (15_000, 19_000, 10_000)
    assert found.delay_limit_ns == 50_000_000
    required = replace(unknown_end, required=True)
    assert limits(10, [required, known], POLICY).limit_lsn == 1
    assert limits(10, [required], POLICY).limit_lsn == 1
    assert limits(10, [unknown_end, replace(known, required=True)], POLICY) == found
    assert limits(0, [known], POLICY).limit_lsn == 10_000, "no time left: nothing more than is held there"
    assert limits(0, [Reach(0, 1000.0)], POLICY).limit_lsn == 1, "0 would be no limit"


def test_all_required_destinations_or_any_of_the_others() -> None:
    ahead, behind = Reach(50_000, 100.0), Reach(10_000, 1000.0)
    assert limits(10, [ahead, behind], POLICY).limit_lsn == 50_900
    both = [replace(each, required=True) for each in (ahead, behind)]
    assert limits(10, both, POLICY).limit_lsn == 19_000
    assert limits(10, both, POLICY).budget_bytes == 10_000


@given(SECONDS, st.lists(REACHES, max_size=6))
def test_what_is_allowed_gets_away_in_time(seconds: float, reaches: list[Reach]) -> None:
    found = limits(seconds, reaches, POLICY)
    assert 1 <= found.delay_lsn <= found.limit_lsn < 2**63
    if found.limit_lsn == 1 or found == ALONE:
        return

    def gets_away(reach: Reach) -> bool:
        if reach.acked is None or reach.bandwidth is None:
            return False
        return found.limit_lsn <= max(1, reach.acked + seconds * reach.bandwidth)

    required = [each for each in reaches if each.required]
    assert all(map(gets_away, required)) if required else any(map(gets_away, reaches))


@given(SECONDS, st.lists(REACHES, max_size=6), st.integers(0, 5), st.floats(0, 1))
def test_less_of_anything_never_allows_more(
    seconds: float, reaches: list[Reach], which: int, share: float
) -> None:
    before = limits(seconds, reaches, POLICY)
    assert limits(seconds * share, reaches, POLICY).limit_lsn <= before.limit_lsn
    if which < len(reaches) and reaches[which].bandwidth is not None:
        slower = list(reaches)
        slower[which] = replace(slower[which], bandwidth=(slower[which].bandwidth or 0) * share)
        assert limits(seconds, slower, POLICY).limit_lsn <= before.limit_lsn
        slower[which] = replace(slower[which], bandwidth=None)
        assert limits(seconds, slower, POLICY).limit_lsn <= before.limit_lsn
