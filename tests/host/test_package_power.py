"""Energy of packages by whatever a host has: made hosts of each kind, and this machine."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import topology
from sustain.host.package_power import Joules, PackagePower, Packages, joules_between
from sustain.host.powercap import Energy
from sustain.host.standstill import PATIENCE_NS
from sustain.testing import hosts
from tests.host.nobody import nobody, public_directory

_opened: list[Packages] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def opened(host: hosts.Host, **seams: object) -> Packages:
    found = Packages(topology.read(host.root), host.root, kernel=host.perf, clock=host.clock, **seams)  # type: ignore[arg-type]
    _opened.append(found)
    return found


def joules(host: hosts.Host, packages: Packages) -> dict[int, Joules]:
    """Of 10 s in which package 0 uses 60 W and 5 W for its memory, and each next one 10 W less."""
    first = packages.read()
    host.advance(10, watts={n: 60.0 - 10 * n for n in range(4)}, dram_watts=dict.fromkeys(range(4), 5.0))
    second = packages.read()
    return {each: joules_between(first[each], second[each]) for each in first}


def test_by_powercap(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, packages=4)
    packages = opened(host)
    assert {packages.source(each) for each in range(4)} == {"powercap"}
    assert joules(host, packages) == {
        n: Joules(pytest.approx(600 - 100 * n), pytest.approx(50)) for n in range(4)
    }


def test_a_counter_that_begins_again_in_between(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    host.used_uj["package-0"] = hosts.ENERGY_RANGE_UJ - 1
    host.advance(0)
    assert joules(host, opened(host))[0].package_j == pytest.approx(600)


def test_dies_count_together(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path, dies=2)
    packages = opened(host)
    assert joules(host, packages)[1] == Joules(pytest.approx(500), pytest.approx(50))
    host.perf.refused = None
    for each in (tmp_path / "sys/class/powercap").iterdir():
        (each / "name").write_text("other\n")
    packages = opened(host)
    assert packages.source(1) == "perf"
    assert joules(host, packages)[1] == Joules(pytest.approx(500), pytest.approx(50))


def test_by_perf_where_zones_are_roots_alone() -> None:
    with public_directory() as root:
        host = hosts.intel(root)
        with nobody():
            packages = opened(host)
        assert packages.source(0) == "perf"
        assert "chmod 0440" in packages.lacks[0]["powercap"]
        assert joules(host, packages)[0] == Joules(pytest.approx(600), pytest.approx(50))
        packages.close()
        host.perf.refused = errno.EACCES
        with nobody():
            found = opened(host).read()[0]
    assert (found.source, found.package, found.power_w) == ("none", None, None)
    for word in ("chmod 0440", "CAP_PERFMON", "modprobe amd_hsmp"):
        assert word in found.reason


def test_an_epyc_has_no_counter_for_memory(tmp_path: Path) -> None:
    host = hosts.epyc(tmp_path)
    packages = opened(host)
    assert packages.source(0) == "powercap"
    assert joules(host, packages)[0] == Joules(pytest.approx(600), None)


def test_by_hsmp(tmp_path: Path) -> None:
    host = hosts.Host(tmp_path, model=hosts.GENOA)
    found = opened(host, ioctl=host.hsmp({0: 123.5, 1: 66.0}, {})).read()
    assert [(found[each].source, found[each].power_w) for each in (0, 1)] == [("hsmp", 123.5), ("hsmp", 66.0)]
    assert found[0].package is None


def test_energy_that_stands_still_is_absent_on_any_host(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    packages = opened(host)
    packages.read()
    host.advance(3, watts={0: 50})
    found = packages.read()
    assert found[0].package is not None
    assert (found[1].package, "though energy is always used" in found[1].reason) == (None, True)


def test_a_virtual_machine_where_everything_reads_zero(tmp_path: Path) -> None:
    host = hosts.virtual(tmp_path)
    packages = opened(host)
    for _ in range(3):
        found = packages.read()[0]
        assert found.package is None
        assert "virtual machine" in found.reason
        host.advance(1, watts={0: 50})


def test_a_zone_that_vanishes(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    packages = opened(host)
    first = packages.read()[0]
    for each in (tmp_path / "sys/class/powercap").glob("*/energy_uj"):
        each.chmod(0o600)
        each.write_text("\n")
    host.perf.refused = errno.ENODEV
    found = packages.read()[0]
    assert (found.source, found.package) == ("none", None)
    assert "energy_uj: no number" in found.reason
    host.perf.refused = None
    host.advance(1, watts={0: 50})  # which writes the zones anew
    found = packages.read()[0]
    assert found.source == "powercap"
    assert joules_between(first, found) == Joules(None, None)


def test_energy_of_readings_that_do_not_belong_together() -> None:
    def of(*used_uj: int, source: str = "perf", began_ns: int = 0) -> PackagePower:
        package = tuple(Energy(each, None) for each in used_uj)
        return PackagePower(source=source, read_ns=0, began_ns=began_ns, package=package)

    assert joules_between(of(0), of(3_000_000)) == Joules(3.0, None)
    unknown = Joules(None, None)
    assert joules_between(of(0), of(1, source="powercap")) == unknown
    assert joules_between(of(0), of(1, began_ns=1)) == unknown
    assert joules_between(of(0), of(1, 2)) == unknown
    assert joules_between(of(5, 5), of(9, 4)) == unknown


def test_this_machine() -> None:
    with Packages(topology.read()) as packages:
        packages.read()
        began_ns = time.monotonic_ns()
        while time.monotonic_ns() < began_ns + PATIENCE_NS:
            time.sleep(0.1)  # time is what passes here
        found = packages.read()
    for each in found.values():
        measured = each.package is not None or each.power_w is not None
        assert measured != each.reason.startswith("not measurable here, because ")
