"""What the host knows of memory whose user tells nothing: DAMON on a real distribution kernel, which this machine's own
kernel may not have, and a container's classes by cgroups of version 2. The tests run inside the guest, as they are.
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
pytest -s --basetemp=/run/mnt/tests --junitxml=/dev/shm/report.xml \
    tests/host/test_damon_kernel.py tests/schedulers/guest_memory/test_cgroup_guest.py || status=$?
cp /dev/shm/report.xml /run/lab/
cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds
exit ${status:-0}
"""


def test_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    result = vm.Guest(kernel, tmp_path, SCRIPT, disk=disk, memory_mib=1024).run(limit_s=500)
    print(f"Linux {kernel.release}: {result.seconds:.0f} s\n{result.output}")
    assert result.status == 0, result.output
    assert result.output.splitlines()[-1] == "0"  # nothing of DAMON is left
    assert set(passed(tmp_path)) >= {
        "test_pages_of_a_guest_within_the_stated_error",
        "test_blocks_are_counted_one_by_one",
        "test_what_somebody_else_has_set_up_is_left_alone",
        "test_somebody_else_takes_it_while_nothing_of_ours_runs",
        "test_killed_it_is_taken_away_by_the_next",
        "test_a_process_that_ends",
        "test_a_container_is_seen_reclaimed_and_whole",
        "test_another_life_of_its_place_is_left_alone",
    }
