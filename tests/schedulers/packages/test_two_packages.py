"""Groups of busy threads are moved between packages and come back, where there are two of them: in the lab's machine
(tests/lab/test_packages_act.py), since it takes processors off line. By the processors that they really run on."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import affinity, irqs, kernel, numa_memory, processes, threads, topology
from sustain.host.cpuset import Cpuset
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.handles import CgroupHandle
from sustain.schedulers.packages.model import Interrupts
from tests.host.cpusets import enter, own_cpuset
from tests.host.threaded import wait_until
from tests.schedulers.packages.groups import (
    Located,
    as_found,
    bind,
    handle,
    place,
    process,
    release,
    running,
    where,
)
from tests.schedulers.packages.kill_host import Host, points

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("SUSTAIN_LAB_GUEST") or len(topology.read().packages) < 2,
        reason="the lab runs it, on a machine of two packages",
    ),
    pytest.mark.timeout(600),
]
KILLS = 9
PACKAGES = {number: frozenset(cpus) for number, cpus in topology.read().packages.items()}
ALL = frozenset().union(*PACKAGES.values())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def located() -> Located:
    return Located()


@pytest.fixture
def actuator(journal: Journal, located: Located) -> Actuator:
    return Actuator(journal, located, limit_s=120)


@pytest.fixture
def cpuset() -> Iterator[Cpuset]:
    with own_cpuset(name="box") as found:
        assert found.version == 2
        yield found


def runs_on(pid: int) -> frozenset[int]:
    """The processors that its busy threads ran on last."""
    return frozenset(each.cpu for each in threads.read(pid) or () if each.state == "R")


def seen_on(pid: int, cpus: frozenset[int]) -> None:
    """They run there, and go on doing so for as long as each has used some more time."""
    wait_until(lambda: runs_on(pid) <= cpus and len(runs_on(pid)) > 0)
    before = {each.who: each.used_ticks for each in threads.read(pid) or () if each.used_ticks}

    def have_run() -> bool:
        now = {each.who: each.used_ticks for each in threads.read(pid) or ()}
        assert runs_on(pid) <= cpus
        return sum(now[who] > used for who, used in before.items()) >= THREADS

    wait_until(have_run)


def test_busy_threads_of_a_cgroup_move_from_package_to_package(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with busy() as program:
        enter(cpuset, program.pid)
        located.handles["box"] = handle(cpuset)
        before = where(program.pid)
        for package in (1, 0, 1):
            (effect,) = actuator.carry_out([place("box", PACKAGES[package], "cgroup")])
            assert (effect.outcome, effect.written, effect.detail) == ("done", 1, "")
            seen_on(program.pid, PACKAGES[package])
        (effect,) = actuator.carry_out([release("box", "cgroup")])
        assert effect.done, effect
        assert as_found(cpuset) == frozenset(), "as it was: it has what is above"
        assert (where(program.pid), cpuset.cpus()) == (before, ALL)
        wait_until(lambda: not runs_on(program.pid) <= PACKAGES[1])
        assert journal.entries() == ()


def test_busy_threads_of_a_process_move_from_package_to_package(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    with busy() as program:
        located.handles["web"] = process(program.pid)
        before = where(program.pid)
        for package in (1, 0):
            (effect,) = actuator.carry_out([place("web", PACKAGES[package])])
            assert (effect.outcome, effect.written) == ("done", THREADS + 1)
            seen_on(program.pid, PACKAGES[package])
        (effect,) = actuator.carry_out([release("web")])
        assert effect.done, effect
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_the_kernel_gives_the_package_that_has_room_to_who_may_use_both(
    actuator: Actuator, located: Located
) -> None:
    """What a group that is relieved is placed upon (docs/decisions/0025), and what the simulated kernel does."""
    with busy() as bound, busy() as free:
        located.handles["bound"] = process(bound.pid)
        (effect,) = actuator.carry_out([place("bound", PACKAGES[0])])
        assert effect.done, effect
        seen_on(bound.pid, PACKAGES[0])

        def nearly_all() -> bool:
            """Of threads in a row of looks; divided evenly, it would be half of them."""
            looks = []
            for _ in range(40):
                looks += [
                    each.cpu in PACKAGES[1] for each in threads.read(free.pid) or () if each.state == "R"
                ]
                time.sleep(0.005)
            return sum(looks) >= 0.9 * len(looks) > 0

        wait_until(nearly_all)


def test_who_is_released_follows_its_cpuset_as_before(
    actuator: Actuator, located: Located, cpuset: Cpuset
) -> None:
    """What we set must not stick to it: a wider cpuset later is its own again."""
    cpuset.set_cpus(PACKAGES[0])
    with running() as program:
        enter(cpuset, program.pid)
        located.handles["web"] = process(program)
        one = frozenset([min(PACKAGES[0])])
        actuator.carry_out([place("web", one)])
        assert set(where(program.pid).values()) == {one}
        actuator.carry_out([release("web")])
        assert set(where(program.pid).values()) == {PACKAGES[0]}
        cpuset.set_cpus(PACKAGES[1])
        assert set(where(program.pid).values()) == {PACKAGES[1]}
        cpuset.set_cpus(())
        assert set(where(program.pid).values()) == {ALL}


def test_threads_that_a_user_has_bound_are_bound_again(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    """Linux before 6.2 forgets their affinity when the cpuset changes; it is given back all the same."""
    with running() as program:
        enter(cpuset, program.pid)
        inside, outside = program.start(busy=True), program.start(busy=True)
        bind(inside, frozenset([min(PACKAGES[1])]))
        bind(outside, PACKAGES[0])
        located.handles["box"] = handle(cpuset)
        before = where(program.pid)
        (effect,) = actuator.carry_out([place("box", PACKAGES[1], "cgroup")])
        assert effect.done, effect
        assert "bound to others run here meanwhile: 1" in effect.detail
        now = {each.pid: cpus for each, cpus in where(program.pid).items()}
        assert (now[inside], now[outside]) == ({min(PACKAGES[1])}, PACKAGES[1])
        (effect,) = actuator.carry_out([release("box", "cgroup")])
        assert effect.done, effect
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_a_cgroup_that_forks_fast(actuator: Actuator, located: Located, cpuset: Cpuset) -> None:
    with forking() as pid:
        enter(cpuset, pid)
        located.handles["box"] = handle(cpuset)
        for package in (1, 0):
            (effect,) = actuator.carry_out([place("box", PACKAGES[package], "cgroup")])
            assert effect.done, effect
            masks = {cpus for each in cpuset.processes() for cpus in where(each).values()}
            assert masks == {PACKAGES[package]}
        (effect,) = actuator.carry_out([release("box", "cgroup")])
        assert effect.done, effect
        assert {cpus for each in cpuset.processes() for cpus in where(each).values()} == {ALL}
    wait_until(lambda: not cpuset.processes())


def test_a_process_that_forks_fast_leaves_no_child_bound(actuator: Actuator, located: Located) -> None:
    with forking() as pid:
        who = threads.one(pid)
        assert who is not None
        located.handles["web"] = process(pid)
        (effect,) = actuator.carry_out([place("web", PACKAGES[1])])
        assert effect.done, effect
        assert affinity.read(who.who) == PACKAGES[1]
        (effect,) = actuator.carry_out([release("web")])
        assert effect.done, effect
        children = [int(each) for each in subprocess.check_output(["pgrep", "-g", str(pid)]).split()]
        assert {cpus for each in children for cpus in where(each).values()} == {ALL}


def test_processors_go_off_line_while_groups_are_placed(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    last, other = max(PACKAGES[1]), min(PACKAGES[1])
    with running() as program, running() as boxed:
        enter(cpuset, boxed.pid)
        for each in (program, boxed):
            each.start(busy=True)
        located.handles.update(web=process(program), box=handle(cpuset))
        before = (where(program.pid), where(boxed.pid))
        todo = [place("web", PACKAGES[1]), place("box", PACKAGES[1], "cgroup")]
        assert all(each.done for each in actuator.carry_out(todo))
        with off_line(last):
            effects = actuator.carry_out(todo)
            assert [each.outcome for each in effects] == ["done", "done"], effects
            with off_line(other):  # the kernel lets them run elsewhere then
                effects = actuator.carry_out(todo)
                assert [each.outcome for each in effects] == ["refused", "refused"], effects
        effects = actuator.carry_out([release("web"), release("box", "cgroup")])
        assert [each.outcome for each in effects] == ["done", "done"], effects
        assert (where(program.pid), where(boxed.pid)) == before
        assert as_found(cpuset) == frozenset()
        assert journal.entries() == ()


def test_released_while_their_processors_are_off_line(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with running() as program, running() as boxed:
        enter(cpuset, boxed.pid)
        located.handles.update(web=process(program), box=handle(cpuset))
        before = (where(program.pid), where(boxed.pid))
        todo = [place("web", PACKAGES[1]), place("box", PACKAGES[1], "cgroup")]
        assert all(each.done for each in actuator.carry_out(todo))
        with contextlib.ExitStack() as stack:
            for cpu in PACKAGES[1]:
                stack.enter_context(off_line(cpu))
            effects = actuator.carry_out([release("web"), release("box", "cgroup")])
            assert [each.outcome for each in effects] == ["done", "done"], effects
        assert as_found(cpuset) == frozenset()
        wait_until(lambda: where(boxed.pid) == before[1])
        # Before Linux 6.2 a thread can be given none that is off line, and nobody tells it later.
        remembers = (kernel.release() or (0, 0)) >= (6, 2)
        assert set(where(program.pid).values()) == {ALL if remembers else PACKAGES[0]}
        assert journal.entries() == ()


def test_a_cgroup_vanishes_while_it_is_placed(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with own_cpuset(below=cpuset, name="inner") as inner:
        located.handles["box"] = handle(inner)
        assert actuator.carry_out([place("box", PACKAGES[1], "cgroup")])[0].done
    effects = actuator.carry_out([place("box", PACKAGES[0], "cgroup"), release("box", "cgroup")])
    assert [each.outcome for each in effects] == ["gone", "gone"]
    assert journal.entries() == ()


def test_a_cgroup_that_the_one_above_leaves_nothing_of_that(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with own_cpuset(below=cpuset, name="inner") as inner:
        cpuset.set_cpus(PACKAGES[0])
        located.handles["box"] = handle(inner)
        (effect,) = actuator.carry_out([place("box", PACKAGES[1], "cgroup")])
        assert effect.outcome == "refused"
        assert "none of these processors is online and in the cgroup above" in effect.detail
        assert inner.own_cpus() == frozenset()
        assert journal.entries() == ()


def test_a_cgroup_without_a_cpuset_is_refused_and_nothing_is_enabled(
    journal: Journal, located: Located, cpuset: Cpuset
) -> None:
    inner = cpuset.directory / "plain"
    inner.mkdir()
    try:
        with running() as program:
            located.handles["box"] = CgroupHandle(inner, inner.stat().st_ino)
            (inner / "cgroup.procs").write_text(str(program.pid))
            before = where(program.pid)
            (effect,) = Actuator(journal, located).carry_out([place("box", PACKAGES[1], "cgroup")])
            assert effect.outcome == "refused"
            assert f"cgroup.subtree_control of {cpuset.directory}" in effect.detail
            assert not (inner / "cpuset.cpus").exists()
            assert where(program.pid) == before
            actuator = Actuator(journal, located, without_cpuset="threads", limit_s=60)
            assert actuator.carry_out([place("box", PACKAGES[1], "cgroup")])[0].done
            assert set(where(program.pid).values()) == {PACKAGES[1]}
            assert not (inner / "cpuset.cpus").exists()
            assert actuator.carry_out([release("box", "cgroup")])[0].done
            assert where(program.pid) == before
    finally:
        inner.rmdir()


def test_killed_at_any_moment_everything_is_put_back(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    host = Host(tmp_path, PACKAGES[0], PACKAGES[1], (0, 1))
    try:
        assert host.box is not None
        came = host.do("act", survey=True)
        assert len(host.wrong()) > len(host.before)
        back = host.do("restore", survey=True)
        assert host.wrong() == []
        for file, line, nth in points(came, seed, KILLS):
            host.do("act", (file, line), nth)
            assert host.do("restore").status == 0
            assert host.wrong() == [], f"killed at {file}:{line}, time {nth}"
        for file, line, nth in points(back, seed, KILLS // 3):
            host.do("act")
            host.do("restore", (file, line), nth)
            assert host.do("restore").status == 0
            assert host.wrong() == [], f"killed while putting back at {file}:{line}, time {nth}"
    finally:
        host.close()


def test_memory_follows_at_its_pace_and_goes_back(journal: Journal, located: Located) -> None:
    pace, piece = 64 * MIB, 10 * MIB
    actuator = Actuator(journal, located, memory_bytes_per_s=pace, memory_limit_s=0.3, limit_s=60)
    with holding(64 * MIB) as holder:
        located.handles["web"] = process(holder.pid)
        before = shares(holder.pid)
        assert before[0] > 64 * MIB
        todo = [place("web", PACKAGES[1], nodes=(1,))]
        begun_s, calls, last = time.monotonic(), 0, 0.0
        while True:
            (effect,) = actuator.carry_out(todo)
            calls += 1
            assert effect.moved_bytes is not None
            assert last <= effect.moved_bytes <= pace * (time.monotonic() - begun_s) + piece
            last = effect.moved_bytes
            if effect.outcome != "again later":
                break
        assert effect.done, effect
        assert calls > 2
        assert last >= 64 * MIB
        assert shares(holder.pid)[1] >= 64 * MIB
        (effect,) = actuator.carry_out(todo)
        assert (effect.outcome, effect.moved_bytes) == ("done", last), "it is there"
        (effect,) = actuator.carry_out([release("web")])
        assert effect.done, effect
        assert set(where(holder.pid).values()) == {ALL}
        while journal.entries():
            assert actuator.carry_out([]) == []
        near(shares(holder.pid), before)
        holder.check()


def test_killed_while_memory_moves_it_goes_back(tmp_path: Path) -> None:
    """A process that acts is killed after some pieces; who comes next brings them back."""
    with holding(64 * MIB) as holder:
        before = shares(holder.pid)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:  # it has no more than it needs: no test of ours runs on in it
            try:
                with Journal(tmp_path / "j") as its:
                    located = Located({"web": process(holder.pid)})
                    actuator = Actuator(its, located, memory_bytes_per_s=32 * MIB, memory_limit_s=0.2)
                    while True:
                        (effect,) = actuator.carry_out([place("web", PACKAGES[1], nodes=(1,))])
                        if (effect.moved_bytes or 0) >= 16 * MIB:
                            os.write(writer, b"x")
            except BaseException:  # noqa: BLE001 - told, and the end of it
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert shares(holder.pid).get(1, 0) >= 16 * MIB
        with Journal(tmp_path / "j") as journal:
            report = Actuator(journal, Located()).restore()
            assert {each.outcome for each in report.undone} == {"restored"}, report
            assert journal.entries() == ()
        near(shares(holder.pid), before)
        assert set(where(holder.pid).values()) == {ALL}
        holder.check()


def test_what_is_not_back_when_it_is_to_stop_stays_noted(journal: Journal, located: Located) -> None:
    with holding(32 * MIB) as holder:
        located.handles["web"] = process(holder.pid)
        actuator = Actuator(journal, located, memory_limit_s=60)
        assert actuator.carry_out([place("web", PACKAGES[1], nodes=(1,))])[0].done
        actuator.stop()
        failed = actuator.restore().failed
        assert [each.entry.kind for each in failed] == ["package-memory"]
        assert set(where(holder.pid).values()) == {ALL}, "what takes no time is back"
        assert len(Actuator(journal, located).restore().undone) == 1
        assert journal.entries() == ()


def test_interrupts_of_a_real_device_go_and_come_back(actuator: Actuator, journal: Journal) -> None:
    before = {each.number: each for each in irqs.read() if each.name}
    may = [number for number, each in before.items() if not each.managed and each.cpus & PACKAGES[1]]
    assert may
    away = Interrupts(
        away=tuple(sorted(PACKAGES[1])), cpus=tuple(sorted(PACKAGES[0])), purpose="pack", reason="a test"
    )
    (effect,) = actuator.carry_out([away])
    assert (effect.outcome, effect.written) == ("done", len(may)), effect
    managed = [each for each in before.values() if each.managed and each.cpus & PACKAGES[1]]
    assert managed, "those of the disk"
    assert effect.detail == f"interrupts that the kernel places itself stay: {len(managed)}"
    assert all(each.cpus <= PACKAGES[0] for each in irqs.read() if each.number in may)
    assert {each.outcome for each in actuator.restore().undone} == {"restored"}
    assert {each.number: each.cpus for each in irqs.read() if each.name} == {
        number: each.cpus for number, each in before.items()
    }
    assert journal.entries() == ()


MIB = 1 << 20
THREADS = 3
_BUSY = """
import sys, threading, zlib
data = bytes(1 << 16)
def work():
    while True:
        zlib.crc32(data)  # other threads run meanwhile
