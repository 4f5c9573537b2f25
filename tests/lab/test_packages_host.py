"""Moving threads and memory between packages, on a real kernel with two of them and cgroups of version 2: what the
surfaces say, and that the kernel does it. Also their own tests, as they are, which see one package and often version 1
on the machine that runs this suite.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

TESTS = """
import os, subprocess, sys
done = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-q", "-rs",
     "--basetemp=/dev/shm/tests", "-k", "not lists_of_processors",  # of no kernel, and long under emulation
     *(f"tests/host/test_{name}.py" for name in os.environ["CHOSEN"].split())],
    env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
)
answer(done.returncode)
"""


@two_sockets.more
@pytest.mark.parametrize("chosen", ["threads affinity cpuset irqs", "numa_memory move_pages"])
def test_the_surfaces_own_tests_pass_on_two_sockets(kernel: vm.Kernel, tmp_path: Path, chosen: str) -> None:
    assert two_sockets.run(kernel, tmp_path, TESTS, limit_s=500, environment={"CHOSEN": chosen}) == 0


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


@pytest.fixture(scope="module")
def seen(kernel: vm.Kernel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one boot has shown."""
    program = "from tests.lab import packages_host_guest\nanswer(packages_host_guest.look())\n"
    found = two_sockets.run(kernel, tmp_path_factory.mktemp("packages"), program, limit_s=500)
    assert isinstance(found, dict)
    return found


def test_a_cpuset_moves_busy_threads_and_their_memory_to_another_package(seen: dict[str, Any]) -> None:
    moves = seen["moves"]
    assert moves["ran"] == [True, True, True]
    # 24 MiB of its own, and what it shares with other programs, wherever that is.
    assert moves["before"]["0"] > 18 << 20 > 2 * moves["before"].get("1", 0)
    assert moves["after"]["1"] > 18 << 20 > 2 * moves["after"].get("0", 0)
    assert moves["whole"]


def test_a_list_that_was_empty_is_put_back_as_all_that_there_is(seen: dict[str, Any]) -> None:
    """This kernel empties no list of a cgroup that has threads."""
    assert seen["moves"]["own"] == []
    assert seen["moves"]["put back"] == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]


def test_a_processor_that_goes_offline_and_comes_back(seen: dict[str, Any]) -> None:
    before, without, again = (seen["hotplug"][each] for each in ("before", "without", "again"))
    assert before["packages"] == again["packages"] == [[0, 1], [2, 3]]
    assert without["packages"] == [[0, 1], [2]]
    assert before["affinities"] == [[2, 3], [3], [2, 3], [3]]
    # Where something is left, it is kept or cut; where nothing is, the thread may run anywhere.
    assert without["affinities"] == [[2, 3], [0, 1, 2, 3], [2], [0, 1, 2]]
    # In a cpuset all comes back; outside one, what was lost is not given back.
    assert again["affinities"] == [[2, 3], [0, 1, 2, 3], [2, 3], [3]]
    assert before["groups"] == again["groups"] == [[[2, 3], [2, 3]], [[3], [3]]]
    assert without["groups"] == [[[2, 3], [2]], [[3], [0, 1, 2]]]
    assert all(each.startswith("EINVAL: none of them is online") for each in seen["hotplug"]["refused"])


def test_interrupts_come_to_another_package_but_for_those_that_the_kernel_places(
    seen: dict[str, Any],
) -> None:
    found = seen["interrupts"]
    assert found["on"] == [[0], [2]]
    assert found["back"]
    assert found["managed"] == [[0], [1], [2], [3]]  # one queue of the disk for each processor
    assert "places it itself" in found["refused"]
    assert found["kernel"] in ("EIO", "EPERM")
