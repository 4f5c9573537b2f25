"""Counting a guest's RAM: of a real QEMU process, whose guest touches pages that are known. Runs in the lab (tests/lab/
test_large_pages.py), where QEMU translates the guest's code and its pages are used through QEMU's own page tables: that
the kernel ages the second-level ones of a guest under KVM is not shown here."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sustain.clock import SystemClock
from sustain.host import page_idle
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.counting_damon import DamonCounter
from sustain.schedulers.large_pages.counting_page_idle import PageIdleCounter
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.model import Blocks
from sustain.schedulers.large_pages.sense import Sensor
from sustain.testing import FakeClock
from tests.host import test_damon_kernel as damon_here
from tests.schedulers.large_pages.touching_guest import NAME, TouchingGuest, guest

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU")
PATTERN = [0, 1, 2, 17, 64, 1, 128, 0, 256, 300, 511, 512]
KINDS = pytest.mark.parametrize("kind", ["anonymous", "memfd"])


@pytest.fixture
def running(kind: str, tmp_path: Path) -> Iterator[TouchingGuest]:
    with guest(PATTERN, kind, tmp_path) as found:
        found.rounds(1)
        yield found


def look(sensor: Sensor, running: TouchingGuest) -> Blocks:
    """Its blocks that are all written."""
    seen = sensor.read()
    (target,) = seen.targets
    assert target.pid == running.who.pid
    assert not any("mapped large at the beginning" in each for each in target.problems)
    addresses = np.array(sorted(running.touched()), np.uint64)
    assert len(addresses) >= len(PATTERN) - 1
    blocks = seen.blocks.rows(np.searchsorted(seen.blocks.address, addresses))
    assert np.array_equal(blocks.address, addresses)
    assert set(blocks.populated.tolist()) == {512}
    return blocks


@pytest.mark.skipif(
    not page_idle.available() or os.geteuid() != 0, reason="this kernel has no page_idle, or no root"
)
@KINDS
def test_a_guests_ram_is_counted_exactly(running: TouchingGuest) -> None:
    clock = FakeClock()
    with contextlib.closing(
        Sensor([Wanted(name="vm", guest=NAME)], PageIdleCounter(10, clock), clock)
    ) as sensor:
        look(sensor, running)
        running.rounds(2)
        clock.advance(10)
        blocks = look(sensor, running)
    print(blocks.touched.tolist(), blocks.error.tolist())
    assert dict(zip(blocks.address.tolist(), blocks.touched.tolist(), strict=True)) == running.touched()
    assert not blocks.error.any()


@pytest.mark.skipif(
    "not damon_here.watches_processes()", reason="DAMON here cannot watch processes, or is in use"
)
@KINDS
def test_a_guests_ram_is_estimated_within_the_error(running: TouchingGuest, tmp_path: Path) -> None:
    samples = 16
    with (
        Journal(tmp_path / "j") as journal,
        contextlib.closing(
            Sensor(
                [Wanted(name="vm", guest=NAME)],
                DamonCounter(3.2, SystemClock(), journal, samples=samples),
                SystemClock(),
            )
        ) as sensor,
    ):
        deadline_s = time.monotonic() + 120
        while np.isnan((blocks := look(sensor, running)).touched).any():
            assert time.monotonic() < deadline_s
            running.rounds(1)
    truth = np.array([running.touched()[address] for address in blocks.address.tolist()])
    share = truth / 512
    error = np.maximum(np.sqrt(share * (1 - share) / samples), 1 / samples) * 512
    deviations = np.abs(blocks.touched - truth) / error
    print([*zip(blocks.touched.tolist(), truth.tolist(), strict=True)], deviations.max())
    assert deviations.max() < 4
    assert (deviations > 2).sum() <= 2
    assert not blocks.touched[truth == 0].any()
    assert damon_here.count() == 0
