"""Idle states of processors, of made hosts; of this machine if it has any."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import cpu_idle
from sustain.host.cpu_idle import Count, State
from sustain.testing import hosts


@pytest.fixture
def few_files() -> Iterator[int]:
    """This process may open few more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 2 * (len(os.listdir("/proc/self/fd")) + 8)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_states_and_counters(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    folder = "sys/devices/system/cpu/cpu1/cpuidle/state3"
    for number, name in enumerate(("time", "usage", "above", "below", "rejected")):
        host.write(f"{folder}/{name}", f"{1000 + number}\n")
    host.write(f"{folder}/disable", "1\n")
    host.write(f"{folder}/desc", "MWAIT 0x20\n")
    (tmp_path / "sys/devices/system/cpu/cpu1/cpuidle/state2/rejected").unlink()  # before Linux 5.10
    found = cpu_idle.states(1, tmp_path)
    assert [each.name for each in found] == ["POLL", "C1", "C1E", "C6"]
    assert found[3] == State("C6", "MWAIT 0x20", latency_us=128, residency_us=512, disabled=True)
    assert not found[2].disabled
    counts = cpu_idle.counts(1, tmp_path)
    assert counts[3] == Count(time_us=1000, usage=1001, above=1002, below=1003, rejected=1004)
    assert counts[2].rejected is None
    assert cpu_idle.setup(tmp_path) == cpu_idle.Setup("intel_idle", "menu")
    assert cpu_idle.unavailable(tmp_path) is None


def test_states_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    host.idle_states([f"C{number}" for number in range(12)])
    assert [each.name for each in cpu_idle.states(0, tmp_path)] == [f"C{number}" for number in range(12)]


def test_times_go_on_and_stand_still_offline(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    with cpu_idle.Times(host.cpus, tmp_path) as times:
        assert times.read([0]) == {0: (0, 0, 0, 0)}
        host.advance(2, busy={0: 0.25})
        found = times.read()
        assert (found[0], found[7], len(found)) == ((0, 0, 0, 1_500_000), (0, 0, 0, 2_000_000), 8)
        host.take_offline(5)
        host.advance(1)
        found = times.read()
        assert (found[5][3], found[7][3]) == (2_000_000, 3_000_000)


def _open_below(folder: Path) -> int:
    """How many files below it this process has open; other threads may open and close others meanwhile."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(folder)
    return found


def test_processors_that_are_taken_out_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.intel(tmp_path)

    def removed(*_: int) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))  # as of an open file of sysfs

    with cpu_idle.Times([0, 1], tmp_path) as times:
        assert sorted(times.read()) == [0, 1]
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", removed)
            assert times.read([1]) == {}
        assert _open_below(tmp_path) == 4
        assert sorted(times.read()) == [0, 1]
        (tmp_path / "sys/devices/system/cpu/cpu1/cpuidle").rename(tmp_path / "away")
        times.close()
        assert sorted(times.read()) == [0]


def test_more_states_than_files_may_be_open(tmp_path: Path, few_files: int) -> None:
    host = hosts.intel(tmp_path, cores=16)
    with cpu_idle.Times(host.cpus, tmp_path) as times:
        host.advance(1)
        for _ in range(2):
            assert times.read() == dict.fromkeys(range(64), (0, 0, 0, 1_000_000))
        assert 0 < _open_below(tmp_path) <= few_files // 2
    assert _open_below(tmp_path) == 0


def test_a_host_without(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    host.write("sys/devices/system/cpu/cpuidle/current_driver", "none\n")
    assert (cpu_idle.states(0, tmp_path), cpu_idle.counts(0, tmp_path)) == ((), ())
    assert cpu_idle.setup(tmp_path) == cpu_idle.Setup(None, None)
    reason = cpu_idle.unavailable(tmp_path)
    assert reason is not None
    assert "driver is none" in str(reason)
    assert "idle=poll" in reason.hint
    with cpu_idle.Times(host.cpus, tmp_path) as times:
        assert times.read() == {}


def test_what_is_no_number(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    host.write("sys/devices/system/cpu/cpu0/cpuidle/state1/time", "much\n")
    with cpu_idle.Times([0, 1], tmp_path) as times:
        with pytest.raises(HostError, match="cpu0/cpuidle: no number"):
            times.read()
        assert times.read([1]) == {1: (0, 0, 0, 0)}
        host.write("sys/devices/system/cpu/cpu1/cpuidle/state3/time", "more\n")
        with pytest.raises(HostError, match="cpu1/cpuidle: no number"):  # now that it is open
            times.read([1])


@pytest.mark.skipif(cpu_idle.unavailable() is not None, reason="no processor of this machine has idle states")
def test_this_machine() -> None:
    cpus = os.sched_getaffinity(0)
    with cpu_idle.Times(cpus) as times:
        first, second = times.read(), times.read()
    for cpu in first:
        assert len(first[cpu]) == len(cpu_idle.states(cpu))
        assert all(later >= before for before, later in zip(first[cpu], second[cpu], strict=True))
