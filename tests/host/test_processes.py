"""What a process has of memory: of this one, and of made files."""

import mmap
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import processes
from sustain.host.processes import Identity
from tests.host.test_meminfo import put

STATUS = "Name:\tqemu\nVmLck:\t4 kB\nVmRSS:\t  100 kB\nRssAnon:\t60 kB\nRssFile:\t30 kB\nRssShmem:\t10 kB\n"


def test_memory_from_smaps_rollup(tmp_path: Path) -> None:
    put(
        tmp_path,
        "proc/7/smaps_rollup",
        "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 200 kB\nAnonymous: 150 kB\nAnonHugePages: 64 kB\n"
        "ShmemPmdMapped: 32 kB\nShared_Hugetlb: 2048 kB\nPrivate_Hugetlb: 0 kB\nSwap: 8 kB\nLocked: 4 kB\n",
    )
    put(tmp_path, "proc/7/status", STATUS)
    found = processes.memory(7, str(tmp_path))
    assert found == processes.Memory(
        resident=2248 << 10,
        swapped=8 << 10,
        huge=2144 << 10,
        anonymous=150 << 10,
        file=30 << 10,
        shared=10 << 10,
        locked=4 << 10,
    )


def test_memory_from_status_alone_knows_less(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/status", STATUS)
    found = processes.memory(7, str(tmp_path))
    assert found == processes.Memory(100 << 10, None, None, 60 << 10, 30 << 10, 10 << 10, 4 << 10)


def test_a_process_that_has_gone(tmp_path: Path) -> None:
    assert processes.memory(7, str(tmp_path)) is None
    assert processes.major_faults(7, str(tmp_path)) is None
    assert processes.memory((1 << 22) + 1) is None


def test_a_process_that_may_not_be_looked_at(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/smaps_rollup/x", "")
    with pytest.raises(HostError, match="smaps_rollup"):
        processes.memory(7, str(tmp_path))


def test_this_process() -> None:
    before = processes.memory(os.getpid())
    assert before is not None
    assert before.resident is not None
    # Of its own: the heap may have had it already.
    with mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        after = processes.memory(os.getpid())
    assert after is not None
    assert after.resident is not None
    assert after.resident - before.resident > 30 << 20
    assert (after.anonymous or 0) > 30 << 20
    assert processes.major_faults(os.getpid()) is not None


def test_major_faults_of_a_process_with_an_odd_name(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/stat", "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 42 0 1 2 3 4 20 0 1 0 99 0 0\n")
    assert processes.major_faults(7, str(tmp_path)) == 42


def test_processes_below_one() -> None:
    script = "sh -c 'sleep 1000 & echo $!; wait' & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as shell:
        try:
            assert shell.stdout is not None
            numbers = {int(shell.stdout.readline()), int(shell.stdout.readline())}
            found = processes.descendants(shell.pid)
            assert {each.pid for each in found} == numbers
            first, second = found
            assert processes.parents(second.pid) >= {first.pid, shell.pid}
            assert processes.descendants(second.pid) == []
            assert {each.pid for each in processes.descendants(os.getpid())} >= numbers
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def test_processes_below_one_as_the_kernel_lists_them(tmp_path: Path) -> None:
    for pid, children in ((7, "8 9 "), (8, "10 "), (9, ""), (10, "")):
        put(tmp_path, f"proc/{pid}/task/{pid}/children", children)
        put(tmp_path, f"proc/{pid}/stat", f"{pid} (x) S {' '.join(['0'] * 18)} {pid * 100} 0")
    put(tmp_path, "proc/7/task/70/children", "11 ")  # which has ended by now
    found = processes.descendants(7, str(tmp_path))
    assert set(found) == {(8, 800), (9, 900), (10, 1000)}
    assert found.index(Identity(8, 800)) < found.index(Identity(10, 1000))
