"""Threads of processes of our own, of this machine's kernel, and of made files."""

import ctypes
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.errors import HostError
from sustain.host import files, processes, threads
from sustain.host.processes import Identity
from sustain.host.threads import Policy
from tests.host.test_meminfo import put
from tests.host.threaded import Program, wait_until

STAT = (
    "{tid} ({name}) {state} 1 7 7 0 -1 {flags} 100 0 42 0 {user} {kernel} 8 9 20 0 {threads} 0 {start} 1000 50 "
    "18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 {cpu} {priority} {policy} 0 0 0 0 0 0 0 0 0 0 0\n"
)


def stat(tid: int, **others: object) -> str:
    fields: dict[str, object] = {
        "name": "x", "state": "S", "flags": 4194560, "user": 30, "kernel": 12, "threads": 2,
        "start": 99, "cpu": 3, "priority": 0, "policy": 0,
    }  # fmt: skip
    return STAT.format(**(fields | {"tid": tid} | others))


def test_threads_of_made_files(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/stat", stat(7, user=100))
    put(tmp_path, "proc/7/task/7/stat", stat(7, name="a) R (b"))
    put(tmp_path, "proc/7/task/9/stat", stat(9, state="R", cpu=5, priority=40, policy=1, start=120))
    put(tmp_path, "proc/7/task/10/stat", stat(10, state="Z"))
    put(tmp_path, "proc/7/task/12/stat", stat(12, flags=0x04208040, policy=17))
    first, second, fixed = threads.read(7, tmp_path) or ()
    assert first == threads.Thread(Identity(7, 99), "a) R (b", "S", 42, Policy.OTHER, 0, 3, False, False)
    assert (second.who, second.state, second.cpu) == (Identity(9, 120), "R", 5)
    assert (second.policy, second.real_time_priority, second.real_time) == (Policy.FIFO, 40, True)
    assert (fixed.kernel, fixed.fixed, fixed.policy, fixed.real_time) == (True, True, 17, False)
    assert threads.use(7, tmp_path) == threads.Use(Identity(7, 99), 112, 2)


def test_what_has_gone_is_no_thread(tmp_path: Path) -> None:
    assert threads.read(7, tmp_path) is None
    assert threads.one(7, tmp_path) is None
    assert threads.use(7, tmp_path) is None
    put(tmp_path, "proc/7/task/7/stat", stat(7, state="Z"))
    put(tmp_path, "proc/7/stat", stat(7, state="Z", threads=1))
    assert threads.read(7, tmp_path) is None
    assert threads.use(7, tmp_path) is None


def test_what_is_no_stat_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "proc/7/task/7/stat", "7 (x) S 1 2\n")
    with pytest.raises(HostError, match="proc/7/task/7/stat") as caught:
        threads.read(7, tmp_path)
    assert caught.value.hint
    put(tmp_path, "proc/8/task", "a file")
    with pytest.raises(HostError, match="proc/8/task"):
        threads.read(8, tmp_path)


def test_a_busy_thread_is_told_from_one_that_waits() -> None:
    with Program() as program:
        idle, busy = program.start(), program.start(busy=True)
        before = {each.who.pid: each for each in threads.read(program.pid) or ()}
        assert set(before) == {program.pid, idle, busy}
        assert before[idle].who == threads.one(idle).who  # type: ignore[union-attr]

        def used(tid: int) -> int:
            thread = threads.one(tid)
            assert thread is not None
            return thread.used_ticks - before[tid].used_ticks

        wait_until(lambda: used(busy) >= 10)
        assert used(idle) == 0
        use = threads.use(program.pid)
        assert use is not None
        assert use.who == before[program.pid].who == processes.identify(program.pid)
        assert use.threads == 3
        assert use.used_ticks >= sum(each.used_ticks for each in before.values()) + 10


