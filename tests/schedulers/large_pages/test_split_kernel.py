"""Blocks that a fork has given to a child, too, on a real kernel: MADV_COLD passes over them, and `split_huge_pages` of
debugfs splits them for both. Runs in the lab (tests/lab/test_large_pages.py), and where debugfs is mounted."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import large_pages, pagemap
from sustain.host.pagemap import Pagemap
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.act import Actuator
from tests.schedulers.large_pages.test_act import collapse, demote
from tests.schedulers.large_pages.touching import Toucher, touching

pytestmark = pytest.mark.skipif(
    not pagemap.has_scan() or os.geteuid() != 0, reason="it needs Linux 6.7 (PAGEMAP_SCAN) and root"
)


@contextlib.contextmanager
def debugfs() -> Iterator[None]:
    """Mounted, in a guest of the lab; elsewhere the machine's own, if it has it mounted."""
    if large_pages.can_split():
        yield
        return
    if "SUSTAIN_LAB_GUEST" not in os.environ:
        pytest.skip("debugfs is not mounted")
    subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=True)
    try:
        assert large_pages.can_split()
        yield
    finally:
        subprocess.run(["umount", "/sys/kernel/debug"], check=True)


def large(pid: int, toucher: Toucher) -> list[bool]:
    with contextlib.closing(Pagemap(pid)) as table:
        found: list[bool] = table.blocks(toucher.start, toucher.address(toucher.blocks)).huge.tolist()
    return found


def test_what_a_child_has_too_is_split_for_both(tmp_path: Path) -> None:
    with touching([0] * 3) as toucher, Journal(tmp_path / "j") as journal:
        actuator = Actuator(journal)
        effects = actuator.carry_out(collapse(toucher, 0, 1))
        assert all(each.done for each in effects), effects
        child = toucher.say("fork")["child"]
        assert large(toucher.pid, toucher) == large(child, toucher) == [True, True, False]
        if not large_pages.can_split():
            (effect,) = actuator.carry_out(demote(toucher, 0))
            assert effect.outcome == "not eligible"
            assert "other processes map it too" in effect.detail
            assert "mount -t debugfs" in effect.detail
            assert large(toucher.pid, toucher) == large(child, toucher) == [True, True, False]
        with debugfs():
            (effect,) = actuator.carry_out(demote(toucher, 0))
            assert (effect.outcome, effect.detail) == ("done", "by split_huge_pages")
            assert effect.bytes == 0
            assert large(toucher.pid, toucher) == large(child, toucher) == [False, True, False]
            assert toucher.say("check")["right"]
            assert [each.outcome for each in actuator.restore().undone] == ["restored"]
        assert not any(large(toucher.pid, toucher) + large(child, toucher))
        assert toucher.say("check")["right"]
        assert journal.entries() == ()
