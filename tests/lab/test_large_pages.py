"""Large pages on real kernels: counting by DAMON on a distribution's, exact counting on one that is built for it
(scripts/build-page-idle-kernel.sh), mapping large and small on both. The tests run inside the guest, as they are.
"""

from pathlib import Path

import pytest

from tests.lab import reports, vm
from tests.lab.conftest import boot_kernel

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SCRIPT = """
set -e
cd "$TOP"
export PATH="$PATH:/usr/sbin:/sbin"
echo never > /sys/kernel/mm/transparent_hugepage/enabled  # else nothing is small at the beginning
[ -e /sys/class/zram-control ] || modprobe zram num_devices=0
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
pytest -s --basetemp=/dev/shm/tests --junitxml=/dev/shm/report.xml --durations=8 $CHOSEN || status=$?
cp /dev/shm/report.xml /run/lab/
cat /sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds
exit ${status:-0}
"""
TESTS = "tests/schedulers/large_pages"
COUNTING = f"{TESTS}/test_counting_kernel.py"
WHOLE = f"{TESTS}/test_whole_kernel.py"
SCARCE = f"{TESTS}/test_scarce_kernel.py"
SPLIT = f"{TESTS}/test_split_kernel.py"
GUEST_RAM = f"{TESTS}/test_guest_ram_kernel.py"
ESTIMATED = {
    "test_estimates_are_within_their_error",
    "test_what_is_counted_changes_and_ends",
    "test_somebody_else_uses_damon",
    "test_killed_while_it_counts_nothing_of_damon_is_left",
}
EXACT = {
    *(f"test_exactly_what_is_touched[{kind}]" for kind in ("private", "shared", "memfd")),
    "test_several_processes_at_once",
    "test_of_a_large_block_only_whether_it_is_used",
    "test_pages_that_come_and_blocks_that_are_collapsed_within_a_period",
    "test_one_that_ends_and_one_that_becomes_another_program",
}
MARKED = {"test_the_kernels_own", "test_the_kernels_own_is_held_by_one"}
# Of test_act.py, what kernels may do differently; the rest is of our own making, and runs on the machine's own kernel.
ACTED = {
    *(f"test_large_then_small_then_as_it_was[{kind}]" for kind in ("private", "shared", "memfd")),
    "test_what_is_filled_is_told",
    "test_one_that_unmaps_executes_or_ends",
    "test_one_that_forks",
    "test_one_that_is_swapped_out_meanwhile",
    "test_one_whose_cgroup_is_full",
    "test_killed_at_any_moment_nothing_is_left[0.01]",
}
SCARCELY = "test_no_large_page_is_to_be_had"  # takes the memory with hugetlbfs
SPLITTING = "test_what_a_child_has_too_is_split_for_both"
ACTING = [f"{TESTS}/test_act.py::{name}" for name in sorted(ACTED)]


def run(kernel: vm.Kernel, share: Path, *chosen: str, memory_mib: int = 1024) -> set[str]:
    """Boot and test: the tests that passed."""
    environment = {"CHOSEN": " ".join(chosen), "SUSTAIN_LAB_GUEST": "1"}
    guest = vm.Guest(kernel, share, SCRIPT, memory_mib=memory_mib, environment=environment)
    report = reports.run(guest, limit_s=800)
    found = set(report.of())
    assert report.output.splitlines()[-1] == "0"  # nothing of DAMON is left
    return found


def test_a_distributions_kernel(kernel: vm.Kernel, tmp_path: Path) -> None:
    whole = "test_hot_blocks_are_large_first_and_a_change_is_followed_by_estimates"
    ram = {f"test_a_guests_ram_is_estimated_within_the_error[{kind}]" for kind in ("anonymous", "memfd")}
    chosen = [f"{GUEST_RAM}::{name}" for name in sorted(ram)]
    found = run(kernel, tmp_path, COUNTING, f"{WHOLE}::{whole}", *ACTING, *chosen, SPLIT, SCARCE)
    assert found >= ESTIMATED | ACTED | ram | {whole, SCARCELY, SPLITTING}


def test_one_with_page_idle(scratch: Path, tmp_path: Path) -> None:
    if not (vm.LAB / vm.PAGE_IDLE / "release").exists():
        pytest.skip("it is not built: scripts/build-page-idle-kernel.sh does it, in some five minutes")
    whole = "test_hot_blocks_are_large_first_and_a_change_is_followed"
    ram = {f"test_a_guests_ram_is_counted_exactly[{kind}]" for kind in ("anonymous", "memfd")}
    chosen = [f"{GUEST_RAM}::{name}" for name in sorted(ram)]
    kernel = boot_kernel(vm.PAGE_IDLE, scratch)
    marks = "tests/host/test_page_idle.py"
    found = run(kernel, tmp_path, marks, COUNTING, f"{WHOLE}::{whole}", *ACTING, *chosen, SPLIT, SCARCE)
    assert found >= EXACT | ESTIMATED | MARKED | ACTED | ram | {whole, SCARCELY, SPLITTING}
