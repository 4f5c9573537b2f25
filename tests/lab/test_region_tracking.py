"""Changed pages of regions on persistent memory, on a real distribution kernel, 6.12. What is in memory runs with the
tests of arrays (test_capture), in one boot. The tests of trackers and of the pre-copier run inside the guest as they
are; what they skip elsewhere must run there.
"""

from pathlib import Path

import pytest

from tests.lab import reports, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

SCRIPT = """
set -e
modprobe nfit; modprobe nd_pmem; modprobe ext4
mkdir -p /run/mnt/pmem
ndctl create-namespace -f -e namespace0.0 -m fsdax > /dev/null 2>&1
mkfs.ext4 -q -b 4096 -E stride=512,stripe_width=512 /dev/pmem0
mount -o dax=always /dev/pmem0 /run/mnt/pmem
cd "$TOP"
"$PYTHON" -c 'from sustain.host import pagemap; print("soft-dirty", pagemap.has_soft_dirty(), pagemap.has_scan())'
pytest --basetemp=/run/mnt/pmem/tests --junitxml=/dev/shm/report.xml \
    tests/powerfail/regions/test_track.py tests/powerfail/regions/test_precopy.py -k "$CHOSEN" || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""
CHOSEN = "(soft-dirty and disk and not tmpfs and (little_else or call)) or without_the_kernels_help"


def test_a_region_on_persistent_memory(kernel: vm.Kernel, tmp_path: Path) -> None:
    """A file on a DAX file system. Write protection must not be tried there: the program would hang in a fault."""
    nvdimm = tmp_path / "nvdimm"
    with nvdimm.open("wb") as file:
        file.truncate(256 << 20)
    share = tmp_path / "share"
    share.mkdir()
    guest = vm.Guest(kernel, share, SCRIPT, nvdimm=nvdimm, environment={"CHOSEN": CHOSEN})
    seen = reports.run(guest, limit_s=1000)
    assert seen.output.splitlines()[0] == "soft-dirty True True"
    passed = seen.of()
    assert sum("soft-dirty" in name for name in passed) >= 2, passed
    assert any("without_the_kernels_help" in name for name in passed), passed