def test_a_thread_that_ends_has_gone_and_its_use_stays_with_the_process() -> None:
    with Program() as program:
        busy = program.start(busy=True)
        wait_until(lambda: (threads.one(busy) or pytest.fail("it ended")).used_ticks >= 5)
        program.end(busy)
        wait_until(lambda: threads.one(busy) is None)
        assert [each.who.pid for each in threads.read(program.pid) or ()] == [program.pid]
        use = threads.use(program.pid)
        assert use is not None
        assert use.used_ticks >= 5
        assert use.threads == 1
    assert threads.read(program.pid) is None
    assert threads.use(program.pid) is None


def test_the_policies_are_the_kernels() -> None:
    """Of a thread that gives itself each one."""
    set_to = {"SCHED_BATCH": Policy.BATCH, "SCHED_IDLE": Policy.IDLE}
    if os.geteuid() == 0:
        set_to |= {"SCHED_FIFO": Policy.FIFO, "SCHED_RR": Policy.RR}
    with Program() as program:
        for name, policy in set_to.items():
            priority = 1 if policy.real_time else 0
            tid = program.start()
            os.sched_setscheduler(tid, getattr(os, name), os.sched_param(priority))
            thread = threads.one(tid)
            assert thread is not None
            assert (thread.policy, thread.real_time_priority) == (policy, priority)


def test_a_deadline_thread() -> None:
    if os.geteuid() != 0:
        pytest.skip("SCHED_DEADLINE is for root")
    with Program() as program:
        tid = program.start()
        fields = (48, 6, 0, 0, 0, 1_000_000, 10_000_000, 10_000_000)  # struct sched_attr
        attributes = ctypes.create_string_buffer(
            b"".join(
                each.to_bytes(size, "little")
                for each, size in zip(fields, (4, 4, 8, 4, 4, 8, 8, 8), strict=True)
            )
        )
        if ctypes.CDLL(None).syscall(314, tid, attributes, 0) != 0:
            pytest.skip("this machine takes no deadline thread now")
        thread = threads.one(tid)
        assert thread is not None
        assert thread.policy is Policy.DEADLINE
        assert thread.real_time


def test_a_process_whose_first_thread_has_ended_lives_on() -> None:
    program = (
        "import ctypes, sys, threading\n"
        "def rest():\n"
        "    sys.stdin.read()\n"
        "    __import__('os')._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2), of this thread alone
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: _state(child.pid) == "Z")
        use = threads.use(child.pid)
        assert use is not None
        assert use.threads == 2
        (left,) = threads.read(child.pid) or ()
        assert left.who.pid != child.pid
    finally:
        child.communicate()


def test_the_kernels_own_threads() -> None:
    thread = threads.one(2)
    if thread is None or thread.name != "kthreadd":
        pytest.skip("the kernel's threads are not seen from here")
    assert thread.kernel
    found = [threads.one(int(name)) for name in os.listdir("/proc") if name.isdecimal()]
    fixed = [each for each in found if each is not None and each.fixed]
    assert fixed
    assert all(each.kernel for each in fixed)


def test_threads_that_come_and_go_while_they_are_read() -> None:
    """Each one that is seen is whole, and those that stay are always there."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            short = [threading.Thread(target=int) for _ in range(20)]
            for each in short:
                each.start()
            for each in short:
                each.join()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(200):
            found = {each.who.pid for each in threads.read(os.getpid()) or ()}
            assert {threading.get_native_id(), churning.native_id} <= found
    finally:
        stop.set()
        churning.join()


@given(st.frozensets(st.integers(0, 5000), max_size=200))
def test_lists_of_processors_are_read_as_they_were_written(numbers: frozenset[int]) -> None:
    content = files.cpu_list(numbers)
    assert files.cpus(content) == numbers
    assert files.cpu_list(files.cpus(content)) == content
    # The shortest form: no number could join the run before it.
    ends = [[int(end) for end in part.split("-")] for part in content.split(",") if part]
    assert all(after[0] > before[-1] + 1 for before, after in pairwise(ends))


def test_lists_are_written_as_the_kernel_writes_them() -> None:
    for path in Path("/sys/devices/system/cpu").glob("*"):
        if path.name in ("online", "possible", "present"):
            content = path.read_text().strip()
            assert files.cpu_list(files.cpus(content)) == content


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
