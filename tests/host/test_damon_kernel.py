"""DAMON of a real kernel that can watch processes, with a process that touches a known part of its memory: what is
estimated is within the stated error, nothing of others is touched, and nothing is left behind. Runs in the lab
(tests/lab/test_host_surfaces.py), where there is such a kernel; elsewhere only what this one says to it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host import damon
from sustain.host.damon import Attributes, Damon
from sustain.host.maps import Area
from sustain.host.processes import identify
from sustain.schedulers.changes import DAMON
from sustain.schedulers.guest_memory import classes
from sustain.schedulers.guest_memory.changes import undo
from sustain.schedulers.guest_memory.sampling import Sampled, Sampler
from sustain.schedulers.journal import Journal

ADMIN = Path("/sys/kernel/mm/damon/admin/kdamonds")
TOUCHER = Path(__file__).parents[1] / "lab" / "toucher.py"
QUICK = Attributes(100_000, 2_000_000)


def watches_processes() -> bool:
    if not damon.present() or os.geteuid() != 0:
        return False
    try:
        Damon(lambda _: None).close()
    except HostError:
        return False
    return True


real = pytest.mark.skipif("not watches_processes()", reason="DAMON here cannot watch processes, or is in use")


@dataclass
class Toucher:
    """What tests/lab/toucher.py said."""

    pid: int
    start: int
    size: int
    touched: int
    blocks: list[int]

    @property
    def areas(self) -> tuple[Area, ...]:
        return (Area(self.start, self.start + self.size, "anonymous", ""),)

    @property
    def share(self) -> float:
        return self.touched * 4096 / self.size


@contextlib.contextmanager
def touching(size_mib: int, share: float, step: int) -> Iterator[Toucher]:
    process = subprocess.Popen(
        [sys.executable, str(TOUCHER), str(size_mib), str(share), str(step)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Toucher(**json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def count() -> int:
    return int((ADMIN / "nr_kdamonds").read_text())


@pytest.mark.skipif(not damon.present() or os.geteuid() != 0, reason="no DAMON here, or no root")
def test_a_kernel_that_cannot_says_so_and_is_left_as_it_was() -> None:
    if watches_processes():
        pytest.skip("this one can")
    before, notes = count(), list[int | None]()
    with pytest.raises(HostError, match=r"cannot watch processes|set up by somebody else") as caught:
        Damon(notes.append)
    assert caught.value.hint
    assert count() == before
    assert notes == [] or (notes[0], notes[-1]) == (0, None)


@real
def test_pages_of_a_guest_within_the_stated_error(tmp_path: Path) -> None:
    with touching(64, 1.0, 37) as toucher, Journal(tmp_path / "j") as journal:
        sampler = Sampler(journal, SystemClock(), window_s=2.0)
        who = identify(toucher.pid)
        assert who is not None
        found: Sampled | None = None
        deadline_s = time.monotonic() + 120
        while found is None:
            assert time.monotonic() < deadline_s
            found = sampler.look("g", who, toucher.areas)
        (entry,) = journal.entries()
        assert (entry.kind, count()) == (DAMON, damon.SLOTS)
        figures = classes.of_sampling(found.used, found.pages, toucher.size, found.how).figures
        print(f"touched {toucher.share:.3f}, found {found.used} of {found.pages}: {figures}")
        assert found.pages == 1000
        assert figures["active_anonymous_bytes"] == pytest.approx(
            toucher.touched * 4096, abs=3 * figures["error_bytes"]
        )
        assert figures["error_bytes"] < 0.017 * toucher.size
        sampler.close()
        assert (journal.entries(), count()) == ((), 0)


@real
def test_blocks_are_counted_one_by_one() -> None:
    # A sample interval in which the toucher comes around, also under emulation; 16 samples.
    attributes = Attributes(600_000, 9_600_000)
    with touching(32, 1.0, 34) as toucher:
        ours = Damon(lambda _: None)
        try:
            blocks = damon.blocks([(toucher.start, toucher.start + toucher.size)])
            assert len(blocks) == len(toucher.blocks) == 16
            watch = ours.watch(toucher.pid, blocks, attributes)
            regions = watch.regions()
        finally:
            ours.close()
    assert [(each.start, each.end) for each in regions] == blocks
    print([(region.accesses, pages) for region, pages in zip(regions, toucher.blocks, strict=True)])
    deviations = []
    for region, pages in zip(regions, toucher.blocks, strict=True):
        share = pages / 512
        error = max((share * (1 - share) / attributes.samples) ** 0.5, 1 / attributes.samples)
        deviations.append(abs(damon.estimate(region.accesses, attributes.samples).share - share) / error)
    assert max(deviations) < 4
    assert sum(each > 2 for each in deviations) <= 3
    assert regions[0].accesses == 0
    assert regions[15].accesses >= 14  # of 16: nearly all of it is touched


@real
def test_what_somebody_else_has_set_up_is_left_alone() -> None:
    (ADMIN / "nr_kdamonds").write_text("1")
    try:
        inode = (ADMIN / "0").stat().st_ino
        notes: list[int | None] = []
        with pytest.raises(HostError, match="1 kdamonds are set up by somebody else") as caught:
            Damon(notes.append)
        assert "restore" in caught.value.hint
        assert notes == []
        assert damon.clean_up(inode + 1) == "changed"
        assert damon.clean_up(0) == "changed"
        assert (ADMIN / "0").stat().st_ino == inode
    finally:
        (ADMIN / "nr_kdamonds").write_text("0")


@real
def test_somebody_else_takes_it_while_nothing_of_ours_runs() -> None:
    ours = Damon(lambda _: None)
    (ADMIN / "nr_kdamonds").write_text("1")
    try:
        with pytest.raises(HostError, match="set up DAMON anew"):
            ours.watch(os.getpid(), [(4096 * n, 4096 * (n + 1)) for n in (10, 20, 30)], QUICK)
        ours.close()
        assert count() == 1
    finally:
        (ADMIN / "nr_kdamonds").write_text("0")


@real
def test_killed_it_is_taken_away_by_the_next(tmp_path: Path) -> None:
    program = """
