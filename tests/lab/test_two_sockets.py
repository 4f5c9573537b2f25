"""The machine of two packages is one, and what goes wrong in it fails the test that started it."""

from pathlib import Path

import pytest

from tests.lab import two_sockets, vm

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PROGRAM = """
from sustain.host import topology
found = topology.read()
answer({
    "packages": [sorted(cpus) for _, cpus in sorted(found.packages.items())],
    "nodes": [sorted(each.cpus) for each in found.nodes],
    "memory": [each.total_bytes for each in found.nodes],
    "distances": [sorted(each.distances.items()) for each in found.nodes],
    "controllers": open("/sys/fs/cgroup/cgroup.subtree_control").read().split(),
})
"""


def test_two_packages_with_memory_of_their_own(kernel: vm.Kernel, tmp_path: Path) -> None:
    seen = two_sockets.run(kernel, tmp_path, PROGRAM)
    assert seen["packages"] == seen["nodes"] == [[0, 1], [2, 3]]
    assert all(size > 500 << 20 for size in seen["memory"])
    assert seen["distances"] == [[[0, 10], [1, 21]], [[0, 21], [1, 10]]]
    assert set(seen["controllers"]) >= {"cpuset", "cpu", "memory"}


def test_a_program_that_fails_says_so(kernel: vm.Kernel, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        two_sockets.run(kernel, tmp_path, "answer(1)\n1 / 0\n")
