"""What is told of a plan: every figure of a target and of a block, pictures of blocks, and figures to watch."""

import struct
import zlib
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from sim.large_pages.world import Load, Ours, World

from sustain.errors import ConfigError, UnknownTarget
from sustain.schedulers.large_pages import explain, heat, heat_png
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


def test_what_is_filled_to_spare_says_so() -> None:
    """Of four blocks with 40 of 80 pages used there is memory to spare for two, of one with 20 for none."""
    used, present = np.array([40, 40, 40, 40, 20]), np.full(5, 80)
    policy = msgspec.structs.replace(_POLICY, budget_bytes=None, spare_share=0.4, residence_s=20)
    world = World([Load("a", present, lambda _: used)])
    ours, said = Ours(policy), []
    for _ in range(4):
        said += [each.reason for each in world.step(ours)]
    assert ours.last is not None
    assert said == ["40 of 512 pages accessed, 80 present: there is memory to spare for filling the rest"] * 2
    assert "from 32 on as far as there is memory to spare" in explain.of_target(ours.last, "a", policy)
    refused = explain.of_block(ours.last, "a", 4 * BLOCK_BYTES, policy)
    assert "found         bloat: 40 of 512 pages accessed, 80 present: there is no room" in refused
    low = explain.of_block(ours.last, "a", 5 * BLOCK_BYTES, policy)
    assert "found         low: 20 of 512 pages accessed, less than 32" in low
    off = msgspec.structs.replace(policy, spare_share=0.0)
    without = Ours(off)
    for _ in range(4):
        world.step(without)
    assert without.last is not None
    assert "less than 64" in explain.of_block(without.last, "a", 4 * BLOCK_BYTES, off)


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


def _decoded(file: bytes) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], dict[str, str]]:
    """The pixels of a PNG of indexed colours (lines, columns, red-green-blue) and its texts, by the format's words."""
    assert file[:8] == bytes((137, 80, 78, 71, 13, 10, 26, 10))
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at < len(file):
        (size,) = struct.unpack_from(">I", file, at)
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", file, at + 8 + size) == (zlib.crc32(file[at + 4 : at + 8 + size]),)
        chunks.append((kind, data))
        at += 12 + size
    kinds = [kind for kind, _ in chunks]
    assert (kinds[:2], kinds[-2:]) == ([b"IHDR", b"PLTE"], [b"IDAT", b"IEND"])
    width, height, depth, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, compression, filters, interlaced) == (8, 3, 0, 0, 0)
    palette = np.frombuffer(chunks[1][1], np.uint8).reshape(-1, 3)
    lines = np.frombuffer(zlib.decompress(chunks[-2][1]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any(), "every line is as it is"
    assert lines.max() < len(palette) <= 256
    texts = {}
    for kind, data in chunks[2:-2]:
        keyword, _, rest = data.partition(b"\0")
        assert (kind, rest[:4]) == (b"iTXt", b"\0\0\0\0")
        texts[keyword.decode("latin-1")] = rest[4:].decode()
    return palette[lines[:, 1:]], texts


def _hex(pixel: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    return "#" + pixel.tobytes().hex()


def test_a_png_has_each_block_in_its_place_with_its_colours() -> None:
    columns = explain.as_columns(_plan(), "a")
    far = 5 * heat.COLUMNS * BLOCK_BYTES  # in a row of its own, after a gap
    shown = {
        "address": [*columns["address"], far, far + BLOCK_BYTES, far + 63 * BLOCK_BYTES],
        "estimate": [*columns["estimate"], None, 512.0, 256.0],
        "large": [*columns["large"], False, True, False],
        "finding": [*columns["finding"], "unknown", "cold", "collapse"],
    }
    pixels, texts = _decoded(heat_png.png("dä <b>", shown))
    assert texts["Title"] == "dä <b>: accessed pages of each block of 2 MiB"
    assert f"rows from 0x0, {far:#x}." in texts["Description"]

    def cell(line: int, place: int) -> tuple[str, str]:
        """(inside, border) of a block."""
        y, x = heat_png.TOP + line * heat.CELL, heat_png.EDGE + place * heat.CELL
        inside, frame = pixels[y + 3, x + 3], pixels[y, x]
        assert (pixels[y : y + 8, x] == frame).all()
        assert (pixels[y, x : x + 8] == frame).all()
        assert (pixels[y + 1 : y + 7, x + 1 : x + 7] == inside).all()
        return _hex(inside), _hex(frame)

    large = heat.COLOURS["L"]
    assert cell(0, 1) == ("#ffffff", heat.PLAIN)
    assert cell(0, 2)[1] == heat.PLAIN
    assert [cell(0, place)[1] for place in (3, 4)] == [large, large]
    assert cell(1, 0) == (heat.GREY, heat.PLAIN)
    assert cell(1, 1) == ("#ff0000", heat.COLOURS["-"])
    red, green, blue = bytes.fromhex(cell(1, 63)[0][1:])
    assert (red, green) == (255, blue)
    assert green == pytest.approx(128, abs=2)
    assert cell(1, 63)[1] == heat.COLOURS["+"]
    assert cell(0, 0) == cell(1, 2) == ("#ffffff", "#ffffff"), "no block, no cell"
    used = [int.from_bytes(bytes.fromhex(cell(0, place)[0][3:5])) for place in (1, 2, 3, 4)]
    assert used == sorted(used, reverse=True)
    legend = pixels[: heat_png.TOP].reshape(-1, 3)
    samples = {_hex(each) for each in np.unique(legend, axis=0)}
    assert {"#ffffff", "#ff0000", heat.GREY, *heat.COLOURS.values()} <= samples


def test_a_png_of_nothing_is_one() -> None:
    pixels, texts = _decoded(heat_png.png("none", {"address": []}))
    assert len(pixels) == heat_png.TOP + heat_png.EDGE
    assert "rows from none" in texts["Description"]


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
