"""What is told of a plan: every figure of a target and of a block, pictures of blocks, and figures to watch."""

from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from sim.large_pages.world import Load, Ours, World

from sustain.errors import ConfigError, UnknownTarget
from sustain.schedulers.large_pages import explain, heat
from sustain.schedulers.large_pages.measures import measures
from sustain.schedulers.large_pages.model import BLOCK_BYTES, PAGES
from sustain.schedulers.large_pages.plan import Finding, Plan
from sustain.schedulers.large_pages.policy import Policy, TargetPolicy, check
from sustain.schedulers.large_pages.words import why

_POLICY = Policy(counting_s=0, least_counts=2, budget_bytes=2 * BLOCK_BYTES, by_shares=0)


def _plan(periods: int = 4) -> Plan:
    """Two of four blocks are large; of b nothing is used."""
    used = np.array([0, 100, 300, 500])
    world = World(
        [Load("a", np.full(4, PAGES), lambda _: used), Load("b", np.full(2, 7), lambda _: np.zeros(2, int))]
    )
    ours = Ours(_POLICY)
    for _ in range(periods):
        world.step(ours)
    assert ours.last is not None
    return ours.last


def test_a_target_is_explained_with_its_figures() -> None:
    text = explain.of_target(_plan(), "a", _POLICY)
    assert "process 100" in text
    assert "4, of which 4 can be large and 2 are" in text
    assert "coverage      88.9%" in text  # 800 of 900
    assert "2 blocks kept" in text
    with pytest.raises(UnknownTarget, match="c: no such target"):
        explain.of_target(_plan(), "c", _POLICY)


def test_a_block_is_explained_by_any_address_in_it() -> None:
    plan = _plan()
    large = explain.of_block(plan, "a", 4 * BLOCK_BYTES + 12345, _POLICY)
    assert "500 of 512 pages accessed" in large
    assert "found         kept" in large
    waits = explain.of_block(plan, "a", 2 * BLOCK_BYTES, _POLICY)
    assert "found         budget: 100 of 512 pages accessed, worth 100" in waits
    with pytest.raises(UnknownTarget, match="0xa00000"):
        explain.of_block(plan, "a", 5 * BLOCK_BYTES, _POLICY)


@pytest.mark.parametrize("text", ["x", "-1", "0x1ffffffffffffffff", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        explain.parse_address(text)


def test_every_finding_has_its_words() -> None:
    plan = _plan()
    found = {why(kind, 0, plan.seen.blocks, plan.memory, 1.0, _POLICY, plan.at_s) for kind in Finding}
    assert len(found) >= len(Finding) - 2  # kept and settled ones differ by their figures alone
    assert all(len(each) > 10 for each in found)


def test_a_plan_as_json_counts_every_block_once() -> None:
    plan = _plan()
    found = msgspec.json.decode(msgspec.json.encode(plan.as_dict()))
    assert sum(found["findings"].values()) == 6
    assert found["totals"]["large"] == 2
    assert found["targets"][0]["coverage"] == pytest.approx(8 / 9)
    assert found["targets"][1]["coverage"] is None


def test_measures_have_their_targets_and_no_unknowns() -> None:
    plan = _plan()
    found = {(each.name, each.labels): each.value for each in measures(plan.seen, plan)}
    of_a = (("target", "a"), ("counting", "page-idle"))
    assert found["sustain_large_pages_target_large", of_a] == 2
    assert found["sustain_large_pages_target_coverage", of_a] == pytest.approx(8 / 9)
    assert ("sustain_large_pages_target_coverage", (("target", "b"), of_a[1])) not in found
    assert found["sustain_large_pages_findings", (("finding", "kept"),)] == 2


def test_levels_rise_with_pages() -> None:
    shown = [heat.level(pages) for pages in (0, 1, 64, 65, 128, 300, 511, 512)]
    order = "·▁▂▃▄▅▆▇█"
    assert [order.index(each) for each in shown] == sorted(order.index(each) for each in shown)
    assert (shown[0], shown[-1], heat.level(None)) == ("·", "█", "?")


def test_a_picture_has_each_block_in_its_place() -> None:
    columns = explain.as_columns(_plan(), "a")
    lines = heat.text(columns)
    assert lines[0].startswith("           0x0   ·▂▅█")
    assert lines[1] == " " * 16 + "   LL"
    far = dict(columns, address=[0, heat.COLUMNS * BLOCK_BYTES, *columns["address"][2:]])
    far["address"] = sorted(far["address"])
    assert len([line for line in heat.text(far) if "0x" in line]) == 2


def test_what_waits_for_its_turn_is_told_in_its_direction() -> None:
    columns = {"finding": ["rate", "rate"], "large": [True, False]}
    assert [heat.mark(columns, row) for row in (0, 1)] == ["-", "+"]
    plan = _plan()
    said = [why(Finding.RATE, row, plan.seen.blocks, plan.memory, 1.0, _POLICY, 1.0) for row in (3, 0)]
    assert ["mapped small" in each for each in said] == [True, False]
    assert ["mapped large" in each for each in said] == [False, True]


def test_a_drawing_is_well_formed_and_has_each_block_with_its_title() -> None:
    columns = explain.as_columns(_plan(), "a")
    root = ET.fromstring(heat.svg('<a & "b">', columns))
    space = "{http://www.w3.org/2000/svg}"
    titles = [each.text for each in root.iterfind(f"{space}rect/{space}title")]
    assert titles == [
        "0x200000: 0.0, low",
        "0x400000: 100.0, budget",
        "0x600000: 300.0, kept",
        "0x800000: 500.0, kept",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 0.0},
        {"low": 64.0},
        {"high": 513.0},
        {"fresh_s": 0.0},
        {"budget_share": 1.5},
        {"by_shares": -0.1},
        {"processor_share": 0.0},
        {"default": TargetPolicy(shares=0)},
        {"targets": {"a": TargetPolicy(most_bytes=-1)}},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(changes: dict[str, object]) -> None:
    check(_POLICY)
    with pytest.raises(ConfigError, match="policy"):
        check(msgspec.structs.replace(_POLICY, **changes))
