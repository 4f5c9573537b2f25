"""Memory by node: of made files, and of this machine, which may have one node."""

import mmap
import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import numa_memory, processes
from sustain.host.cgroup import Cgroup
from sustain.host.numa_memory import Area, NodeMemory
from tests.host.held import own_cgroup, reading_in
from tests.host.test_meminfo import put

MIB = 1 << 20
NUMA_MAPS = """\
00400000 default file=/usr/bin/N1=9\\040x mapped=3 N0=1 N2=2 kernelpagesize_kB=4
7f0000000000 bind:0-1 anon=700 dirty=700 active=0 N0=200 N1=500 kernelpagesize_kB=4
7f1000000000 default file=/dev/hugepages/a huge anon=2 dirty=2 N1=2 kernelpagesize_kB=2048
7f2000000000 default
7ffd00000000 default stack anon=3 dirty=3 N0=3 kernelpagesize_kB=4
"""


def test_a_process_of_made_files(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/numa_maps", NUMA_MAPS)
    assert numa_memory.of_process(7, tmp_path) == {0: 204 * 4096, 1: 500 * 4096 + 4 * MIB, 2: 2 * 4096}
    found = numa_memory.areas(7, tmp_path)
    assert found is not None
    assert found[0] == Area(0x400000, {0: 4096, 2: 8192}, huge=False, file=True)
    assert found[2] == Area(0x7F1000000000, {1: 4 * MIB}, huge=True, file=True)
    assert found[3].by_node == {}
    assert numa_memory.of_process(8, tmp_path) is None
    put(tmp_path, "proc/9/numa_maps", "")  # a thread of the kernel, or one that has just ended
    assert numa_memory.of_process(9, tmp_path) is None
    put(tmp_path, "proc/10/numa_maps/x", "")
    with pytest.raises(HostError, match="proc/10/numa_maps"):
        numa_memory.of_process(10, tmp_path)


def test_a_cgroup_of_made_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        "memory.numa_stat",
        "anon N0=4096 N1=8192\nfile N0=100 N1=0\nkernel_stack N0=10 N1=0\nshmem N0=100 N1=0\nfile_mapped N0=50 N1=0\n"
        "inactive_anon N0=4096 N1=0\nslab_reclaimable N0=1 N1=2\nworkingset_refault_anon N0=7 N1=7\n",
    )
    assert numa_memory.of_cgroup(tmp_path) == {0: 4096 + 100 + 10 + 1, 1: 8192 + 2}
    assert numa_memory.of_cgroup(tmp_path / "none") is None


def test_a_cgroup_of_version_1(tmp_path: Path) -> None:
    own = "total=5 N0=4 N1=1\nfile=5 N0=4 N1=1\nanon=0 N0=0 N1=0\n"
    put(tmp_path, "memory.numa_stat", own)
    assert numa_memory.of_cgroup(tmp_path) == {0: 16384, 1: 4096}
    put(
        tmp_path,
        "memory.numa_stat",
        own + "hierarchical_total=15 N0=4 N1=11\nhierarchical_file=5 N0=4 N1=1\n",
    )
    assert numa_memory.of_cgroup(tmp_path) == {0: 16384, 1: 11 * 4096}


def test_nodes_of_made_files(tmp_path: Path) -> None:
    put(tmp_path, "sys/devices/system/node/online", "0,2\n")
    put(
        tmp_path,
        "sys/devices/system/node/node0/meminfo",
        "Node 0 MemTotal:  1000 kB\nNode 0 MemFree:  10 kB\nNode 0 FilePages: 5 kB\nNode 0 AnonPages: 3 kB\n"
        "Node 0 HugePages_Total:     0\n",
    )
    assert numa_memory.nodes(tmp_path) == {
        0: NodeMemory(1000 << 10, 10 << 10, 5 << 10, 3 << 10),
        2: NodeMemory(None, None, None, None),
    }
    assert numa_memory.nodes(tmp_path / "none") == {}


def numa() -> None:
    if not Path("/proc/self/numa_maps").exists() or not numa_memory.nodes():
        pytest.skip("this kernel has no NUMA")


def test_this_process() -> None:
    numa()
    before = numa_memory.of_process(os.getpid())
    with mmap.mmap(-1, 32 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        after = numa_memory.of_process(os.getpid())
        resident = processes.memory(os.getpid())
    assert before is not None
    assert after is not None
    assert resident is not None
    assert sum(after.values()) - sum(before.values()) > 30 * MIB
    assert resident.resident is not None
    # Some pages are no node's: the zero page, those of the kernel.
    assert abs(sum(after.values()) - resident.resident) < 4 * MIB
    assert after.keys() <= numa_memory.nodes().keys()


def test_a_real_cgroup(tmp_path: Path) -> None:
    numa()
    with own_cgroup() as group:
        if not (group.directory / "memory.numa_stat").exists():
            pytest.skip("this kernel counts no cgroup's memory by node")
        with reading_in(group, tmp_path / "file", 32 * MIB):
            found = numa_memory.of_cgroup(group.directory)
            current = group.current_bytes()
    assert found is not None
    assert current is not None
    assert sum(found.values()) > 0.8 * current
    assert sum(found.values()) > 4 * MIB


def test_this_machine() -> None:
    numa()
    found = numa_memory.nodes()
    assert all(0 <= (each.free_bytes or 0) <= (each.total_bytes or 0) for each in found.values())
    assert sum(each.total_bytes or 0 for each in found.values()) > 64 * MIB
    own = Cgroup.of_process(os.getpid())
    if own is not None and (own.directory / "memory.numa_stat").exists():
        assert numa_memory.of_cgroup(own.directory)
