"""What is said of power-aware placement on hosts of each kind, and the command that would enable the rest."""

import errno
from pathlib import Path

import pytest

from sustain.cli.doctor import Finding, describe
from sustain.cli.doctor_packages import Seams, package_findings, report
from sustain.errors import HostError
from sustain.testing import hosts
from tests.host.nobody import nobody, public_directory


def said(host: hosts.Host, **seams: object) -> dict[str, Finding]:
    """Of a host seen by root."""
    chosen = {"kernel": host.perf, "pread": hosts.registers_pread, "user": 0} | seams
    return {each.name: each for each in report(host.root, Seams(**chosen))}  # type: ignore[arg-type]


def mounted(host: hosts.Host) -> hosts.Host:
    host.cgroup("/machine.slice", cpuset_cpus="")
    host.write("proc/self/mounts", "none /sys/fs/cgroup cgroup2 rw 0 0\n")
    return host


def test_a_host_with_everything(tmp_path: Path) -> None:
    found = said(mounted(hosts.intel(tmp_path)))
    assert {each.state for each in found.values()} == {"ok"}
    assert {each.enable for each in found.values()} == {""}
    assert found["packages"].found == "2 with 8 processors that are online"
    assert found["host and firmware"].found.startswith("Dell Inc. PowerEdge R740, BIOS 2.21.2")
    assert found["idle states of packages"].found == "by perf: pc2, pc6"
    assert found["energy of packages"].found == "by powercap: counted, and that of memory"
    assert found["depth limit of packages"].found == "pc6, locked"
    assert found["idle states of processors"].found == "POLL, C1, C1E, C6; driver intel_idle, governor menu"
    assert "version 2 at" in found["moving groups"].found
    assert not any("HSMP" in name for name in found)  # another maker's, and not needed


def test_each_permission_that_is_missing_has_its_command() -> None:
    with public_directory() as root:
        host = hosts.intel(root)
        host.perf.refused = errno.EACCES
        for each in root.glob("dev/cpu/*/msr"):
            each.chmod(0o600)
        with nobody():
            found = said(host, user=1000)
    assert found["idle states of packages"].state == "reduced"
    assert found["idle states of packages"].found == "by cpuidle: core-c6"
    assert "perf_event_paranoid is 2" in found["residency by perf"].enable
    assert "CAP_SYS_RAWIO" in found["residency by registers (/dev/cpu/N/msr)"].enable
    assert found["energy of packages"].state == "missing"
    assert "chmod 0440" in found["energy by powercap"].enable
    assert "CAP_PERFMON" in found["energy by perf"].enable
    assert found["depth limit of packages"].state == "unknown"
    assert (found["rights"].state, found["rights"].enable) == ("missing", "run it as root")


def test_an_epyc_is_not_told_to_load_drivers_of_another_maker(tmp_path: Path) -> None:
    found = said(hosts.epyc(tmp_path))
    assert (found["idle states of packages"].state, found["idle states of packages"].found) == (
        "reduced",
        "by cpuidle: core-c2",
    )
    assert "modprobe amd_hsmp" in found["idle states of packages"].enable
    assert not any("intel_cstate" in each.enable for each in found.values())
    host = hosts.Host(tmp_path / "genoa", model=hosts.GENOA)
    found = said(host, ioctl=host.hsmp({0: 181.0, 1: 60.0}, {0: 3, 1: 0}))
    assert found["idle states of packages"].found == "by HSMP (/dev/hsmp): 3% in C0"
    assert found["energy of packages"].found == "by HSMP (/dev/hsmp): 181 W of package 0"


def test_firmware_that_lets_no_package_rest(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    for cpu in host.cpus:
        host.set_register(cpu, 0xE2, 0x8000)
        host.write(f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state3/disable", "1\n")
    found = said(host)
    assert (found["depth limit of packages"].state, found["depth limit of packages"].found) == (
        "missing",
        "pc0, locked",
    )
    assert "C6 (switched off)" in found["idle states of processors"].found
    assert found["idle states of processors"].enable == "cpupower idle-set -E"


def test_a_virtual_machine(tmp_path: Path) -> None:
    found = said(hosts.virtual(tmp_path))
    assert found["packages"].enable == "run it on the host"
    for name in ("idle states of packages", "energy of packages"):
        assert found[name].state == "unknown"
        assert "virtual machine" in found[name].found


def test_one_package_and_nothing_else(tmp_path: Path) -> None:
    found = said(hosts.bare(tmp_path, packages=1))
    assert (found["packages"].state, found["idle states of packages"].state) == ("reduced", "missing")
    assert found["moving groups"].state == "reduced"
    with pytest.raises(HostError):
        report(tmp_path / "none")


def test_this_host() -> None:
    few, all_of_them = package_findings(), report()
    assert {each.name for each in few} < {each.name for each in all_of_them}
    assert all(describe(each).startswith("  ") and each.found and each.means for each in all_of_them)
