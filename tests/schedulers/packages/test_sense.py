"""Reading hosts into observations: made hosts of several kinds, and this machine with real processes."""

import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sustain.clock import SystemClock
from sustain.host import processes
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.find import Found, Wanted
from sustain.schedulers.packages.model import MIXED, Finding, Observation
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.rates import look, rates
from sustain.schedulers.packages.sense import Sensor
from sustain.testing import FakeClock, hosts
from tests.host.threaded import Program, wait_until

MOUNTS = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


@dataclass
class Clock:
    """The time of a made host."""

    host: hosts.Host

    def boottime_ns(self) -> int:
        return self.host.now_ns

    def realtime_ns(self) -> int:
        return self.host.now_ns + 10**18


@contextmanager
def sensor_of(
    host: hosts.Host, *groups: Wanted, findings: Path | None = None, **policy: float
) -> Iterator[Sensor]:
    host.write("proc/self/mounts", MOUNTS)
    config = PackagesConfig(groups=groups, policy=Policy(**policy))  # type: ignore[arg-type]
    sensor = Sensor(config, Clock(host), findings, host.root, kernel=host.perf, pread=hosts.registers_pread)
    try:
        yield sensor
    finally:
        sensor.close()


def group(
    host: hosts.Host, path: str, used_s: float, cpus: str = "", tids: Mapping[int, str] | None = None
) -> Path:
    """A cgroup with threads of made processors lists."""
    folder = host.cgroup(path)
    host.write(f"sys/fs/cgroup/{path}/cpu.stat", f"usage_usec {used_s * 1e6:.0f}\nuser_usec 0\n")
    if cpus:
        host.write(f"sys/fs/cgroup/{path}/cpuset.cpus.effective", cpus + "\n")
    host.write(f"sys/fs/cgroup/{path}/cgroup.threads", "".join(f"{tid}\n" for tid in tids or ()))
    for tid, allowed in (tids or {}).items():
        thread(host, tid, allowed)
    return folder


def thread(host: hosts.Host, tid: int, allowed: str, policy: int = 0) -> None:
    fields = ["S", *["0"] * 37, str(policy), *["0"] * 11]
    host.write(f"proc/{tid}/stat", f"{tid} (a) b) " + " ".join(fields) + "\n")
    host.write(f"proc/{tid}/status", f"Name:\ta\nCpus_allowed_list:\t{allowed}\nMems_allowed_list:\t0\n")


def test_intel_with_counters(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=2, cores=2, threads=2)
    with sensor_of(host) as sensor:
        first = sensor.read()
        host.advance(
            10.0,
            busy={0: 1.0, 1: 0.25},
            residency={1: {"pc2": 0.1, "pc6": 0.85}},
            watts={0: 80.0, 1: 20.0},
            dram_watts={0: 5.0, 1: 2.0},
        )
        second = sensor.read()
    assert len(first.cpus) == 8
    assert second.cpus.package.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [each.source for each in second.packages] == ["perf", "perf"]
    assert [each.power_source for each in second.packages] == ["powercap", "powercap"]
    assert [each.problems for each in second.packages] == [(), ()]
    between = rates(look(first), second)
    assert between is not None
    assert between.passed_s == pytest.approx(10)
    assert between.busy == pytest.approx({0: 1.25, 1: 0.0}, abs=0.01)
    assert between.awake[0] == pytest.approx(1.0)
    assert between.residency[1] == pytest.approx({"pc2": 0.1, "pc6": 0.85}, abs=1e-6)
    assert between.power_w == pytest.approx({0: 85.0, 1: 22.0}, rel=1e-4), "with its memory"
    assert second.cpus.asleep_s[2] == pytest.approx(10.0)
    assert len(second.host) == 16
    assert second.virtual is False
    assert second.problems == ()


