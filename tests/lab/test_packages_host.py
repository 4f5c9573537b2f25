"""Moving threads and memory between packages, on a real kernel with two of them and cgroups of version 2: what the
surfaces say, and that the kernel does it. Also their own tests, as they are, which see one package and often version 1
on the machine that runs this suite.
"""

from pathlib import Path

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

THEIR_TESTS = """
import subprocess, sys
from tests.lab.vm import TOP
done = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-q", "-rs",
     "--basetemp=/dev/shm/tests", "-k", "not lists_of_processors",  # of no kernel, and long under emulation
     *(f"tests/host/test_{name}.py" for name in ("threads", "affinity", "cpuset", "numa_memory", "move_pages"))],
    env={**__import__("os").environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
)
answer(done.returncode)
"""


def test_their_tests_pass_on_two_sockets(kernel: vm.Kernel, tmp_path: Path) -> None:
    assert two_sockets.run(kernel, tmp_path, THEIR_TESTS, limit_s=500) == 0


# What enabling the controller does to affinities that were set before.
ENABLING = """
import os, pathlib
from sustain.host import affinity, threads
from sustain.host.cpuset import Cpuset
from tests.host.threaded import Program
top = pathlib.Path("/sys/fs/cgroup")
(top / "x").mkdir(); (top / "x/y").mkdir(); (top / "x/z").mkdir()
group = Cpuset.open("/x/y")
with Program() as program, Program() as beside:
    (top / "x/y/cgroup.procs").write_text(str(program.pid))
    (top / "x/z/cgroup.procs").write_text(str(beside.pid))
    who = threads.one(beside.pid).who
    affinity.write(who, {1})
    wanted = group.enabling()
    before = (group.enabled, sorted(group.cpus()), group.own_cpus())
    for each in wanted.directories:
        (each / "cgroup.subtree_control").write_text("+cpuset")
    answer({
        "directories": [str(each) for each in wanted.directories], "processes": wanted.processes,
        "before": before, "after": (group.enabled, sorted(group.cpus()), sorted(group.own_cpus())),
        "affinity": sorted(affinity.read(who)),
    })
"""


def enabled(kernel: vm.Kernel, share: Path) -> list[int]:
    """The affinity that a thread in a cgroup beside it has, which was set to processor 1."""
    seen = two_sockets.run(kernel, share, ENABLING)
    assert (seen["directories"], seen["processes"]) == (["/sys/fs/cgroup/x"], 2)
    assert (seen["before"], seen["after"]) == ([False, [0, 1, 2, 3], None], [True, [0, 1, 2, 3], []])
    return list(seen["affinity"])


def test_enabling_cpuset_keeps_affinities_on_linux_6_12(kernel: vm.Kernel, tmp_path: Path) -> None:
    assert enabled(kernel, tmp_path) == [1]


def test_enabling_cpuset_resets_affinities_on_linux_6_1(older_kernel: vm.Kernel, tmp_path: Path) -> None:
    assert enabled(older_kernel, tmp_path) == [0, 1, 2, 3]
