"""Trackers name every page that a real program changed: compared with the contents before and after."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.host import pagemap
from sustain.powerfail.regions.track import (
    LIBRARY,
    AutoTracker,
    Harvest,
    Run,
    Tracker,
    Way,
    environment,
    merge,
    open_tracker,
)
from tests.powerfail.regions.program import PAGE, Program, pages_of

PAGES = 2048
WAYS = [
    pytest.param(
        Way.WRITE_PROTECT,
        marks=pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN"),
    ),
    pytest.param(
        Way.SOFT_DIRTY,
        marks=pytest.mark.skipif(not pagemap.has_soft_dirty(), reason="this kernel keeps no soft-dirty bits"),
    ),
]


@pytest.fixture(params=["disk", "tmpfs"])
def region(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path
    if request.param == "tmpfs":
        folder = Path("/dev/shm") / f"sustain-track-{tmp_path.parent.name}-{tmp_path.name}"
        folder.mkdir()
    path = folder / "region"
    with path.open("wb") as file:
        file.truncate(PAGES * PAGE)
    yield path
    shutil.rmtree(folder, ignore_errors=True)


class Checked:
    """A tracker beside the truth: what is different between the contents at two harvests."""

    def __init__(self, region: Path, tracker: Tracker) -> None:
        self._region = region
        self.tracker = tracker
        self._before = region.read_bytes()

    def harvest(self) -> Harvest:
        found = self.tracker.harvest()
        now = self._region.read_bytes()
        spans = ((at, slice(at * PAGE, (at + 1) * PAGE)) for at in range(PAGES))
        changed = {at for at, span in spans if now[span] != self._before[span]}
        named = {page for first, count in found.runs for page in range(first, first + count)}
        self._before = now
        if not found.everything:
            missed = changed - named
            assert not missed, f"{len(missed)} of {len(changed)} changed pages are not named"
        return found


@pytest.mark.parametrize("way", WAYS)
def test_what_a_program_writes_is_named_and_little_else(region: Path, way: Way) -> None:
    with Program(region, environment(region, way)) as program:
        checked = Checked(region, open_tracker(region, PAGES, way))
        assert checked.harvest().everything, "nothing was watched before"
        for seed, count in enumerate((1, 700, 0, 5000, 3)):
            program.do("write", seed, count)
            expected = set(pages_of(seed, count, PAGES))
            found = checked.harvest()
            assert not found.everything, found.why
            if way is Way.WRITE_PROTECT:
                assert found.pages == len(expected)
        checked.tracker.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["call", "child", "orphan", "remap", "visit"])
def test_what_does_not_go_through_the_known_mapping_is_not_missed(region: Path, way: Way, what: str) -> None:
    with Program(region, environment(region, way)) as program:
        checked = Checked(region, open_tracker(region, PAGES, way))
        checked.harvest()
        for seed in range(3):
            program.do("write", seed, 10)
            program.do(what, seed + 100, 20)
            found = checked.harvest()
            assert found.everything or found.pages >= 20
            program.do("write", seed + 200, 10)
            assert not checked.harvest().everything or what == "orphan", "afterwards it is precise again"
        checked.tracker.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_comes_later_and_one_that_goes(region: Path, way: Way) -> None:
    checked = Checked(region, open_tracker(region, PAGES, way))
    checked.harvest()
    assert checked.harvest() == Harvest(), "nobody maps it, so nothing changes"
    with Program(region, environment(region, way)) as program:
        program.do("write", 1, 50)
        checked.harvest()
        program.do("write", 2, 50)
        assert not checked.harvest().everything
        program.do("write", 3, 50)
    assert checked.harvest().everything, "what it wrote last went with its page tables"
    with Program(region, environment(region, way)) as program:
        program.do("write", 4, 50)
    assert checked.harvest().everything, "it came and went"
    assert checked.harvest() == Harvest()
    checked.tracker.close()


@pytest.mark.parametrize("way", WAYS)
def test_random_doings(region: Path, way: Way) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Program(region, environment(region, way)) as program:
        checked = Checked(region, open_tracker(region, PAGES, way))
        for _ in range(60):
            for _ in range(chance.randrange(3)):
                what = chance.choice(["write"] * 6 + ["call", "child", "orphan", "remap", "visit"])
                program.do(what, chance.randrange(1 << 30), chance.choice([1, 5, 300]))
            checked.harvest()
        checked.tracker.close()


def test_the_check_catches_a_tracker_that_misses_a_page(tmp_path: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(bytes(PAGES * PAGE))

    class Forgetful(Tracker):
        way, why = Way.WRITE_PROTECT, "a broken one"

        def harvest(self) -> Harvest:
            return Harvest(((5, 1),))

        def close(self) -> None: ...

    checked = Checked(region, Forgetful())
    with region.open("r+b") as file:
        file.seek(5 * PAGE)
        file.write(b"changed")
    checked.harvest()
    with region.open("r+b") as file:
        file.seek(6 * PAGE)
        file.write(b"changed")
    with pytest.raises(AssertionError, match="1 of 1 changed pages"):
        checked.harvest()


def test_auto_says_why_it_compares_contents(tmp_path: Path) -> None:
    """A program without the library (as one that is linked statically would be)."""
    region = tmp_path / "region"
    region.write_bytes(bytes(PAGES * PAGE))
    tracker = AutoTracker(region, PAGES, can_stop=False)
    with Program(region, {}) as program:
        found = tracker.harvest()
        assert found.everything
        assert tracker.way is Way.CONTENT
        if pagemap.has_scan():
            assert str(program.pid) in tracker.why
            assert "library" in tracker.why
    if pagemap.has_scan():
        tracker.harvest()
        assert tracker.harvest() == Harvest(), "nobody maps it any more"
        assert tracker.way is Way.WRITE_PROTECT
    tracker.close()


def test_the_best_way_is_found_with_and_without_the_kernels_help(tmp_path: Path) -> None:
    """On whatever lies under the temporary directory, a DAX file system included (tests/lab)."""
    region = tmp_path / "region"
    region.write_bytes(bytes(PAGES * PAGE))
    with Program(region, environment(region)) as program:
        checked = Checked(region, AutoTracker(region, PAGES, can_stop=True))
        for seed in range(5):
            program.do("write", seed, 300)
            checked.harvest()
        print(f"found by {checked.tracker.way}: {checked.tracker.why}")
        checked.tracker.close()


@pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN")
def test_what_was_written_is_known_without_a_harvest(region: Path) -> None:
    with Program(region, environment(region)) as program:
        tracker = open_tracker(region, PAGES, Way.AUTO)
        tracker.harvest()
        assert tracker.peek_bytes() == 0
        program.do("write", 5, 40)
        expected = len(set(pages_of(5, 40, PAGES)))
        assert tracker.peek_bytes() == expected * PAGE
        assert tracker.harvest().pages == expected, "looking did not take it"
        assert tracker.peek_bytes() == 0
        tracker.close()


@pytest.mark.skipif(not pagemap.has_scan(), reason="this kernel has no PAGEMAP_SCAN")
def test_a_program_that_closes_every_descriptor_is_compared_by_content(tmp_path: Path) -> None:
    region = tmp_path / "region"
    region.write_bytes(bytes(PAGES * PAGE))
    code = (
        "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nm=mmap.mmap(f,0)\nprint('ready',flush=True)\n"
        "sys.stdin.readline()\nos.closerange(3,4096)\nm[0]=1\nprint('done',flush=True)\nsys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        ["python3", "-c", code, str(region)],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", **environment(region)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        tracker = open_tracker(region, PAGES, Way.WRITE_PROTECT)
        tracker.harvest()
        assert not tracker.harvest().everything
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        found = tracker.harvest()
        assert found.unable, found
        assert "library" in found.why
        process.kill()
        tracker.close()


def test_the_environment_keeps_what_is_preloaded_already(tmp_path: Path) -> None:
    if not (LIBRARY.exists() and (pagemap.has_scan() or pagemap.has_soft_dirty())):
        pytest.skip("nothing would come of it on this kernel")
    region = tmp_path / "region"
    region.write_bytes(bytes(PAGE))
    found = environment(region, Way.AUTO, {"LD_PRELOAD": "/lib/other.so"})
    assert found["LD_PRELOAD"] == f"{LIBRARY}:/lib/other.so"
    assert environment(region, Way.CONTENT) == {}


def test_the_library_lets_a_program_be_where_there_is_nothing_to_track(tmp_path: Path) -> None:
    """A region that is gone, counters that are no file: the program must not notice."""
    for region, counters in (("/none", "/none"), (str(tmp_path), str(tmp_path)), ("", "")):
        said = subprocess.run(
            ["python3", "-c", "import mmap; m = mmap.mmap(-1, 4096); m[0] = 1; print(m[0])"],
            env={
                "PATH": "/usr/bin:/bin:/usr/local/bin",
                "LD_PRELOAD": str(LIBRARY),
                "SUSTAIN_TRACK_REGION": region,
                "SUSTAIN_TRACK_COUNTERS": counters,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert (said.stdout, said.stderr) == ("1\n", "")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10))), st.integers(0, 64))
def test_merged_runs_are_the_same_pages(runs: list[Run], pages: int) -> None:
    found = merge(runs, pages)
    wanted = {page for first, count in runs for page in range(first, first + count) if page < pages}
    assert {page for first, count in found for page in range(first, first + count)} == wanted
    assert all(count > 0 for _, count in found)
    assert all(sum(one) < other[0] for one, other in pairwise(found))
