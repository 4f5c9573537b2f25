"""From readings to what is the matter."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.powerfail.decide import Power, PowerMemory, PowerPolicy, decide
from sustain.powerfail.readings import PowerReading, from_nut, unknown

NS = 1_000_000_000
POLICY = PowerPolicy(
    debounce_s=5, settle_s=10, stale_s=15, flap_window_s=60, flap_changes=4
)  # seconds; the tests read once a second


def nut(at_s: float, status: str, runtime_s: float | None = 600) -> PowerReading:
    variables = {"ups.status": status}
    if runtime_s is not None:
        variables["battery.runtime"] = str(runtime_s)
    return from_nut(variables, int(at_s * NS))


def play(words: Iterable[str], memory: PowerMemory | None = None, begin_s: int = 100) -> list[PowerMemory]:
    """One reading a second; "?" is a source that does not answer."""
    seen: list[PowerMemory] = []
    now = memory or PowerMemory()
    for at_s, word in enumerate(words, begin_s):
        reading = unknown(at_s * NS, "no answer") if word == "?" else nut(at_s, word)
        now = decide(reading, now, POLICY, at_s * NS)
        assert now.reason
        seen.append(now)
    return seen


def powers(words: Iterable[str], memory: PowerMemory | None = None) -> list[Power]:
    return [each.power for each in play(words, memory)]


def test_on_ac() -> None:
    assert powers(["OL", "OL CHRG"]) == [Power.ON_AC] * 2


def test_an_outage_is_believed_after_the_debounce_time_and_not_before() -> None:
    seen = powers(["OL"] + ["OB DISCHRG"] * 8)
    assert seen[1:6] == [Power.FLAPPING] * 5
    assert seen[6:] == [Power.ON_BATTERY] * 3


def test_one_reading_after_a_long_silence_is_no_outage() -> None:
    first = play(["OL"])[-1]
    late = decide(nut(200, "OB"), first, POLICY, 200 * NS)
    assert late.power is Power.FLAPPING


def test_a_short_blink_never_becomes_an_outage() -> None:
    assert not any(power.outage for power in powers((["OL"] * 5 + ["OB"] * 4) * 20))


def test_a_supply_that_comes_and_goes_flaps() -> None:
    seen = powers((["OL"] * 2 + ["OB"] * 2) * 4)
    assert seen[-1] is Power.FLAPPING
    assert not any(power.outage for power in seen)
    assert play(["OL"] * 70, play((["OL"] * 2 + ["OB"] * 2) * 4)[-1], 120)[-1].power is Power.ON_AC


def test_low_needs_two_readings_but_no_debounce() -> None:
    assert powers(["OL", "OB LB", "OB"])[1:] == [Power.FLAPPING] * 2
    assert powers(["OL", "OB LB", "OB LB"])[-1] is Power.LOW


def test_low_stands_while_the_battery_feeds_the_host() -> None:
    assert powers(["OL"] + ["OB"] * 7 + ["OB LB"] * 2 + ["OB"] * 3)[-3:] == [Power.LOW] * 3


def test_a_low_battery_on_ac_is_no_outage() -> None:
    assert powers(["OL LB CHRG"] * 4) == [Power.ON_AC] * 4


def test_a_forced_shutdown_is_never_taken_back() -> None:
    seen = powers(["OL", "FSD OL", "OL", "OL"] + ["?"] * 20 + ["OL"] * 20)
    assert set(seen[1:]) == {Power.FORCED_SHUTDOWN}


def test_a_lost_source_on_ac_is_unknown_and_no_outage() -> None:
    seen = powers(["OL"] * 3 + ["?"] * 30)
    assert seen[5] is Power.ON_AC
    assert seen[-1] is Power.UNKNOWN
    assert powers(["?"] * 3) == [Power.UNKNOWN] * 3


def test_a_source_that_is_lost_in_an_outage_leaves_it_standing() -> None:
    seen = powers(["OL"] + ["OB"] * 8 + ["?"] * 60)
    assert set(seen[7:]) == {Power.ON_BATTERY}


def test_a_source_that_is_lost_before_an_outage_is_believed_makes_none() -> None:
    seen = powers(["OL"] + ["OB"] * 2 + ["?"] * 60)
    assert not any(power.outage for power in seen)
    assert seen[-1] is Power.UNKNOWN


def test_an_outage_ends_when_ac_has_settled() -> None:
    seen = powers(["OL"] + ["OB"] * 8 + ["OL"] * 15)
    assert seen[9:19] == [Power.ON_BATTERY] * 10
    assert seen[-1] is Power.ON_AC
    assert play(["OL"] + ["OB"] * 8 + ["OL"] * 15)[-1].outage_ns is None


def test_two_outages_in_a_row_are_each_believed_by_themselves() -> None:
    seen = play((["OL"] * 80 + ["OB"] * 10) * 2)
    assert seen[89].power is seen[179].power is Power.ON_BATTERY
    first, second = seen[89].outage_ns, seen[179].outage_ns
    assert first is not None
    assert second is not None
    assert second - first == 90 * NS


@pytest.mark.parametrize("status", ["", "WAIT", "ALARM", "CHRG"])
def test_a_status_without_a_supply_is_a_problem(status: str) -> None:
    assert nut(1, status).problem


@pytest.mark.parametrize("text", ["", "nan", "inf", "-3", "soon"])
def test_a_runtime_that_is_no_figure_is_unknown(text: str) -> None:
    assert from_nut({"ups.status": "OB", "battery.runtime": text}, 1).runtime_s is None


WORDS = st.lists(st.sampled_from(["OL", "OB", "OB LB", "OL LB", "?", "OL CHRG", "WAIT"]), max_size=60)


@given(WORDS)
def test_an_outage_always_rests_on_two_readings_on_battery(words: list[str]) -> None:
    in_a_row, believed = 0, False
    for word, power in zip(words, powers(words), strict=True):
        if word not in ("?", "WAIT"):
            in_a_row = in_a_row + 1 if word.startswith("OB") else 0
        if power.outage and not believed:
            assert in_a_row >= 2
        believed = power.outage


@given(WORDS)
def test_without_ac_readings_an_outage_never_ends(words: list[str]) -> None:
    begun = play(["OL"] + ["OB"] * 8)[-1]
    assert begun.power is Power.ON_BATTERY
    without_ac = [word for word in words if not word.startswith("OL")]
    assert all(power.outage for power in powers(without_ac, begun))
