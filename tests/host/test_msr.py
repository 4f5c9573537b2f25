"""Registers of processors: which ones are read of which processor, and what is said of the others."""

import errno
import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import firmware, msr
from sustain.host.msr import Limit, Msr
from sustain.testing import hosts
from tests.host.nobody import nobody, public_directory


@pytest.mark.parametrize(
    ("model", "package", "core"),
    [
        (hosts.HASWELL, {"pc2": 0x60D, "pc3": 0x3F8, "pc6": 0x3F9, "pc7": 0x3FA}, {"c3", "c6", "c7"}),
        (hosts.SKYLAKE, {"pc2": 0x60D, "pc6": 0x3F9}, {"c6"}),
        (hosts.SAPPHIRE_RAPIDS, {"pc2": 0x60D, "pc6": 0x3F9}, {"c1", "c6"}),
    ],
)
def test_processors_that_are_known(
    tmp_path: Path, model: hosts.Model, package: dict[str, int], core: set[str]
) -> None:
    hosts.Host(tmp_path, model=model)
    found = msr.registers(firmware.identify(tmp_path))
    assert (found.package, set(found.core)) == (package, core)


def test_processors_that_are_not(tmp_path: Path) -> None:
    hosts.Host(tmp_path, model=hosts.Model("GenuineIntel", 6, 158, 10, "Core i7", "0x1"))
    identity = firmware.identify(tmp_path)
    assert msr.known(identity) is None
    with pytest.raises(HostError, match=r"Core i7 \(GenuineIntel, family 6, model 158\): .* unknown"):
        msr.registers(identity)
    for vendor, family in (
        ("AuthenticAMD", 6),
        ("GenuineIntel", 19),
    ):  # the same number of another maker or family
        hosts.Host(tmp_path, model=hosts.Model(vendor, family, 85, 1, "other", "0x1"))
        assert msr.known(firmware.identify(tmp_path)) is None


def test_what_a_register_says(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    host.advance(1, residency={1: {"pc6": 0.5}})
    with Msr(2, tmp_path, hosts.registers_pread) as register:
        assert register.read(msr.TSC) == host.tsc
        assert register.read(0x3F9) == hosts.TSC_HZ // 2
        assert register.read(0x60D) == 0
        with pytest.raises(HostError, match=r"dev/cpu/2/msr, register 0x7000: ") as caught:
            register.read(0x7000)
    assert (caught.value.errno, "hypervisor" in caught.value.hint) == (errno.EIO, True)


@pytest.mark.parametrize(
    ("model", "value", "limit"),
    [
        (hosts.SKYLAKE, 0x8402, Limit(2, "pc6", locked=True)),
        (hosts.SKYLAKE, 0x0, Limit(0, "pc0", locked=False)),
        (hosts.SKYLAKE, 0x8007, Limit(7, "any", locked=True)),
        (hosts.SKYLAKE, 0x5, Limit(5, "", locked=False)),
        (hosts.SKYLAKE, 0xF, Limit(15, "", locked=False)),
        (hosts.HASWELL, 0x2, Limit(2, "pc3", locked=False)),
        (hosts.HASWELL, 0x8, Limit(8, "any", locked=False)),
    ],
)
def test_how_deep_a_package_may_go(tmp_path: Path, model: hosts.Model, value: int, limit: Limit) -> None:
    host = hosts.Host(tmp_path, model=model)
    host.registers({0xE2: value})
    with Msr(0, tmp_path, hosts.registers_pread) as register:
        assert register.limit(msr.registers(firmware.identify(tmp_path))) == limit


def test_without_the_driver_and_without_rights(tmp_path: Path) -> None:
    hosts.bare(tmp_path)
    with pytest.raises(HostError, match="dev/cpu/0/msr") as caught:
        Msr(0, tmp_path)
    assert caught.value.hint == "modprobe msr"
    with public_directory() as root:
        hosts.intel(root)
        (root / "dev/cpu/0/msr").chmod(0o600)
        with nobody(), pytest.raises(HostError) as caught:
            Msr(0, root)
    assert "CAP_SYS_RAWIO" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/cpu/0/msr").exists(), reason="no driver for registers here")
def test_this_machine() -> None:
    try:
        register = Msr(min(os.sched_getaffinity(0)))
    except HostError as error:
        pytest.skip(f"not permitted here: {error}")
    with register:
        first = register.read(msr.TSC)
        if not first and firmware.identify().virtual:
            pytest.skip("this hypervisor answers zero for the TSC")
        assert register.read(msr.TSC) > first
