"""Packages, dies, cores and nodes: of a made tree with two sockets, and of this machine."""

import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import meminfo, topology
from tests.host.test_meminfo import put


def two_sockets(root: Path) -> None:
    """Two packages of two cores with two threads; core numbers repeat in the second one; 7 is offline."""
    put(root, "sys/devices/system/cpu/online", "0-6\n")
    for number in range(7):
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        put(root, f"{folder}/physical_package_id", f"{number // 4}\n")
        put(root, f"{folder}/die_id", "0\n")
        put(root, f"{folder}/core_id", f"{number % 2}\n")
    put(root, "sys/devices/system/node/online", "0-1,4\n")
    for number, cpus in ((0, "0-3"), (1, "4-6"), (4, "")):
        folder = f"sys/devices/system/node/node{number}"
        put(root, f"{folder}/cpulist", cpus + "\n")
        put(root, f"{folder}/distance", "10 21 30\n")
        put(
            root,
            f"{folder}/meminfo",
            f"Node {number} MemTotal:  1000 kB\nNode {number} MemFree:  {number} kB\n",
        )


def test_two_sockets(tmp_path: Path) -> None:
    two_sockets(tmp_path)
    found = topology.read(tmp_path)
    assert found.packages == {0: frozenset(range(4)), 1: frozenset((4, 5, 6))}
    assert found.cores[0, 0, 0] == {0, 2}
    assert found.cores[1, 0, 0] == {4, 6}
    assert set(found.dies) == {(0, 0), (1, 0)}
    assert [each.node for each in found.cpus] == [0, 0, 0, 0, 1, 1, 1]
    memory_only = found.nodes[2]
    assert (memory_only.number, memory_only.cpus, memory_only.free_bytes) == (4, frozenset(), 4096)
    assert found.nodes[1].distances == {0: 10, 1: 21, 4: 30}


def test_a_machine_that_says_nothing_of_its_cores(tmp_path: Path) -> None:
    put(tmp_path, "sys/devices/system/cpu/online", "0-1\n")
    put(tmp_path, "sys/devices/system/cpu/cpu1/topology/core_id", "-1\n")
    found = topology.read(tmp_path)
    assert found.cpus == (topology.Cpu(0, 0, 0, 0, None), topology.Cpu(1, 0, 0, 1, None))
    assert found.nodes == ()
    with pytest.raises(HostError, match="cpu/online"):
        topology.read(tmp_path / "none")


def test_this_machine() -> None:
    found = topology.read()
    assert {each.number for each in found.cpus} >= os.sched_getaffinity(0)
    assert sum(map(len, found.cores.values())) == len(found.cpus)
    sizes = [each.total_bytes for each in found.nodes]
    if sizes:
        assert sum(each or 0 for each in sizes) == meminfo.read().total_bytes