def test_counters_go_on_when_the_same_processors_are_looked_up_again(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    with sensor_of(host) as sensor:
        for _ in range(8):  # they are looked up every minute
            seen = sensor.read()
            assert [each.problems for each in seen.packages] == [(), ()]
            host.advance(
                10.0, residency={1: {"pc6": 0.5}}, watts={0: 80.0, 1: 20.0}, dram_watts={0: 5.0, 1: 2.0}
            )
    assert seen.packages[1].residency_s["pc6"] == pytest.approx(0.5 * 70)


def test_a_parked_package_is_read_rarely_and_others_each_time(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    with sensor_of(host, parked_read_s=20.0) as sensor:
        sensor.read()
        seen: list[Observation] = []
        for _ in range(4):
            host.advance(10.0, residency={1: {"pc6": 0.9}}, watts={0: 50.0, 1: 10.0})
            reads = host.perf.reads
            seen.append(sensor.read(parked=frozenset({1})))
            expected = 2 if len(seen) % 2 == 0 else 1
            assert host.perf.reads - reads == expected, "of one die each"
        times = [each.packages[1].read_s for each in seen]
        assert times[0] is not None
        assert times[1] == seen[1].now_s
        assert times[2] == times[1]
        assert [each.packages[0].read_s == each.now_s for each in seen] == [True] * 4
        between = rates(look(seen[1]), seen[3])
        assert between is not None
        assert between.residency[1]["pc6"] == pytest.approx(0.9, abs=1e-6)
        assert between.power_w[1] == pytest.approx(10.0, rel=1e-4)
        before = seen[3].packages[1].read_s
        host.advance(5.0)
        assert sensor.read().packages[1].read_s != before, "it is parked no more"


def test_amd_has_watts_and_idle_states_of_processors(tmp_path: Path) -> None:
    host = hosts.epyc(tmp_path)
    with sensor_of(host) as sensor:
        first = sensor.read()
        host.advance(10.0, busy={0: 0.5}, watts={0: 100.0, 1: 90.0})
        second = sensor.read()
    between = rates(look(first), second)
    assert between is not None
    assert between.power_w == pytest.approx({0: 100.0, 1: 90.0}, rel=1e-4)
    assert second.packages[1].source == "cpuidle"
    assert between.residency[1] == pytest.approx({"core-c2": 1.0}, rel=1e-3)
    (problem,) = second.packages[1].problems
    assert "only those of its processors" in problem
    assert "cstate_pkg" in problem


def test_a_host_without_any_counters_says_why(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path, packages=1)
    with sensor_of(host) as sensor:
        sensor.read()
        host.advance(10.0, busy={0: 0.5})
        (package,) = sensor.read().packages
    assert (package.source, package.power_source) == ("none", "none")
    assert package.residency_s == {}
    assert package.energy_j is None
    idle, watts = package.problems
    assert idle.startswith("its idle states: not measurable here, because")
    assert watts.startswith("its watts: not measurable here, because")


def test_a_virtual_machine_where_everything_reads_zero_measures_nothing(tmp_path: Path) -> None:
    host = hosts.virtual(tmp_path)
    with sensor_of(host) as sensor:
        for _ in range(3):
            seen = sensor.read()
            assert [each.source for each in seen.packages] == ["none", "none"]
            assert [each.energy_j for each in seen.packages] == [None, None]
            host.advance(10.0, busy={0: 0.5})
    assert seen.virtual is True
    assert "virtual machine" in " ".join(seen.packages[0].problems)


def test_four_sockets_and_processors_that_come_and_go(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=4, cores=2, threads=1)
    with sensor_of(host) as sensor:
        first = sensor.read()
        assert len(first.packages) == 4
        host.advance(10.0, busy={3: 0.5}, residency={3: {"pc6": 0.5}}, watts=dict.fromkeys(range(4), 40.0))
        host.take_offline(6, 7)  # all of the last package
        second = sensor.read()
        assert len(second.cpus) == 6
        assert [each.number for each in second.packages] == [0, 1, 2]
        between = rates(look(first), second)
        assert between is not None
        assert set(between.busy) == {0, 1, 2}
        assert between.residency == {}, "counters were opened anew, so this interval is unknown"
        host.advance(10.0, residency={0: {"pc2": 0.25}}, watts=dict.fromkeys(range(4), 40.0))
        third = sensor.read()
        between = rates(look(second), third)
        assert between is not None
        assert between.residency == {}, "so is the next one, since it began unknown"
        host.advance(10.0, residency={0: {"pc2": 0.25}}, watts=dict.fromkeys(range(4), 40.0))
        between = rates(look(third), sensor.read())
        assert between is not None
        assert between.residency[0]["pc2"] == pytest.approx(0.25, abs=1e-6)
        assert between.power_w[0] == pytest.approx(40.0, rel=1e-3)


def test_cgroups_in_columns(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=2, cores=2, threads=1)
    host.write("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n")
    group(host, "vms/a", 1.0, "0-1", {101: "0-1", 102: "0-1"})
    group(host, "vms/b", 2.0, "", {103: "0-3", 104: "2"})
    group(host, "vms/c", 3.0, "0-1", {105: "0-1"})
    thread(host, 105, "0-1", policy=1)
    with sensor_of(host, Wanted(name="vms", cgroup="vms/*")) as sensor:
        seen = sensor.read()
        assert seen.problems == ()
        groups = seen.groups
        assert groups.name == ("vms.a", "vms.b", "vms.c")
        assert groups.kind == ("cgroup",) * 3
        assert groups.used_s.tolist() == [1.0, 2.0, 3.0]
        assert groups.threads.tolist() == [2, 2, 1]
        assert groups.realtime.tolist() == [0, 0, 1]
        assert groups.pinned.tolist() == [0, 1, 0]
        assert [seen.places[place] for place in groups.place] == [(0, 1), (0, 1, 2, 3), (0, 1)]
        assert len(groups.memory_bytes) == 2 * 3
        host.advance(10.0)
        group(host, "vms/a", 6.0, "0-1")
        (tmp_path / "sys/fs/cgroup/vms/b").rename(tmp_path / "sys/fs/cgroup/gone")
        again = sensor.read()
        assert again.groups.name == ("vms.a", "vms.c")
        between = rates(look(seen), again)
        assert between is not None
        assert between.used.tolist() == pytest.approx([0.5, 0.0])
        assert sensor.found("vms.a", again.groups.life[0]) is not None
        assert sensor.found("vms.b", groups.life[1]) is None


def test_a_group_that_was_just_placed_is_seen_there_and_what_was_known_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = hosts.intel(tmp_path, packages=2, cores=2, threads=1)
    many = dict.fromkeys(range(1000, 1150), "0-3")
    group(host, "vms/a", 1.0, "0-3", many)
    with sensor_of(host, Wanted(name="vms", cgroup="vms/*")) as sensor:
        sensor.read()
        host.write("sys/fs/cgroup/vms/a/cpuset.cpus.effective", "0-1\n")
        for tid in many:
            thread(host, tid, "0-1")
        host.advance(10.0)
        seen = sensor.read()
        assert seen.places[seen.groups.place[0]] == (0, 1)
        assert seen.groups.realtime.tolist() == [0]
        for _ in range(3):
            assert seen.groups.pinned.tolist() == [0], "its threads are where it is"
            host.advance(10.0)
            seen = sensor.read()


def test_a_cgroup_without_a_cpuset_is_where_its_threads_are(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=2, cores=2, threads=1)
    host.write("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n")
    group(host, "vms/a", 1.0, "", {101: "0-3", 102: "0-3"})
    host.write("sys/fs/cgroup/vms/a/cgroup.procs", "101\n")
    with sensor_of(host, Wanted(name="vms", cgroup="vms/*")) as sensor:
        seen = sensor.read()
        assert seen.places[seen.groups.place[0]] == (0, 1, 2, 3)
        for tid in (101, 102):
            thread(host, tid, "0-1")
        host.advance(10.0)
        seen = sensor.read()
        assert seen.places[seen.groups.place[0]] == (0, 1)
        thread(host, 101, "2-3")
        host.advance(10.0)
        seen = sensor.read()
        assert seen.groups.place[0] == MIXED


def test_of_a_large_group_nothing_is_said_before_all_its_threads_were_seen(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    group(host, "vms/a", 1.0, "0-3", dict.fromkeys(range(1000, 3050), "0-3"))
    thread(host, 3049, "0-3", policy=2)
    with sensor_of(host, Wanted(name="vms", cgroup="vms/*")) as sensor:
        assert sensor.read().groups.realtime.tolist() == [-1]
        host.advance(10.0)
        assert sensor.read().groups.realtime.tolist() == [1]


def test_memory_is_looked_at_in_turns_and_no_more_than_it_may_cost(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    for name in "abc":
        group(host, f"vms/{name}", 1.0, "0-3")
    asked: list[str] = []

    def memory_of(found: Found) -> dict[int, float]:
        asked.append(found.name)
        host.now_ns += 12_000_000  # 12 ms, which are to be a thousandth of the time
        return {0: 7.0, 1: 9.0}

    host.write("proc/self/mounts", MOUNTS)
    sensor = Sensor(
        PackagesConfig(groups=(Wanted(name="vms", cgroup="vms/*"),)),
        Clock(host),
        root=tmp_path,
        memory_of=memory_of,
    )
    for expected in ("a", "ab", "ab", "abc"):
        seen = sensor.read()
        assert asked == [f"vms.{name}" for name in expected]
        host.advance(6.0)
    assert seen.groups.memory_bytes.tolist() == [7.0, 9.0] * 3
    host.advance(20.0)
    sensor.read()
    assert asked == ["vms.a", "vms.b", "vms.c", "vms.a"]
    sensor.close()


def test_findings_are_those_of_this_host(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path / "host")
    path = tmp_path / "findings.json"
    finding = Finding(package=0, state="pc6", independence="independent", how="told")
    with sensor_of(host, findings=path) as sensor:
        sensor.findings.add([finding])
        assert sensor.read().findings == (finding,)
        key = sensor.host.key
    host.dmi("Dell Inc.", "PowerEdge R740", "2.22.0")
    with sensor_of(host, findings=path) as sensor:
        assert sensor.host.key != key
        assert sensor.read().findings == ()
    path.write_text("{")
    with sensor_of(host, findings=path) as sensor:
        (problem,) = sensor.read().problems
        assert "damaged" in problem


def test_this_machine_and_real_processes() -> None:
    with Program() as program, Program() as other:
        config = PackagesConfig(
            groups=(Wanted(name="one", pid=program.pid), Wanted(name="two", pid=other.pid))
        )
        sensor = Sensor(config, SystemClock())
        try:
            first = sensor.read()
            online = tuple(sorted(first.cpus.number.tolist()))
            assert first.groups.name == ("one", "two")
            assert [first.places[place] for place in first.groups.place] == [online, online]
            tid = program.start(busy=True)
            other_tid = other.start()
            if len(online) > 1:
                os.sched_setaffinity(other_tid, {online[0]})

            def used() -> bool:
                seen = sensor.read()
                return seen.groups.used_s[0] > first.groups.used_s[0] + 0.2

            wait_until(used)
            seen = sensor.read()
            program.end(tid)
            between = rates(look(first), seen)
            assert between is not None
            assert 0 < between.used[0] <= len(online)
            assert sum(between.busy.values()) > 0
            if len(online) > 1:
                assert seen.groups.pinned.tolist() == [0, 1]
                assert seen.groups.place[1] == MIXED
                os.sched_setaffinity(other.pid, {online[0]})
                wait_until(lambda: _place(sensor.read(), 1) == (online[0],))
        finally:
            sensor.close()
    assert not math.isnan(first.cpus.busy_s.sum())


def _place(seen: Observation, row: int) -> tuple[int, ...] | None:
    place = int(seen.groups.place[row])
    return None if place == MIXED else seen.places[place]


def test_a_group_that_forks_fast_is_one_that_can_be_read() -> None:
    with subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"]) as process:
        sensor = Sensor(PackagesConfig(groups=(Wanted(name="f", pid=process.pid),)), SystemClock())
        try:
            for _ in range(20):
                seen = sensor.read()
                assert seen.groups.name == ("f",)
                assert seen.groups.realtime.tolist() == [0]
        finally:
            process.kill()
            sensor.close()


def test_metrics_come_without_being_waited_for(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path / "host")
    host.write("proc/self/mounts", MOUNTS)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    config = PackagesConfig(
        metrics={
            "tps": f"cat {gate}",
            "broken": "false",
            "words": "echo many words",
            "none": str(tmp_path / "no-such-program"),
        }
    )
    clock = FakeClock()
    sensor = Sensor(config, clock, root=host.root)
    try:
        assert sensor.read().metrics == {}
        gate.write_text("42.5 per second\n")  # waits until it is read
        wait_until(lambda: sensor.read().metrics == {"tps": 42.5})

        def complaints() -> set[str]:
            return {each.split(":")[0] for each in sensor.read().problems if each.startswith("metric")}

        wait_until(lambda: complaints() == {"metric broken", "metric words", "metric none"})
        clock.advance(100.0)
        seen = sensor.read()
        assert seen.metrics == {}, "it is old, and the next one does not come"
        assert any(each.startswith("metric tps: no value for 100 s") for each in seen.problems)
    finally:
        sensor.close()


def test_a_metric_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path / "host")
    host.write("proc/self/mounts", MOUNTS)
    pid_file = tmp_path / "pid"
    command = f"sh -c 'sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait'"
    sensor = Sensor(
        PackagesConfig(metrics={"slow": command}, metric_timeout_s=0.2), FakeClock(), root=host.root
    )
    try:
        sensor.read()
        wait_until(lambda: any("took longer than 0.2 s" in each for each in sensor.read().problems))
        pid = int(pid_file.read_text())
        wait_until(lambda: processes.start_ticks(pid) is None)
    finally:
        sensor.close()


def test_columns_are_as_long_as_there_are_groups(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    with sensor_of(host, Wanted(name="none", cgroup="vms/*")) as sensor:
        seen = sensor.read()
        assert len(seen.groups) == 0
        assert seen.groups.memory_bytes.shape == (0,)
        assert seen.groups.used_s.dtype == np.float64