import sys
from sustain.host.damon import Attributes, Damon
from sustain.host.pagemap import PAGE_BYTES
from sustain.schedulers.changes import DAMON
from sustain.schedulers.journal import Journal
journal = Journal(sys.argv[1])
ours = Damon(lambda inode: journal.note(DAMON, DAMON, {"inode": inode}, 0, 64))
at = int(sys.argv[3])
pages = [(at + n * PAGE_BYTES, at + (n + 1) * PAGE_BYTES) for n in range(9)]
ours.watch(int(sys.argv[2]), pages, Attributes(100000, 1000000))
print("watches", flush=True)
sys.stdin.read()
"""
    with touching(8, 1.0, 50) as toucher:
        arguments = [str(tmp_path / "j"), str(toucher.pid), str(toucher.start)]
        victim = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"watches\n"
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        assert count() == damon.SLOTS
        states = [(ADMIN / str(slot) / "state").read_text().strip() for slot in range(damon.SLOTS)]
        assert states.count("on") == 1
        with Journal(tmp_path / "j") as journal:
            (undone,) = journal.restore(undo({})).undone
            assert undone.outcome == "restored", undone.problem
            assert journal.entries() == ()
        assert count() == 0
        Damon(lambda _: None).close()


@real
def test_a_process_that_ends() -> None:
    ours = Damon(lambda _: None)
    try:
        with touching(8, 1.0, 50) as toucher:
            pages = [(toucher.start + n * 8192, toucher.start + n * 8192 + 4096) for n in range(100)]
            watch = ours.watch(toucher.pid, pages, QUICK)
            while not watch.totals().seen:
                pass
        deadline_s = time.monotonic() + 30
        error: HostError | None = None
        while error is None:
            assert time.monotonic() < deadline_s
            try:
                watch.totals()
            except HostError as caught:
                error = caught
        assert "does not watch any more" in str(error)
        assert "ended" in error.hint
        watch.close()
        with pytest.raises(HostError):
            ours.watch(toucher.pid, pages, QUICK)
    finally:
        ours.close()
    assert count() == 0
