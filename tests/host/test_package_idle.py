"""Idle states of packages by whatever a host has: made hosts of each kind, and this machine."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import package_idle, perf_events, topology
from sustain.host.package_idle import PackageIdle, Packages, shares_between
from sustain.testing import hosts

_opened: list[Packages] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def opened(host: hosts.Host, **seams: object) -> Packages:
    found = Packages(
        topology.read(host.root),
        host.root,
        kernel=host.perf,
        pread=hosts.registers_pread,
        clock=host.clock,
        **seams,  # type: ignore[arg-type]
    )
    _opened.append(found)
    return found


def shares(host: hosts.Host, packages: Packages, **what: object) -> dict[int, dict[str, float] | None]:
    first = packages.read()
    host.advance(2, **what)  # type: ignore[arg-type]
    second = packages.read()
    return {each: shares_between(first[each], second[each]) for each in first}


def test_by_perf(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    packages = opened(host)
    assert [packages.source(each) for each in (0, 1)] == ["perf", "perf"]
    assert packages.lacks == {0: {}, 1: {}}
    found = shares(host, packages, residency={1: {"pc2": 0.25, "pc6": 0.5}})
    assert found == {0: {"pc2": 0, "pc6": 0}, 1: {"pc2": pytest.approx(0.25), "pc6": pytest.approx(0.5)}}
    last = packages.read([1])[1]
    assert (last.unit, last.parts, last.elapsed) == ("tsc", 1, 2 * hosts.TSC_HZ)
    assert last.states == {"pc2": hosts.TSC_HZ // 2, "pc6": hosts.TSC_HZ}


def test_of_four_sockets_only_those_asked_for_are_woken(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=4)
    packages = opened(host)
    host.perf.reads = 0
    assert set(packages.read([0, 3])) == {0, 3}
    assert host.perf.reads == 2


def test_dies_count_together(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=1, dies=2)
    packages = opened(host)
    found = shares(host, packages, residency={0: {"pc6": 0.75}})
    assert packages.read()[0].parts == 2
    assert found[0] == {"pc2": 0, "pc6": pytest.approx(0.75)}


def test_by_registers_where_perf_has_none(tmp_path: Path) -> None:
    host = hosts.registers_only(tmp_path)
    packages = opened(host)
    assert packages.source(0) == "msr"
    assert "cstate_pkg" in packages.lacks[0]["perf"]
    assert shares(host, packages, residency={0: {"pc2": 0.9}}) == {
        0: {"pc2": pytest.approx(0.9), "pc6": 0},
        1: {"pc2": 0, "pc6": 0},
    }


def test_by_registers_where_perf_is_not_permitted(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    host.perf.refused = errno.EACCES
    packages = opened(host)
    assert packages.source(1) == "msr"
    assert "CAP_PERFMON" in packages.lacks[1]["perf"]
    assert host.perf.open_count == 0


def test_another_processor_of_the_package_is_asked_when_one_goes(tmp_path: Path) -> None:
    host = hosts.registers_only(tmp_path)
    packages = opened(host)
    host.take_offline(0)
    host.advance(1)
    assert packages.read()[0].source == "msr"


def test_by_hsmp(tmp_path: Path) -> None:
    host = hosts.Host(tmp_path, model=hosts.GENOA)
    packages = opened(host, ioctl=host.hsmp({}, {0: 12, 1: 0}))
    found = packages.read()
    assert [(found[each].source, found[each].active_percent) for each in (0, 1)] == [
        ("hsmp", 12),
        ("hsmp", 0),
    ]
    assert found[0].states is None
    assert "AuthenticAMD, family 25, model 17" in packages.lacks[0]["msr"]


def test_by_processors_alone_which_is_called_that(tmp_path: Path) -> None:
    host = hosts.epyc(tmp_path)
    packages = opened(host)
    assert packages.source(0) == "cpuidle"
    assert set(packages.lacks[0]) == {"perf", "msr", "hsmp"}
    busy = dict.fromkeys(range(4), 0.5)  # first threads of package 0
    assert shares(host, packages, busy=busy) == {0: {"core-c2": pytest.approx(0.75)}, 1: {"core-c2": 1}}
    assert packages.read()[0].parts == 8


def test_a_deepest_state_that_is_switched_off(tmp_path: Path) -> None:
    host = hosts.epyc(tmp_path)
    for cpu in host.cpus:
        host.write(f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state2/disable", "1\n")
    assert shares(host, opened(host)) == {0: {"core-c1": 0}, 1: {"core-c1": 0}}


def test_processors_offline(tmp_path: Path) -> None:
    host = hosts.epyc(tmp_path)
    host.take_offline(1, 2, 3, 5)
    packages = opened(host)
    assert shares(host, packages) == {0: {"core-c2": 1}, 1: {"core-c2": 1}}
    assert (packages.read()[0].parts, packages.read()[1].parts) == (5, 7)
    host = hosts.intel(tmp_path / "other")
    host.take_offline(*host.cpus_of(1))
    packages = opened(host)
    assert set(packages.read()) == {0}
    gone = packages.read([1])[1]
    assert (gone.source, gone.states) == ("none", None)
    assert gone.reason == "not measurable here, because it has no processor that is online"


def test_nothing_at_all(tmp_path: Path) -> None:
    found = opened(hosts.bare(tmp_path)).read()[0]
    assert (found.source, found.states, found.active_percent) == ("none", None, None)
    assert found.reason.startswith("not measurable here, because perf has no cstate_pkg")
    for word in ("modprobe intel_cstate", "modprobe msr", "modprobe amd_hsmp", "idle=poll"):
        assert word in found.reason


def test_a_virtual_machine_where_everything_reads_zero(tmp_path: Path) -> None:
    host = hosts.virtual(tmp_path)
    packages = opened(host)
    for _ in range(5):
        for found in packages.read().values():
            assert found.states is None
            assert "virtual machine" in found.reason
        host.advance(1, residency={0: {"pc6": 1.0}})
    assert "stood still for 5 s" in packages.read()[0].reason


def test_a_virtual_machine_without_counters_is_not_judged_by_its_own_idle_states(tmp_path: Path) -> None:
    host = hosts.Host(tmp_path, virtual=True)
    host.idle_states()
    found = opened(host).read()[0]
    assert (found.source, found.states) == ("none", None)
    assert "because perf" in found.reason
    assert "; this is a virtual machine" in found.reason


def test_a_virtual_machine_that_is_given_counters(tmp_path: Path) -> None:
    host = hosts.virtual(tmp_path)
    host.standing = False
    packages = opened(host)
    first = packages.read()[0]
    host.advance(1, residency={0: {"pc6": 0.5}})
    second = packages.read()[0]
    host.advance(1, residency={0: {"pc6": 0.5}})
    third = packages.read()[0]
    assert first.states is None
    assert shares_between(second, third) == {"pc2": 0, "pc6": pytest.approx(0.5)}


def test_a_source_that_fails_is_opened_anew_and_counts_from_there(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    packages = opened(host)
    host.advance(1, residency={0: {"pc6": 1.0}})
    first = packages.read([0])[0]
    host.take_offline(0)  # the processor that counts; the kernel would have another one count
    host.advance(100, residency={0: {"pc6": 1.0}})
    second = packages.read([0])[0]
    assert (first.source, second.source) == ("perf", "msr")
    assert "no longer" not in second.reason
    assert packages.lacks[0]["perf"]
    assert shares_between(first, second) is None


def test_a_source_that_can_be_opened_and_never_read_is_given_up(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    packages = opened(host)
    host.perf.unreadable = errno.ENODEV
    assert packages.read()[0].source == "msr"
    assert host.perf.open_count == 0
    host.perf.unreadable = None
    assert packages.read()[0].source == "msr"  # as long as that works


def test_shares_of_readings_that_do_not_belong_together() -> None:
    first = PackageIdle(source="perf", read_ns=0, states={"pc6": 0}, elapsed=0, unit="tsc")
    later = PackageIdle(source="perf", read_ns=9, states={"pc6": 5}, elapsed=10, unit="tsc")
    anew = PackageIdle(source="perf", read_ns=9, began_ns=5, states={"pc6": 5}, elapsed=10, unit="tsc")
    absent = PackageIdle(source="none", read_ns=9, reason="not measurable here, because …")
    assert shares_between(first, later) == {"pc6": 0.5}
    assert shares_between(first, anew) is None
    assert (
        shares_between(first, absent) is shares_between(absent, later) is shares_between(later, later) is None
    )


def test_this_machines_kernel_counts_by_a_made_description(tmp_path: Path) -> None:
    """The TSC in the place of an idle state: a package that is always in it."""
    msr = perf_events.pmu("msr")
    if msr is None or "tsc" not in msr.events:
        pytest.skip("this kernel has no counter for the TSC")
    cpu = min(os.sched_getaffinity(0))
    host = hosts.Host(tmp_path, packages=1, cores=cpu + 1)
    host.pmu("msr", msr.type, {"tsc": "event=0x00"})
    host.pmu("cstate_pkg", msr.type, {"c6-residency": "event=0x00"}, str(cpu))
    with Packages(topology.read(tmp_path), tmp_path) as packages:
        if packages.source(0) != "perf":
            pytest.skip(f"not permitted here: {packages.lacks[0]['perf']}")
        first, second = packages.read()[0], packages.read()[0]
    assert shares_between(first, second) == {"pc6": pytest.approx(1, abs=0.05)}


def test_this_machine() -> None:
    with Packages(topology.read()) as packages:
        found = packages.read()
        assert [each.source for each in found.values()] == [packages.source(each) for each in found]
    for each in found.values():
        measured = each.states is not None or each.active_percent is not None
        assert measured != each.reason.startswith("not measurable here, because ")
    assert package_idle.since_boot_ns() > max(each.read_ns for each in found.values())
