"""The tests of the host's memory surfaces, as they are, on real distribution kernels: cgroups of version 2, PSI, zram,
both ways of a page census. The machine that runs this suite has one kernel, and often cgroups of version 1.

On the newer one also what the host knows of memory whose user tells nothing: DAMON, which this machine's own kernel may
not have, and a container's classes by cgroups of version 2. One boot runs all of them.
"""

from pathlib import Path

import pytest

from tests.lab import reports, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

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
pytest -s --basetemp=/run/mnt/tests --junitxml=/dev/shm/report.xml $CHOSEN || status=$?
cp /dev/shm/report.xml /run/lab/
[ ! -e /sys/kernel/mm/damon/admin ] || echo "of DAMON: $(cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds)"
exit ${status:-0}
"""
HOST = tuple(
    f"tests/host/test_{name}.py"
    for name in ("cgroup", "madvise", "pagemap", "processes", "meminfo", "topology")
)
SAMPLING = ("tests/host/test_damon_kernel.py", "tests/schedulers/guest_memory/test_cgroup_guest.py")


def run(kernel: vm.Kernel, share: Path, *chosen: str) -> reports.Report:
    disk = share / "disk"
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    environment = {"CHOSEN": " ".join(chosen)}
    guest = vm.Guest(kernel, share, SCRIPT, disk=disk, memory_mib=1024, environment=environment)
    return reports.run(guest, limit_s=800)


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> reports.Report:
    return run(kernel, tmp_path_factory.mktemp("surfaces"), *HOST, *SAMPLING)


REAL = {
    "test_a_real_cgroup_gives_up_its_page_cache",
    "test_page_out_moves_pages_to_swap_and_willneed_back",
    "test_without_swap_page_out_says_yes_and_does_nothing",
    "test_a_trigger_fires_when_tasks_stall",
    "test_what_is_not_mapped_is_passed_over_and_said",
}


def test_linux_6_12(seen: reports.Report) -> None:
    assert "scan: True" in seen.output.splitlines()
    assert set(seen.of(*HOST)) >= REAL | {
        "test_both_ways_of_a_census_agree",
        "test_large_pages_are_counted_and_split_by_cold",
    }


def test_what_is_sampled_on_linux_6_12(seen: reports.Report) -> None:
    assert seen.output.splitlines()[-1] == "of DAMON: 0"  # nothing is left
    assert set(seen.of(*SAMPLING)) >= {
        "test_pages_of_a_guest_within_the_stated_error",
        "test_blocks_are_counted_one_by_one",
        "test_what_somebody_else_has_set_up_is_left_alone",
        "test_somebody_else_takes_it_while_nothing_of_ours_runs",
        "test_killed_it_is_taken_away_by_the_next",
        "test_a_process_that_ends",
        "test_a_container_is_seen_reclaimed_and_whole",
        "test_another_life_of_its_place_is_left_alone",
    }


def test_linux_6_1_without_a_scan(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    seen = run(older_kernel, tmp_path, *HOST)
    assert "scan: False" in seen.output.splitlines()
    assert set(seen.of(*HOST)) >= REAL