for _ in range(int(sys.argv[1])):
    threading.Thread(target=work, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def busy() -> Iterator[subprocess.Popen[str]]:
    """A process with threads that all work all the time, and one that waits."""
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY, str(THREADS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            yield process
        finally:
            process.kill()


_HOLDER = """
import os, sys, zlib
os.sched_setaffinity(0, {0})
data = bytearray(os.urandom(1 << 20)) * (int(sys.argv[1]) >> 20)
os.sched_setaffinity(0, set(range(os.cpu_count())))
first = zlib.crc32(data)
print(flush=True)
sys.stdin.readline()
print(zlib.crc32(data) == first, flush=True)
sys.stdin.readline()
"""


class Holder:
    """A process that has so much on node 0."""

    def __init__(self, size: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "\n"

    def check(self) -> None:
        """It has what it had."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "True\n"

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def holding(size: int) -> Iterator[Holder]:
    holder = Holder(size)
    try:
        yield holder
    finally:
        holder.end()


def shares(pid: int) -> dict[int, int]:
    return numa_memory.of_process(pid) or {}


def near(now: dict[int, int], before: dict[int, int]) -> None:
    for node in PACKAGES:
        assert abs(now.get(node, 0) - before.get(node, 0)) < 3 * MIB, (now, before)


@contextlib.contextmanager
def forking() -> Iterator[int]:
    """A shell that starts processes as fast as it can."""
    shell = subprocess.Popen(["sh", "-c", "while :; do /bin/true & /bin/true; done"], start_new_session=True)
    try:
        wait_until(lambda: (processes.child_faults(shell.pid) or 0) > 0)  # some have come and gone
        yield shell.pid
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


@contextlib.contextmanager
def off_line(cpu: int) -> Iterator[None]:
    switch = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text("1")
