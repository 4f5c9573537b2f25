"""Changed pages are found on real kernels: of arrays by PAGEMAP_SCAN on 6.12, and in the older way on 6.12 and 6.1; of
regions on 6.12 also by soft-dirty bits, which this machine's own kernel may not have.

The tests of arrays, of trackers and of the pre-copier, as they are, run inside the guest, once for each way that the
kernel there offers. The machine that runs this suite has one kernel; the fallback for older ones is proved only where
there is one, and what the tests skip elsewhere must run there. One boot of each kernel runs all that it has to.
"""

from pathlib import Path

import pytest

from tests.lab import reports, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

SCRIPT = """
set -e
cd "$TOP"
"$PYTHON" -c '
from sustain import _native
from sustain.host import pagemap
print("modes:", *_native.capture_modes())
print("soft-dirty", pagemap.has_soft_dirty(), pagemap.has_scan())'
pytest --basetemp=/dev/shm/tests --junitxml=/dev/shm/report.xml $FILES -k "$CHOSEN" || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""
ARRAYS = "tests/store/test_arrays.py"
REGIONS = ("tests/powerfail/regions/test_track.py", "tests/powerfail/regions/test_precopy.py")
# By name, with each way in brackets. Of the many ways to write to an array, some: emulation is slow.
OF_ARRAYS = (
    "(strided or fancy or ufunc or sort or ctypes or memoryview"
    " or random_writes or bytes_that_differ or grow or rolled_back) and not compare"
)
OF_REGIONS = (
    "(soft-dirty and (tmpfs or sealed_image or sealed_again)) or (write-protect and tmpfs and little_else)"
    " or auto_says or the_environment"
)


def run(kernel: vm.Kernel, share: Path, chosen: str, *files: str) -> reports.Report:
    # Each test of arrays leaves a store of 26 MiB in the guest's memory.
    environment = {"CHOSEN": chosen, "FILES": " ".join(files)}
    guest = vm.Guest(kernel, share, SCRIPT, memory_mib=3072, environment=environment)
    return reports.run(guest, limit_s=1000)


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> reports.Report:
    """Arrays and regions on Linux 6.12."""
    chosen = f"(test_arrays and ({OF_ARRAYS})) or (not test_arrays and ({OF_REGIONS}))"
    return run(kernel, tmp_path_factory.mktemp("capture"), chosen, ARRAYS, *REGIONS)


def test_scan_and_pagemap_on_linux_6_12(seen: reports.Report) -> None:
    assert seen.output.splitlines()[0] == "modes: scan pagemap compare"
    names = seen.of(ARRAYS)
    for mode in ("scan", "pagemap"):
        assert sum(f"[{mode}" in name for name in names) >= 10, f"{mode}: {names}"


def test_soft_dirty_bits_and_write_protection_of_regions_on_linux_6_12(seen: reports.Report) -> None:
    assert seen.output.splitlines()[1] == "soft-dirty True True"
    names = seen.of(*REGIONS)
    assert sum("soft-dirty" in name for name in names) >= 10, names
    assert any("sealed_again[soft-dirty" in name for name in names), names
    assert sum("write-protect" in name for name in names) >= 1, names


def test_the_fallback_on_linux_6_1(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    seen = run(older_kernel, tmp_path, OF_ARRAYS, ARRAYS)
    assert seen.output.splitlines()[0] == "modes: pagemap compare", "Linux 6.1 has no PAGEMAP_SCAN"
    names = seen.of(ARRAYS)
    assert sum("[pagemap" in name for name in names) >= 10, names
