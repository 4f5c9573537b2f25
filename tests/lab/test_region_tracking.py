"""Changed pages of regions on a real distribution kernel, 6.12: soft-dirty bits, which this machine's own may not have.

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
"$PYTHON" -m pytest -q -p no:cacheprovider --basetemp=/dev/shm/tests --junitxml=/dev/shm/report.xml \
    tests/powerfail/regions/test_track.py tests/powerfail/regions/test_precopy.py -k "$CHOSEN" || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""
CHOSEN = (
    "(soft-dirty and (tmpfs or sealed_image or sealed_again)) or (write-protect and tmpfs and little_else)"
    " or auto_says or the_environment"
)


def test_soft_dirty_bits_and_write_protection_on_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    guest = vm.Guest(kernel, tmp_path, SCRIPT, memory_mib=2048, environment={"CHOSEN": CHOSEN})
    result = guest.run(limit_s=1000)
    print(f"Linux {kernel.release}: {result.seconds:.0f} s")
    assert result.status == 0, result.output
    assert result.output.splitlines()[0] == "soft-dirty True True"
    cases = ET.parse(tmp_path / "report.xml").getroot().iter("testcase")
    passed = [case.get("name", "") for case in cases if not list(case)]
    assert sum("soft-dirty" in name for name in passed) >= 10, passed
    assert sum("write-protect" in name for name in passed) >= 1, passed
