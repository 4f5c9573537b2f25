"""A program that knows nothing of Sustain is frozen, and what lies at the destinations is its memory of that moment."""

import itertools
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.errors import RegionUnsealed
from sustain.host import pagemap
from sustain.powerfail.regions.sink import open_source
from sustain.powerfail.regions.track import Harvest, Tracker, Way, environment
from sustain.replication.credentials import NO_CREDENTIALS
from tests.powerfail.regions.program import PAGE, Program
from tests.powerfail.regions.shipping import Shipping, image, make, runs, same, stands_still, until

PAGES = 4096
WAYS = [
    Way.CONTENT,
    pytest.param(
        Way.WRITE_PROTECT,
        marks=pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN"),
    ),
    pytest.param(
        Way.SOFT_DIRTY,
        marks=pytest.mark.skipif(not pagemap.has_soft_dirty(), reason="this kernel keeps no soft-dirty bits"),
    ),
]


@pytest.fixture
def region(tmp_path: Path) -> Path:
    return make(tmp_path / "region", PAGES)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/saved"


@pytest.fixture
def program(region: Path) -> Iterator[Program]:
    with Program(region, environment(region), free=True) as running:
        yield running


def newest(data: bytes) -> int:
    """The highest number that the program has written."""
    return max(struct.unpack_from("<Q", data, page * PAGE)[0] for page in range(64, len(data) // PAGE))


@pytest.mark.parametrize("way", WAYS)
def test_the_sealed_image_is_the_region_at_the_freeze(
    region: Path, url: str, program: Program, tmp_path: Path, way: Way
) -> None:
    other = f"file://{tmp_path}/other"
    with Shipping(region, [url, other], "--track", way, group=program.pid) as shipping:
        found = shipping.in_step()
        assert found["tracker"] == way
        before = newest(region.read_bytes())
        done = shipping.finish()
        assert stands_still(program, region)
        assert done["frozen_at_boottime_ns"] is not None
        assert [each["acked"] for each in done["destinations"]] == [1, 1]
        same(region, url)
        same(region, other)
        assert newest(image(url)) >= before, "it is from after the freeze"
        shipping.end()
    runs(region)


@pytest.mark.parametrize("way", WAYS)
def test_the_program_goes_on_and_is_sealed_again(region: Path, url: str, program: Program, way: Way) -> None:
    with Shipping(region, [url], "--track", way, group=program.pid) as shipping:
        assert shipping.in_step()["tracker"] == way
        for seal in (1, 2):
            assert shipping.finish()["seal"] == seal
            same(region, url)
            shipping.go_on()
            runs(region)
            shipping.wait(lambda found: found["destinations"][0]["acked"] is None, "the seal is not broken")
        shipping.end()
    with pytest.raises(RegionUnsealed), open_source(url, credentials=NO_CREDENTIALS, name="nv") as source:
        source.seal()


def test_what_a_program_does_in_other_ways_is_saved_as_well(region: Path, url: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with (
        Program(region, environment(region)) as program,
        Shipping(region, [url], group=program.pid) as shipping,
    ):
        shipping.in_step()
        for _ in range(6):
            for _ in range(chance.randrange(1, 6)):
                what = chance.choice(["write", "write", "call", "child", "orphan", "remap", "visit"])
                program.do(what, chance.randrange(1 << 30), chance.choice([1, 5, 300]))
            shipping.finish()
            same(region, url)
            shipping.go_on()
        shipping.end()


@pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN")
def test_bytes_at_the_outage_follow_what_changed(region: Path, url: str) -> None:
    with (
        Program(region, environment(region)) as program,
        Shipping(region, [url], group=program.pid) as shipping,
    ):
        shipping.in_step()
        program.do("write", 1, 2000)
        shipping.wait(
            lambda found: found["dirty_bytes"] == 0 and not found["destinations"][0]["behind_bytes"],
            "what changed is not shipped",
        )
        program.do("write", 2, 40)
        shipping.finish()
        said = shipping.log.read_text()
        same(region, url)
        assert "everything is compared" not in said.split("seal 1")[1]
        shipping.end()


@pytest.mark.parametrize("stage", ["precopy", "final", "sealed"])
def test_killed_and_started_again_to_evacuate(region: Path, url: str, program: Program, stage: str) -> None:
    for _ in range(2):
        with Shipping(region, [url], group=program.pid, rate="64MiB") as first:
            if stage == "precopy":
                first.wait(lambda found: found["destinations"][0]["state"] == "streaming", "not connected")
                time.sleep(random.random() / 20)  # somewhere in it
            else:
                first.in_step()
                first.process.send_signal(signal.SIGUSR1)
                first.wait(
                    lambda found, stage=stage: found["phase"] == stage or found["phase"] == "sealed", stage
                )
            first.kill()
        # With the number that the first one was given: it was perhaps used, and the second one has to find out.
        with Shipping(region, [url], "--evacuate", group=program.pid) as second:
            second.sealed()
            assert stands_still(program, region)
            same(region, url)
            second.go_on()
            runs(region)
            second.end()


def test_a_program_that_always_writes_by_calls_gets_into_step_as_well(region: Path, url: str) -> None:
    with (
        Program(region, environment(region)) as program,
        Shipping(region, [url], group=program.pid, rate="32MiB") as shipping,
    ):
        stop = threading.Event()

        def write() -> None:
            for seed in itertools.count():
                program.do("call", seed, 20)
                if stop.wait(0.01):
                    return

        writing = threading.Thread(target=write)
        writing.start()
        try:
            shipping.wait(lambda found: "by a call" in found["tracker_why"], "the calls are not seen")
            shipping.wait(
                lambda found: found["destinations"][0]["behind_bytes"] < PAGES * PAGE // 4,
                "it is never compared completely",
            )
        finally:
            stop.set()
            writing.join()
        shipping.finish()
        same(region, url)
        shipping.end()


def test_one_that_was_left_frozen_goes_on_when_the_next_one_starts(
    region: Path, url: str, program: Program
) -> None:
    with Shipping(region, [url], group=program.pid) as first:
        first.in_step()
        first.finish()
        first.kill()
    assert stands_still(program, region)
    with Shipping(region, [url], group=program.pid) as second:
        runs(region)
        second.in_step()
        second.end()


def test_power_comes_back_in_the_middle_of_the_final_pass(region: Path, url: str, program: Program) -> None:
    for _ in range(3):
        with Shipping(region, [url], group=program.pid) as shipping:
            shipping.in_step()
            shipping.process.send_signal(signal.SIGUSR1)
            shipping.wait(lambda found: found["phase"] != "precopy", "no final pass")
            shipping.go_on()
            runs(region)
            shipping.wait(lambda found: found["destinations"][0]["acked"] is None, "it stays sealed")
            shipping.finish()
            same(region, url)
            shipping.end()


def test_a_destination_that_fails_does_not_stop_the_others(
    region: Path, url: str, program: Program, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"a file where a directory should be")
    with Shipping(region, [f"file://{blocked}", url], group=program.pid) as shipping:
        shipping.wait(
            lambda found: (
                found["destinations"][0]["state"] == "failed"
                and found["destinations"][1]["state"] == "streaming"
            ),
            "the first must fail, the second must not",
        )
        shipping.process.send_signal(signal.SIGUSR1)
        done = shipping.wait(lambda found: found["phase"] == "sealed", "the second is not sealed")
        assert done["destinations"][0]["error"]
        same(region, url)
        blocked.unlink()  # and it is tried again, also now
        shipping.sealed()
        same(region, f"file://{blocked}")
        shipping.end()


def test_an_older_epoch_is_refused(region: Path, url: str, program: Program) -> None:
    with Shipping(region, [url], group=program.pid, epoch=5) as shipping:
        shipping.in_step()
        shipping.end()
    with Shipping(region, [url], group=program.pid, epoch=4) as shipping:
        found = shipping.wait(lambda found: found["destinations"][0]["state"] == "refused", "not refused")
        assert "epoch" in found["destinations"][0]["error"]
        shipping.process.send_signal(signal.SIGUSR1)
        shipping.wait(lambda found: found["phase"] == "failed", "it cannot be sealed")
        shipping.go_on()
        shipping.end()
    runs(region)


def test_the_program_has_ended_before_the_outage(region: Path, url: str) -> None:
    with (
        Program(region, environment(region)) as program,
        Shipping(region, [url], group=program.pid) as shipping,
    ):
        shipping.in_step()
        program.do("write", 3, 500)
        program.kill()
        shipping.finish()
        same(region, url)
        shipping.end()


def test_a_seal_stands_when_the_program_ended_behind_it(region: Path, url: str) -> None:
    """The supervisor ends the program, then the pre-copier, and then looks at what was sealed."""
    with (
        Program(region, environment(region)) as program,
        Shipping(region, [url], group=program.pid) as shipping,
    ):
        shipping.in_step()
        sealed = shipping.finish()
        program.kill()
        shipping.end()
        left = shipping.status()
        assert (left["phase"], left["seal"]) == ("sealed", sealed["seal"])
        same(region, url)


def test_a_stranger_that_writes_to_the_region_is_frozen_too(region: Path, url: str, program: Program) -> None:
    with (
        Program(region, environment(region), free=True) as stranger,
        Shipping(region, [url], group=program.pid) as s,
    ):
        s.in_step()
        s.finish()
        assert stands_still(stranger, region)
        same(region, url)
        s.go_on()
        s.end()
        assert not stands_still(stranger, region)


def power(region: Path, usable_s: float | None) -> Path:
    path = region.with_name("power.json")
    fresh = region.with_name("power.new")
    fresh.write_text(
        f'{{"usable_s": {"null" if usable_s is None else usable_s}, "state": "x", "at_boottime_ns": 1}}'
    )
    fresh.rename(path)
    return path


def test_the_program_is_held_back_when_more_is_behind_than_the_battery_allows(
    region: Path, url: str, program: Program
) -> None:
    path = power(region, None)
    with Shipping(region, [url], "--power-file", str(path), group=program.pid, rate="1MiB") as shipping:
        shipping.wait(
            lambda found: found["destinations"][0]["bandwidth_bytes_per_s"], "the bandwidth is not measured"
        )
        assert shipping.status()["still_share"] == 0
        power(region, 0.0)  # nothing may be behind
        shipping.wait(
            lambda found: found["budget_bytes"] == 0 and found["still_share"] > 0, "it is not held back"
        )
        power(region, 1e6)
        shipping.wait(lambda found: found["still_share"] == 0, "it is held back for nothing")
        runs(region)
        power(region, 0.0)
        shipping.wait(lambda found: found["still_share"] > 0, "it is not held back")
        shipping.finish()
        same(region, url)
        shipping.end()
    runs(region)


def test_a_tracker_that_misses_pages_is_found_out_by_the_comparison(tmp_path: Path) -> None:
    """The checker of these tests, shown a broken subject: an image that lacks one changed page."""
    region, url = make(tmp_path / "region", 128), f"file://{tmp_path}/saved"
    with Shipping(region, [url], "--evacuate") as shipping:
        shipping.sealed()
    same(region, url)
    with region.open("r+b") as file:
        file.seek(77 * PAGE)
        file.write(b"missed")
    with pytest.raises(AssertionError, match=r"1 pages differ, among them \[77\]"):
        same(region, url)


class Forgetful(Tracker):
    """Works, but for one page."""

    def __init__(self, inner: Tracker, page: int) -> None:
        self._inner, self._page = inner, page
        self.way, self.why = inner.way, inner.why

    def harvest(self) -> Harvest:
        found = self._inner.harvest()
        pages = [page for first, count in found.runs for page in range(first, first + count)]
        return Harvest(tuple((each, 1) for each in pages if each != self._page), found.everything, found.why)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN")
def test_the_audit_finds_out_a_tracker_that_misses_a_page(region: Path, url: str) -> None:
    """In this process, so that its tracker can be broken on purpose."""
    from sustain.powerfail.regions import precopy, track

    missed = 3000  # not among the first ones, which are sent again to measure the bandwidth
    with Program(region, environment(region)) as program:
        config = precopy.PrecopyConfig(
            region=str(region),
            name="nv",
            uuid=bytes(15) + b"1",
            epoch=1,
            seal_number=1,
            owner="a",
            urls=((url, False),),
            status_file=str(region) + ".region.json",
        )
        copier = precopy.Precopier(config)
        copier._tracker = Forgetful(track.open_tracker(region, PAGES, Way.WRITE_PROTECT), missed)
        (stream,) = copier._streams
        stream.start()
        try:
            copier._look()
            until(lambda: stream.in_step, "the destination is not in step")
            program.do("write", 1, 5 * PAGES)  # every page, or nearly so
            data = region.read_bytes()
            assert data[missed * PAGE : missed * PAGE + 8] != bytes(8)

            def found_out() -> bool:
                copier._look()  # audits some pages, unless the stream is busy
                return copier._tracker.way is Way.CONTENT

            until(found_out, "the page is not missed")
            assert f"page {missed}" in copier._tracker.why
            until(lambda: not stream.comparing, "not compared")
        finally:
            copier._end()
    assert (Path(url.removeprefix("file://")) / "nv" / "image").read_bytes() == data


def test_a_status_is_there_at_once_with_the_seal(region: Path, url: str) -> None:
    with Shipping(region, [url], seal=7, epoch=3) as shipping:
        found: dict[str, Any] = shipping.wait(lambda found: True, "no status")
        assert (found["epoch"], found["seal"], found["phase"]) == (3, 7, "precopy")
        assert found["pid"] == shipping.process.pid
        assert found["destinations"][0]["url"] == url
        shipping.end()
    assert os.path.exists(region)


def test_a_number_that_somebody_else_has_used_is_not_used_again(
    region: Path, url: str, program: Program
) -> None:
    with Shipping(region, [url], group=program.pid, epoch=1, seal=5) as shipping:
        shipping.wait(lambda found: True, "it does not start")
        shipping.finish()
        shipping.go_on()
        shipping.end()
    with Shipping(region, [url], group=program.pid, epoch=2, seal=5) as shipping:
        shipping.wait(lambda found: True, "it does not start")
        shipping.process.send_signal(signal.SIGUSR1)
        found = shipping.wait(lambda found: found["phase"] == "failed", "it must not be sealed")
        assert found["destinations"][0]["state"] == "refused"
        shipping.end()
