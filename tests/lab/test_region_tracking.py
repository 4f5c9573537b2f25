"""Changed pages of regions on a real distribution kernel, 6.12: soft-dirty bits, which this machine's own may not have,
and regions on persistent memory.

The tests of trackers and of the pre-copier run inside the guest as they are; what they skip elsewhere must run there.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lab import vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

SCRIPT = """
cd "$TOP"
"$PYTHON" -c 'from sustain.host import pagemap; print("soft-dirty", pagemap.has_soft_dirty(), pagemap.has_scan())'
pytest --basetemp="$PLACE/tests" --junitxml=/dev/shm/report.xml \
    tests/powerfail/regions/test_track.py tests/powerfail/regions/test_precopy.py -k "$CHOSEN" || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""
CHOSEN = (
    "(soft-dirty and (tmpfs or sealed_image or sealed_again)) or (write-protect and tmpfs and little_else)"
    " or auto_says or the_environment"
)
DAX = """
set -e
modprobe nfit; modprobe nd_pmem; modprobe ext4
mkdir -p /run/mnt/pmem
ndctl create-namespace -f -e namespace0.0 -m fsdax > /dev/null 2>&1
mkfs.ext4 -q -b 4096 -E stride=512,stripe_width=512 /dev/pmem0
mount -o dax=always /dev/pmem0 /run/mnt/pmem
"""
ON_DAX = "(soft-dirty and disk and not tmpfs and (little_else or call)) or without_the_kernels_help"


def run(guest: vm.Guest, release: str) -> list[str]:
    """The names of the tests that passed in the guest."""
    result = guest.run(limit_s=1000)
    print(f"Linux {release}: {result.seconds:.0f} s")
    assert result.status == 0, result.output
    assert result.output.splitlines()[0] == "soft-dirty True True"
    cases = ET.parse(guest.share / "report.xml").getroot().iter("testcase")
    return [case.get("name", "") for case in cases if not list(case)]


def test_soft_dirty_bits_and_write_protection_on_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    environment = {"CHOSEN": CHOSEN, "PLACE": "/dev/shm"}
    guest = vm.Guest(kernel, tmp_path, SCRIPT, memory_mib=2048, environment=environment)
    passed = run(guest, kernel.release)
    assert sum("soft-dirty" in name for name in passed) >= 10, passed
    assert sum("write-protect" in name for name in passed) >= 1, passed


def test_a_region_on_persistent_memory(kernel: vm.Kernel, tmp_path: Path) -> None:
    """A file on a DAX file system. Write protection must not be tried there: the program would hang in a fault."""
    nvdimm = tmp_path / "nvdimm"
    with nvdimm.open("wb") as file:
        file.truncate(256 << 20)
    share = tmp_path / "share"
    share.mkdir()
    environment = {"CHOSEN": ON_DAX, "PLACE": "/run/mnt/pmem"}
    guest = vm.Guest(kernel, share, DAX + SCRIPT, nvdimm=nvdimm, environment=environment)
    passed = run(guest, kernel.release)
    assert sum("soft-dirty" in name for name in passed) >= 2, passed
    assert any("without_the_kernels_help" in name for name in passed), passed
