"""The model of packages beside what others have measured: within 5 %, or the deviation is known and explained."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sim.packages import published
from sim.packages.hardware import HOSTS
from sim.packages.published import EXPLAINED, IDLE, LEVELS, Point

from sustain.errors import RecordingError

_RESULTS = os.environ.get("SUSTAIN_BENCH_SPECPOWER")


def off(points: list[Point]) -> set[str]:
    return {f"{point.host}: {point.what}" for point in points if abs(point.deviation) > 0.05}


def test_the_line_of_rome_and_its_steps() -> None:
    points = published.rome()
    assert len(points) == 9
    assert max(abs(point.deviation) for point in points) < 0.002
    assert points[1].simulated - points[0].simulated == pytest.approx(81, rel=0.005)


def test_a_parked_package_saves_next_to_nothing() -> None:
    points = published.parked()
    assert off(points) == set()
    watts = {point.what: point.simulated for point in points if point.host == "gold-6130-4"}
    assert (
        watts["the others, on average"] - watts["the parked package"] < 0.08 * watts["the others, on average"]
    )


@pytest.mark.parametrize("name", LEVELS)
def test_load_levels_with_four_constants(name: str) -> None:
    points = [point for point in published.levels() if point.host == name]
    assert len(points) == 11
    assert max(abs(point.deviation) for point in points) < 0.03


def test_watts_at_rest_with_one_base_for_all() -> None:
    """Six constants for ten points: three processors of five are met, the others are off by less than 9 %."""
    points = published.idle()
    assert {each.split(":")[0] for each in off(points)} == {"9654", "6787p"}
    assert max(abs(point.deviation) for point in points) < 0.09
    assert {"9654", "6787p"} <= EXPLAINED.keys()


def test_a_constant_that_is_off_is_seen() -> None:
    """What judges can fail: with 81 W per package instead of both together Rome's line is missed."""
    host = HOSTS["rome-2"]
    wrong = replace(host, watts=replace(host.watts, awake_w=81.0))
    assert max(abs(point.deviation) for point in published.rome(wrong)) > 0.3


def test_constants_are_the_fits() -> None:
    for name, watts in LEVELS.items():
        of = HOSTS[name].watts
        fitted = published.fit_levels(HOSTS[name], watts)
        assert fitted == pytest.approx([of.base_w, of.awake_w, of.active_w, of.boost_w], abs=0.01)
    base_w, *pc6_w = published.fit_idle()
    for name, fitted_w in zip(IDLE, pc6_w, strict=True):
        of = HOSTS[f"{name}-2"].watts
        assert (of.base_w, of.pc6_w) == pytest.approx((base_w, fitted_w), abs=0.06)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no-such"):
        published.servers(tmp_path / "no-such.csv")
    (tmp_path / "a.csv").write_text("CPU Description,Chips\nIntel Xeon Platinum 8180,2\n")
    with pytest.raises(RecordingError, match="is no such table"):
        published.servers(tmp_path / "a.csv")


def test_results_are_sorted_by_processor_and_packages(tmp_path: Path) -> None:
    head = "CPU Description,Chips,avg. watts @ 100%,avg. watts @ active idle\n"
    rows = "Intel Xeon Platinum 8180,2,449,51\nIntel Xeon Platinum 8180,22,5000,772\n(Intel Xeon 6787P),1,538,119\n"
    (tmp_path / "a.csv").write_text(head + rows)
    known = published.servers(tmp_path / "a.csv")
    assert known.keys() == {("8180", 2), ("6787p", 1)}
    assert known["8180", 2].full_w == (449.0,)


@pytest.mark.skipif(
    _RESULTS is None,
    reason="SUSTAIN_BENCH_SPECPOWER names SPECpower's results (cloud-carbon-footprint/ccf-coefficients)",
)
def test_medians_of_all_results() -> None:
    """With one package and with two the model is among the servers that there are; with four only near them."""
    known = published.servers(Path(_RESULTS or ""))
    points = published.servers_points(known)
    assert {point.host for point in points if abs(point.deviation) > 0.05} <= EXPLAINED.keys()
    assert max(abs(point.deviation) for point in points if "4 package" not in point.what) < 0.09
    assert max(abs(point.deviation) for point in points) < 0.4
    full_w = published.fit_full(known, HOSTS["8180-2"].watts.base_w)
    for name, fitted_w in full_w.items():
        of, cores = HOSTS[f"{name}-2"].watts, HOSTS[f"{name}-2"].cores
        assert of.awake_w + cores * (of.active_w + of.boost_w) == pytest.approx(fitted_w, abs=0.2)
