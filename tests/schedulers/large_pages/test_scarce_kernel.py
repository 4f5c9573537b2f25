"""Memory of which half is free, but in pieces: no large page is to be had, which is what is said, and
nothing is left half done. Runs in a guest of the lab (tests/lab/test_large_pages.py) and nowhere else."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.host import large_pages, meminfo
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages import ours
from sustain.schedulers.large_pages.act import Actuator
from tests.schedulers.large_pages.test_act import collapse
from tests.schedulers.large_pages.touching import touching

pytestmark = pytest.mark.skipif(
    "SUSTAIN_LAB_GUEST" not in os.environ, reason="it takes all memory of its machine"
)
HOG = Path(__file__).with_name("hog.py")
LEAVE_MIB = 40
FAILURES = 3  # in a row, after which no more large pages are to be had
RESERVE, COMPACT, DROP = (
    Path("/proc/sys/vm", name) for name in ("nr_hugepages", "compact_memory", "drop_caches")
)


@pytest.fixture
def unmoved() -> Iterator[None]:
    """Locked pages stay where they are."""
    path = Path("/proc/sys/vm/compact_unevictable_allowed")
    before = path.read_text()
    path.write_text("0")
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def in_pieces() -> Iterator[Callable[[], None]]:
    """Memory of which much is free, but in pieces; what is called ends it."""
    hog = subprocess.Popen(
        [sys.executable, str(HOG), str(LEAVE_MIB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def relieve() -> None:
        RESERVE.write_text("0")
        hog.kill()
        hog.communicate()

    try:
        assert hog.stdin is not None
        assert hog.stdout is not None
        assert hog.stdout.readline() == "full\n"
        hog.stdin.write("\n")
        hog.stdin.flush()
        assert hog.stdout.readline() == "holes\n"
        # What can be had, also by compaction and reclaim, goes to the kernel's own reserve. It stops at its first
        # failure, after which there may be more; and where compaction has failed lately the kernel does not even try
        # it for a while, so it is done before.
        had, failures = 0, 0
        while failures < FAILURES:
            DROP.write_text("1")
            COMPACT.write_text("1")
            RESERVE.write_text("1000")
            now = int(RESERVE.read_text())
            had, failures = now, failures + 1 if now <= had else 0
        free_bytes = meminfo.read().free_bytes or 0
        print(f"reserved: {had}, free: {free_bytes}, runs of 2 MiB: {large_pages.free()}")
        assert free_bytes > 100 << 20, "much of the memory is free"
        yield relieve
    finally:
        relieve()


def test_no_large_page_is_to_be_had(tmp_path: Path, unmoved: None) -> None:
    # The program comes after, so that its pages are in the pieces: small pages that make room for a large one are no
    # run of 2 MiB themselves, which the next could have.
    with (
        in_pieces() as relieve,
        touching([0] * 24) as toucher,
        Journal(tmp_path / "j") as journal,
    ):
        actuator = Actuator(journal, most_per_s=1e6, limit_s=120)
        effects = actuator.carry_out(collapse(toucher, *range(24)))
        report(effects, toucher.counted().huge.tolist())
        refused = [each for each in effects if not each.done]
        assert refused
        outcomes = [each.outcome for each in refused]
        assert "no large page to be had" in outcomes
        assert set(outcomes) <= {
            "no large page to be had",
            "again later",
        }  # the kernel may say EAGAIN, too
        assert {each.detail for each in refused} == {"memory is fragmented or short (ENOMEM)"}
        assert len([each for each in journal.entries() if each.kind == ours.KIND]) <= 1
        relieve()
        assert toucher.say("check")["right"]
        again = actuator.carry_out(collapse(toucher, *range(24)))
        assert all(each.done for each in again), "once there is memory, it comes off"
        assert not actuator.restore().failed
        assert not toucher.counted().huge.any()
        assert journal.entries() == ()


def report(effects: list, large: list[bool]) -> None:  # type: ignore[type-arg]
    outcomes = [each.outcome for each in effects]
    print(
        {outcome: outcomes.count(outcome) for outcome in set(outcomes)},
        max(each.seconds or 0 for each in effects),
    )
    assert [each.done for each in effects] == large
