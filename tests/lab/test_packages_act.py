"""Groups of threads are moved between two packages, on real kernels with cgroups of version 2: one that remembers what
affinity somebody has set when a cpuset changes (Linux 6.12), and one that forgets it (6.1). The tests run in the guest.
"""

from pathlib import Path

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PROGRAM = """
import os, subprocess, sys
done = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-v", "-rs", "--durations=8",
     "--basetemp=/dev/shm/tests", "--junitxml=/run/lab/report.xml", *CHOSEN],
    env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
)
answer(done.returncode)
"""
TESTS = "tests/schedulers/packages"
OTHERS = [
    f"{TESTS}/test_act.py::test_{name}"
    for name in (
        "what_somebody_else_sets_meanwhile_is_left_alone",
        "a_cgroup_that_somebody_else_has_set_since_is_left_alone",
        "a_process_that_has_left_its_parent_in_such_a_cgroup_is_free_again",
    )
]
FORGOTTEN = ("threads_that_a_user_has_bound", "follows_its_cpuset", "bound_is_bound_again", "off_line")


def passes(kernel: vm.Kernel, share: Path, *chosen: str) -> None:
    program = f"CHOSEN = {chosen!r}\n{PROGRAM}"
    environment = {"SUSTAIN_LAB_GUEST": "1"}
    assert two_sockets.run(kernel, share, program, limit_s=600, environment=environment) == 0
    report = (share / "report.xml").read_text()
    assert 'skipped="0"' in report, report


def test_two_packages(kernel: vm.Kernel, tmp_path: Path) -> None:
    passes(kernel, tmp_path, f"{TESTS}/test_two_packages.py", *OTHERS)


@two_sockets.more
def test_a_kernel_that_forgets_affinities(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    chosen = " or ".join(FORGOTTEN)
    passes(older_kernel, tmp_path, "-k", chosen, f"{TESTS}/test_two_packages.py", f"{TESTS}/test_act.py")
