"""Energy counters, of made hosts; of this machine if it has any."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.errors import HostError
from sustain.host import powercap
from sustain.host.powercap import Energy, Meter, joules_between
from sustain.testing import hosts
from tests.host.nobody import nobody, public_directory

RANGE = hosts.ENERGY_RANGE_UJ


def test_zones_of_two_packages_and_the_platform(tmp_path: Path) -> None:
    host = hosts.bare(tmp_path)
    host.powercap(parts=("dram", "core"), platform=True)
    host.write("sys/class/powercap/intel-rapl-mmio:0/name", "package-0\n")  # the same once more
    host.write("sys/class/powercap/intel-rapl/enabled", "1\n")
    host.write("sys/class/powercap/dtpm/name", "dtpm\n")
    found = powercap.zones(tmp_path)
    assert [(each.kind, each.package, each.die) for each in found] == [
        ("package", 0, None),
        ("dram", 0, None),
        ("core", 0, None),
        ("package", 1, None),
        ("dram", 1, None),
        ("core", 1, None),
        ("psys", None, None),
    ]
    assert powercap.unavailable(tmp_path) is None


def test_zones_of_packages_with_two_dies(tmp_path: Path) -> None:
    hosts.bare(tmp_path, dies=2).powercap()
    found = powercap.zones(tmp_path)
    assert [(each.kind, each.package, each.die) for each in found if each.kind == "dram"] == [
        ("dram", 0, 0),
        ("dram", 0, 1),
        ("dram", 1, 0),
        ("dram", 1, 1),
    ]


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    with Meter(powercap.zones(tmp_path)[0]) as meter:
        host.used_uj["package-0"] = RANGE - 1_000_000
        host.advance(0)
        first = meter.read()
        host.advance(10, watts={0: 50})
        second = meter.read()
    assert second.used_uj < first.used_uj
    assert joules_between(first, second) == pytest.approx(500)


def test_a_counter_that_is_another_one() -> None:
    assert joules_between(Energy(10, None), Energy(4, None)) is None
    assert joules_between(Energy(RANGE * 3, RANGE), Energy(4, RANGE)) is None
    assert joules_between(Energy(7, RANGE), Energy(7, RANGE)) == 0


@given(st.integers(0, RANGE - 1), st.integers(0, RANGE - 1))
def test_any_use_below_the_range_is_found(start: int, used: int) -> None:
    first, second = Energy(start, RANGE), Energy((start + used) % RANGE, RANGE)
    assert joules_between(first, second) == pytest.approx(used / 1e6)


def test_a_host_without(tmp_path: Path) -> None:
    assert powercap.zones(tmp_path) == ()
    reason = powercap.unavailable(tmp_path)
    assert reason is not None
    assert "modprobe" in reason.hint


def test_files_that_are_roots_alone() -> None:
    with public_directory() as root:
        hosts.intel(root)
        with nobody():
            reason = powercap.unavailable(root)
            assert reason is not None
            assert "chmod 0440" in reason.hint
            with pytest.raises(HostError, match="energy_uj: Permission") as caught:
                Meter(powercap.zones(root)[0])
        assert "root" in caught.value.hint


@pytest.mark.skipif(
    powercap.unavailable() is not None, reason="this machine has no RAPL zones that we may read"
)
def test_this_machine() -> None:
    with Meter(powercap.zones()[0]) as meter:
        assert joules_between(meter.read(), meter.read()) is not None
