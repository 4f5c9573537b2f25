"""Counters by perf_event_open: how events are written, how a group is read, what each refusal means; and this machine's
own counters."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import perf_events
from sustain.host.perf_events import Event, Group, Pmu, Reading
from sustain.testing import hosts

_CONTEXT_SWITCHES = Event("context-switches", (3, 0, 0))  # PERF_COUNT_SW_CONTEXT_SWITCHES


def test_events_are_the_kernels_words(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=4)
    power = perf_events.pmu("power", tmp_path)
    assert power is not None
    assert (power.type, power.cpus) == (21, {0, 2, 4, 6})
    assert power.events["energy-ram"] == Event("energy-ram", (3, 0, 0), scale=2.0**-32, unit="Joules")
    assert set(power.events) == {"energy-pkg", "energy-ram"}
    assert perf_events.pmu("cstate_core", tmp_path) is None
    host.write("sys/bus/event_source/devices/cha/format/event", "config:0-7\n")
    host.write("sys/bus/event_source/devices/cha/format/umask", "config:8-11,32\n")
    host.write("sys/bus/event_source/devices/cha/format/filter", "config1:4-7\n")
    host.write("sys/bus/event_source/devices/cha/format/edge", "config:18\n")
    host.write("sys/bus/event_source/devices/cha/type", "30\n")
    host.write("sys/bus/event_source/devices/cha/events/x", "event=0x36,umask=0x1f,filter=3,edge\n")
    cha = perf_events.pmu("cha", tmp_path)
    assert cha is not None
    assert cha.events["x"] == Event("x", (0x36 | 0xF << 8 | 1 << 32 | 1 << 18, 0x30, 0))
    assert cha.cpus == frozenset()


@pytest.mark.parametrize("said", ["event=0x1,other=2", "event=much"])
def test_an_event_of_no_known_format(tmp_path: Path, said: str) -> None:
    hosts.bare(tmp_path).pmu("odd", 5, {"x": said})
    with pytest.raises(HostError, match="odd/events/x"):
        perf_events.pmu("odd", tmp_path)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_group_is_read_at_once_where_it_can_be(tmp_path: Path, grouped: bool) -> None:
    host = hosts.intel(tmp_path)
    host.perf.grouped = grouped
    events = _of(tmp_path, "cstate_pkg", "c2-residency", "c6-residency") + _of(tmp_path, "msr", "tsc")
    with Group(events, 2, host.perf, tmp_path) as group:
        assert group.read().counts == (0, 0, 0)
        host.perf.reads = 0
        host.advance(2, residency={1: {"pc2": 0.25, "pc6": 0.5}})
        assert group.read() == Reading(
            (hosts.TSC_HZ // 2, hosts.TSC_HZ, 2 * hosts.TSC_HZ), enabled_ns=2 * 10**9, running_ns=2 * 10**9
        )
        assert host.perf.reads == (1 if grouped else 3)
    assert host.perf.open_count == 0


@pytest.mark.parametrize(
    ("refused", "word"),
    [
        (errno.EACCES, "perf_event_paranoid is 2: run it as root or with CAP_PERFMON"),
        (errno.EPERM, "CAP_PERFMON"),
        (errno.ENODEV, "hypervisor"),
        (errno.ENOENT, "no such counter"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOSYS, "seccomp"),
    ],
)
def test_what_a_refusal_means(tmp_path: Path, refused: int, word: str) -> None:
    host = hosts.intel(tmp_path)
    host.perf.refused = refused
    with pytest.raises(HostError, match=r"perf cstate_pkg/c6-residency/ of processor 0: ") as caught:
        Group(_of(tmp_path, "cstate_pkg", "c6-residency"), 0, host.perf, tmp_path)
    assert word in caught.value.hint
    assert caught.value.errno == refused


def test_a_processor_that_goes_offline(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    with Group(_of(tmp_path, "power", "energy-pkg"), 0, host.perf, tmp_path) as group:
        host.take_offline(0)
        with pytest.raises(HostError) as caught:
            group.read()
        assert caught.value.errno == errno.ENODEV
    with pytest.raises(HostError):
        Group(_of(tmp_path, "power", "energy-pkg"), 0, host.perf, tmp_path)
    assert host.perf.open_count == 0


def test_what_was_opened_before_a_refusal_is_closed() -> None:
    before = os.listdir("/proc/self/fd")
    unknown = Pmu("none", 2**31 - 1, frozenset(), {})
    with pytest.raises(HostError):
        Group([(_software(), _CONTEXT_SWITCHES), (unknown, Event("x", (0, 0, 0)))], 0)
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def pinned() -> Iterator[int]:
    """We run on this processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield min(before)
    os.sched_setaffinity(0, before)


def test_this_machines_kernel_counts_each_of_a_group(pinned: int) -> None:
    events = [(_software(), _CONTEXT_SWITCHES), (_software(), Event("cpu-clock", (0, 0, 0)))]
    with _opened(events, pinned) as group:
        assert len(group._members) == 1
        first = group.read()
        deadline = time.monotonic() + 30
        while (second := group.read()).counts[0] < first.counts[0] + 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)  # itself a switch
    assert second.running_ns == second.enabled_ns > first.enabled_ns
    assert second.counts[1] > first.counts[1]


def test_this_machines_time_stamp_counter_goes_on() -> None:
    msr = perf_events.pmu("msr")
    if msr is None or "tsc" not in msr.events:
        pytest.skip("this kernel has no counter for the TSC")
    with _opened([(msr, msr.events["tsc"])], min(os.sched_getaffinity(0))) as group:
        first = group.read()
        second = group.read()
    passed = second.counts[0] - first.counts[0]
    assert passed > 0
    assert 0.1 < passed / (second.enabled_ns - first.enabled_ns) < 20  # GHz


def _of(root: Path, name: str, *events: str) -> list[tuple[Pmu, Event]]:
    source = perf_events.pmu(name, root)
    assert source is not None
    return [(source, source.events[each]) for each in events]


def _software() -> Pmu:
    source = perf_events.pmu("software")
    if source is None:
        pytest.skip("this kernel has no perf events")
    return source


def _opened(events: list[tuple[Pmu, Event]], cpu: int) -> Group:
    try:
        return Group(events, cpu)
    except HostError as error:
        pytest.skip(f"not permitted here: {error} ({error.hint})")
