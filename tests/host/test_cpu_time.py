"""Times of processors: of made texts, of a made host, and of this machine."""

import os
import time
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import cpu_time
from sustain.host.cpu_time import CpuTime
from sustain.testing import hosts

# As a kernel with processor 1 offline writes it.
_TEXT = b"""cpu  10 20 30 40 50 60 70 80 90 100
cpu0 1 2 3 4 5 6 7 8 9 10
cpu2 11 0 0 40 0 0 0 0 0 0
intr 99 0 1 cpu7 3
ctxt 7
"""


def test_each_field_and_who_is_missing() -> None:
    found = cpu_time.parse(_TEXT)
    assert found == {
        0: CpuTime(1, 2, 3, 4, 5, irq=6, softirq=7, steal=8, guest=9, guest_nice=10),
        2: CpuTime(11, 0, 0, 40, 0, 0, 0, 0, 0, 0),
    }
    assert found[0].busy == 1 + 2 + 3 + 6 + 7


def test_what_is_no_proc_stat(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="proc/stat") as caught:
        cpu_time.read(tmp_path)
    assert "mounted" in caught.value.hint
    for content in ("cpu0 1 2 3\n", "cpu0 1 2 x 4 5 6 7 8 9 10\n"):
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/stat").write_text(content)
        with pytest.raises(HostError, match="proc_stat"):
            cpu_time.read(tmp_path)


def test_a_host_with_a_processor_offline(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    first = cpu_time.read(tmp_path)
    assert set(first) == {0, 1, 2, 3}
    host.take_offline(2)
    host.advance(10, busy={0: 1.0, 1: 0.25})
    second = cpu_time.read(tmp_path)
    assert set(second) == {0, 1, 3}
    ticks = 10 * cpu_time.TICKS_PER_S
    assert [second[cpu].busy - first[cpu].busy for cpu in (0, 1, 3)] == [ticks, ticks // 4, 0]
    assert second[3].idle - first[3].idle == ticks


def test_this_machine_counts_what_we_do() -> None:
    ours = os.sched_getaffinity(0)
    before = sum(cpu_time.read()[cpu].busy for cpu in ours)
    began_s = time.process_time()
    while time.process_time() - began_s < 0.2:
        pass
    spent = sum(cpu_time.read()[cpu].busy for cpu in ours) - before
    assert spent >= 0.2 * cpu_time.TICKS_PER_S / 2
