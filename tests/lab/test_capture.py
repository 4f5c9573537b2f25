"""Changed array pages are found on real kernels: by PAGEMAP_SCAN on 6.12, in the older way on 6.12 and on 6.1.

The tests of arrays, as they are, run inside the guest, once for each way that the kernel there offers. The machine
that runs this suite has one kernel; the fallback for older ones is proved only where there is one.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lab import vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SCRIPT = """
set -e
cd "$TOP"
"$PYTHON" -c 'from sustain import _native; print("modes:", *_native.capture_modes())'
pytest --basetemp=/dev/shm/tests --junitxml=/dev/shm/report.xml \
    tests/store/test_arrays.py -k "$CHOSEN" || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""
# By name, with each way in brackets. Of the many ways to write to an array, some: emulation is slow.
CHOSEN = (
    "(strided or fancy or ufunc or sort or ctypes or memoryview"
    " or random_writes or bytes_that_differ or grow or rolled_back) and not compare"
)


def passed(share: Path) -> list[str]:
    """Names of the tests that passed in the guest."""
    cases = ET.parse(share / "report.xml").getroot().iter("testcase")
    return [case.get("name", "") for case in cases if not list(case)]


def run(kernel: vm.Kernel, share: Path) -> tuple[str, list[str]]:
    """Boot, run the array tests; the output's first line and the tests that passed."""
    # Each test leaves a store of 26 MiB in the guest's memory.
    guest = vm.Guest(kernel, share, SCRIPT, memory_mib=2048, environment={"CHOSEN": CHOSEN})
    result = guest.run(limit_s=600)
    print(f"Linux {kernel.release}: {result.seconds:.0f} s")
    assert result.status == 0, result.output
    return result.output.splitlines()[0], passed(share)


def test_scan_and_pagemap_on_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    modes, names = run(kernel, tmp_path)
    assert modes == "modes: scan pagemap compare"
    for mode in ("scan", "pagemap"):
        assert sum(f"[{mode}" in name for name in names) >= 10, f"{mode}: {names}"


def test_the_fallback_on_linux_6_1(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    modes, names = run(older_kernel, tmp_path)
    assert modes == "modes: pagemap compare", "Linux 6.1 has no PAGEMAP_SCAN"
    assert sum("[pagemap" in name for name in names) >= 10, names
