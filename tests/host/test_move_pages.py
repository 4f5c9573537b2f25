"""Moving a real process's memory between nodes, where this machine has two; and what is refused, on any."""

import contextlib
import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from sustain.errors import HostError
from sustain.host import maps, move_pages, numa_memory, processes, topology
from sustain.host.move_pages import Mover
from sustain.host.processes import Identity
from tests.host.held import MIB, Holder
from tests.host.test_numa_memory import numa
from tests.host.threaded import Program


def two_nodes() -> tuple[int, int]:
    """Two that have memory; the first has processors."""
    numa()
    memory = numa_memory.nodes()
    found = [each for each in topology.read().nodes if memory[each.number].total_bytes]
    if len(found) < 2 or not found[0].cpus:
        pytest.skip("this machine has one node with memory; the lab has two")
    return found[0].number, found[1].number


@contextlib.contextmanager
def running_on(node: int) -> Iterator[None]:
    """What is started meanwhile has its memory there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, next(each.cpus for each in topology.read().nodes if each.number == node))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def held_on(node: int, size_bytes: int) -> Iterator[Holder]:
    with running_on(node), Holder(size_bytes) as holder:
        yield holder


def placed(holder: Holder) -> dict[int, int]:
    """What it holds, in bytes by node, page by page."""
    pages = np.arange(holder.start, holder.start + holder.used_bytes, 4096, np.uint64)
    nodes = move_pages.where(holder.who, pages)
    return {
        int(node): int(count) * 4096
        for node, count in zip(*np.unique(nodes, return_counts=True), strict=True)
    }


def test_where_pages_are() -> None:
    numa()
    with Holder(8 * MIB) as holder:
        beyond = holder.start + holder.used_bytes  # never written
        nodes = move_pages.where(holder.who, np.array([holder.start, beyond, 4096], np.uint64))
        assert nodes[0] in numa_memory.nodes()
        # Nothing there, the zero page, or no mapping at all.
        assert set(nodes[1:].tolist()) <= {-errno.ENOENT, -errno.EFAULT}
        assert sum(placed(holder).values()) == holder.used_bytes
        assert len(move_pages.where(holder.who, np.zeros(0, np.uint64))) == 0


def test_a_sample_agrees_with_the_whole() -> None:
    numa()
    with Holder(16 * MIB) as holder:
        areas = [(holder.start, holder.start + holder.size_bytes)]
        found = move_pages.sample(holder.who, areas, 2000, seed=random.randrange(1 << 30))
        # Three quarters of it are in memory: at five standard errors.
        assert abs(sum(found.values()) / 2000 - 0.75) < 0.05
        assert found.keys() <= placed(holder).keys()
        assert move_pages.sample(holder.who, [], 10, seed=1) == {}


def test_nothing_to_move() -> None:
    numa()
    with Holder(8 * MIB) as holder:
        nodes = list(placed(holder))
        assert move_pages.migrate(holder.who, nodes, nodes) == 0
        step = Mover(holder.who, nodes, nodes[0]).step(MIB) if len(nodes) == 1 else None
        assert step is None or (step.done, step.moved_bytes, step.problem) == (True, 0, None)


def test_all_at_once() -> None:
    here, there = two_nodes()
    with held_on(here, 16 * MIB) as holder:
        assert placed(holder) == {here: holder.used_bytes}
        left = move_pages.migrate(holder.who, [here], [there])
        assert placed(holder) == {there: holder.used_bytes}
        assert holder.touch()
        by_node = numa_memory.of_process(holder.who.pid)
        assert by_node is not None
        assert by_node[there] > holder.used_bytes
        assert left < 100_000
        move_pages.migrate(holder.who, [there], [here])
        assert placed(holder) == {here: holder.used_bytes}


def test_step_by_step_within_the_budget() -> None:
    here, there = two_nodes()
    with held_on(here, 24 * MIB) as holder:
        mover = Mover(holder.who, [here], there)
        moved, steps = 0, 0
        while True:
            before = placed(holder)
            step = mover.step(3 * MIB)
            after = placed(holder)
            assert before.get(here, 0) - after.get(here, 0) <= step.moved_bytes
            assert step.moved_bytes <= 5 * MIB  # a large page moves as a whole
            moved += step.moved_bytes
            steps += 1
            if step.done:
                break
            assert step.moved_bytes > 0 or step.problem
        assert placed(holder) == {there: holder.used_bytes}
        assert moved >= holder.used_bytes
        assert steps > 5
        assert holder.touch()  # nothing was lost


def test_what_others_map_too_stays_and_is_said() -> None:
    here, there = two_nodes()
    program = (
        "import mmap, os, sys, ctypes\n"
        "view = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "view[:] = b'x' * len(view)\n"
        "child = os.fork()\n"
        "if child: print(ctypes.addressof(ctypes.c_char.from_buffer(view)), flush=True)\n"
        "sys.stdin.read()\n"
        "if child: os.waitpid(child, 0)\n"
    )
    with running_on(here):
        parent = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    try:
        assert parent.stdout is not None
        start = int(parent.stdout.readline())
        who = processes.identify(parent.pid)
        assert who is not None
        mover = Mover(who, [here], there)
        step = mover.step(1 << 40)
        assert step.done
        assert step.stayed_bytes[errno.EACCES] >= 8 * MIB
        assert "other processes" in (step.problem or "")
        assert move_pages.where(who, np.array([start + MIB], np.uint64)).tolist() == [here]
    finally:
        parent.communicate()


def test_a_process_that_has_gone() -> None:
    numa()
    node = min(numa_memory.nodes())
    with Holder(8 * MIB) as holder:
        mover = Mover(holder.who, [node + 1], node)
        stranger = Identity(holder.who.pid, holder.who.start_ticks - 1)
        for refused in (
            lambda: move_pages.migrate(stranger, [node], [node]),
            lambda: move_pages.where(stranger, np.array([4096], np.uint64)),
            lambda: Mover(stranger, [node], node + 1),
        ):
            with pytest.raises(HostError, match=f"process {stranger.pid}") as caught:
                refused()
            assert (caught.value.errno, caught.value.hint) == (errno.ESRCH, "the process has gone")
    for late in (lambda: move_pages.migrate(holder.who, [node], [node]), lambda: mover.step(MIB)):
        with pytest.raises(HostError) as caught:
            late()
        assert caught.value.errno == errno.ESRCH


def test_a_process_that_ends_between_two_steps() -> None:
    here, there = two_nodes()
    with held_on(here, 16 * MIB) as holder:
        mover = Mover(holder.who, [here], there)
        mover.step(MIB)
    with pytest.raises(HostError) as caught:
        mover.step(MIB)
    assert caught.value.errno == errno.ESRCH


def test_a_node_that_is_not_there() -> None:
    numa()
    absent = max(numa_memory.nodes()) + 1
    me = processes.identify(os.getpid())
    assert me is not None
    with pytest.raises(HostError, match="its memory") as caught:
        move_pages.migrate(me, [min(numa_memory.nodes())], [absent])
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint
    with pytest.raises(HostError, match="its memory") as caught:
        Mover(me, [min(numa_memory.nodes())], absent).step(MIB)
    assert caught.value.errno in (errno.ENODEV, errno.EACCES)
    assert caught.value.hint


def test_a_process_of_another_user() -> None:
    numa()
    if os.geteuid() != 0:
        pytest.skip("only root can try as somebody else")
    node = min(numa_memory.nodes())
    with Program() as program:
        who = processes.identify(program.pid)
        assert who is not None
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setuid(65534)
                move_pages.migrate(who, [node], [node])
            except HostError as error:
                code = 0 if error.errno == errno.EPERM and "CAP_SYS_NICE" in error.hint else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_all_areas_are_listed() -> None:
    found = maps.areas(os.getpid())
    assert found is not None
    assert list(found) == sorted(found)
    assert maps.areas((1 << 22) + 1) is None
