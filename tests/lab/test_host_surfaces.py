"""The tests of the host's memory surfaces, as they are, on real distribution kernels: cgroups of version 2, PSI, zram,
both ways of a page census. The machine that runs this suite has one kernel, and often cgroups of version 1.
"""

from pathlib import Path

import pytest

from tests.lab import vm
from tests.lab.test_capture import passed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SCRIPT = """
set -e
cd "$TOP"
export PATH="$PATH:/usr/sbin:/sbin"
modprobe -a virtio_blk ext4
modprobe zram num_devices=0
mkfs.ext4 -q /dev/vda
mount /dev/vda /run/mnt  # files in the page cache, which the shared directory's are not
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
"$PYTHON" -c 'from sustain.host import pagemap; print("scan:", pagemap.has_scan())'
pytest --basetemp=/run/mnt/tests --junitxml=/dev/shm/report.xml \
    tests/host/test_cgroup.py tests/host/test_madvise.py tests/host/test_pagemap.py tests/host/test_processes.py \
    tests/host/test_meminfo.py tests/host/test_topology.py || status=$?
cp /dev/shm/report.xml /run/lab/
exit ${status:-0}
"""


def run(kernel: vm.Kernel, share: Path) -> tuple[str, set[str]]:
    """Boot and test: the output's first line, and the tests that passed."""
    disk = share / "disk"
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    result = vm.Guest(kernel, share, SCRIPT, disk=disk, memory_mib=1024).run(limit_s=500)
    print(f"Linux {kernel.release}: {result.seconds:.0f} s\n{result.output}")
    assert result.status == 0, result.output
    return result.output.splitlines()[0], set(passed(share))


REAL = {
    "test_a_real_cgroup_gives_up_its_page_cache",
    "test_page_out_moves_pages_to_swap_and_willneed_back",
    "test_without_swap_page_out_says_yes_and_does_nothing",
    "test_a_trigger_fires_when_tasks_stall",
    "test_what_is_not_mapped_is_passed_over_and_said",
}


def test_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    scan, names = run(kernel, tmp_path)
    assert scan == "scan: True"
    assert names >= REAL | {
        "test_both_ways_of_a_census_agree",
        "test_large_pages_are_counted_and_split_by_cold",
    }


def test_linux_6_1_without_a_scan(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    scan, names = run(older_kernel, tmp_path)
    assert scan == "scan: False"
    assert names >= REAL
