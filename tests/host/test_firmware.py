"""What names a host and its firmware."""

import platform
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import firmware
from sustain.testing import hosts


def test_what_is_said(tmp_path: Path) -> None:
    hosts.intel(tmp_path)
    found = firmware.identify(tmp_path)
    assert (found.vendor, found.product, found.bios_version) == ("Dell Inc.", "PowerEdge R740", "2.21.2")
    assert (found.cpu_vendor, found.cpu_family, found.cpu_model, found.cpu_stepping) == (
        "GenuineIntel",
        6,
        85,
        4,
    )
    assert (found.microcode, found.virtual) == ("0x2007006", False)
    assert found.title == (
        "Dell Inc. PowerEdge R740, BIOS 2.21.2, Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz, microcode 0x2007006"
    )


def test_the_key_is_stable_and_follows_the_firmware(tmp_path: Path) -> None:
    host = hosts.intel(tmp_path)
    key = firmware.identify(tmp_path).key
    assert key == "e2115e523d213ec1"
    host.take_offline(3, 7)
    assert firmware.identify(tmp_path).key == key
    host.dmi("Dell Inc.", "PowerEdge R740", "2.22.0")
    assert firmware.identify(tmp_path).key != key
    host.dmi("Dell Inc.", "PowerEdge R740", "2.21.2")
    assert firmware.identify(tmp_path).key == key
    path = tmp_path / "proc/cpuinfo"
    path.write_text(path.read_text().replace("0x2007006", "0x2007007", 1))
    assert firmware.identify(tmp_path).microcode == "0x2007006, 0x2007007"
    assert firmware.identify(tmp_path).key != key


def test_a_virtual_machine_without_dmi(tmp_path: Path) -> None:
    hosts.virtual(tmp_path)
    for each in (tmp_path / "sys/class/dmi/id").iterdir():
        each.unlink()
    found = firmware.identify(tmp_path)
    assert found.virtual
    assert found.title.startswith("unknown host, Intel(R) Xeon(R) Platinum 8490H")
    assert found.title.endswith(", virtual machine")


def test_other_architectures_say_less(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n\n")
    found = firmware.identify(tmp_path)
    assert (found.cpu_vendor, found.cpu_family, found.virtual) == ("", None, False)
    assert found.title == "unknown host"
    with pytest.raises(HostError, match="proc/cpuinfo"):
        firmware.identify(tmp_path / "none")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors say other things")
def test_this_machine() -> None:
    found = firmware.identify()
    assert found.cpu_vendor
    assert found.cpu_family is not None
    assert found.key == firmware.identify().key
