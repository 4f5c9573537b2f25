"""Where threads of our own may run; numbers that come to mean others; and made files."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import affinity, files, processes, threads
from sustain.host.affinity import Written
from sustain.host.processes import Identity
from tests.host.test_meminfo import put
from tests.host.test_threads import stat
from tests.host.threaded import Program, wait_until

ONLINE = frozenset(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(ONLINE) < 2, reason="this machine has one processor for us")


def who(tid: int) -> Identity:
    thread = threads.one(tid)
    assert thread is not None
    return thread.who


ALL = affinity.read(who(os.getpid())) or frozenset()  # with those that are offline


def test_read_from_made_files_with_offline_processors(tmp_path: Path) -> None:
    put(
        tmp_path,
        "proc/9/status",
        "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-5,7\nMems_allowed:\t1\n",
    )
    put(tmp_path, "proc/9/task/9/stat", stat(9))
    assert affinity.read(Identity(9, 99), tmp_path) == {0, 1, 2, 3, 4, 5, 7}
    assert affinity.read(Identity(9, 98), tmp_path) is None  # somebody else's by now
    put(tmp_path, "proc/9/status", "Name:\tx\n")
    with pytest.raises(HostError, match="proc/9/status: no Cpus_allowed_list"):
        affinity.read(Identity(9, 99), tmp_path)


@several
def test_one_thread_is_set_and_no_other() -> None:
    with Program() as program:
        moved, left = who(program.start(busy=True)), who(program.start(busy=True))
        assert affinity.read(moved) == ALL
        for cpu in sorted(ONLINE)[:2]:
            assert affinity.write(moved, {cpu}) == (Written.DONE, {cpu})
            assert affinity.read(moved) == {cpu}
            wait_until(lambda cpu=cpu: (threads.one(moved.pid) or pytest.fail("gone")).cpu == cpu)  # type: ignore[misc]
        assert affinity.read(left) == ALL
        assert affinity.write(moved, {cpu}) == (Written.SAME, {cpu})
        assert affinity.write(moved, ALL) == (Written.DONE, ALL)


@several
def test_what_somebody_else_has_set_meanwhile_stays() -> None:
    first, second = sorted(ONLINE)[:2]
    with Program() as program:
        thread = who(program.start())
        seen = affinity.read(thread)
        os.sched_setaffinity(thread.pid, {second})  # the user
        assert affinity.write(thread, {first}, expected=seen) == (Written.CHANGED, {second})
        assert affinity.read(thread) == {second}
        assert affinity.write(thread, {first}, expected=frozenset({second})).written is Written.DONE


def test_a_thread_that_has_ended() -> None:
    with Program() as program:
        thread = who(program.start())
        program.end(thread.pid)
        wait_until(lambda: threads.one(thread.pid) is None)
        assert affinity.read(thread) is None
        assert affinity.write(thread, ALL) == (Written.GONE, None)


def test_a_thread_that_ends_just_before_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with Program() as program:
        thread = who(program.start())
        really = os.sched_setaffinity

        def late(tid: int, cpus: frozenset[int]) -> None:
            program.end(tid)
            wait_until(lambda: threads.one(tid) is None)
            really(tid, cpus)

        monkeypatch.setattr(os, "sched_setaffinity", late)
        assert affinity.write(thread, {min(ONLINE)}) == (
            (Written.GONE, None) if len(ONLINE) > 1 else (Written.SAME, ONLINE)
        )


def test_a_number_that_is_used_again_is_not_hit() -> None:
    """A real one: in a pid namespace of our own the next number can be chosen."""
    program = (
        "import os, signal\n"
        "from sustain.host import affinity, threads\n"
        "def child():\n"
        "    with open('/proc/sys/kernel/ns_last_pid', 'w') as file: file.write('299')\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        signal.pause()\n"
        "    assert pid == 300, pid\n"
        "    return threads.one(pid).who\n"
        "def end():\n"
        "    os.kill(300, 9)\n"
        "    os.waitpid(300, 0)\n"
        "first = child()\n"
        "end()\n"
        "second = child()\n"
        "while second == first:\n"  # within one tick they are the same for everybody
        "    end()\n"
        "    second = child()\n"
        "before = affinity.read(second)\n"
        "print(affinity.write(first, {min(before)}).written.name, affinity.read(first))\n"
        "print(affinity.read(second) == before, len(before) > 1)\n"
        "end()\n"
    )
    if len(ONLINE) < 2:
        pytest.skip("this machine has one processor for us")
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "test", "-w", "/proc/sys/kernel/ns_last_pid"], check=False).returncode != 0:
        pytest.skip("this machine lets us choose no process numbers")
    done = subprocess.run(
        [*apart, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "GONE None\nTrue True\n"


@several
def test_a_number_that_changes_hands_within_the_call_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were taken over just after the look: the file tells of another thread when it is looked at again."""
    with Program() as program:
        thread = who(program.start())
        really = os.sched_setaffinity

        def replaced(tid: int, cpus: frozenset[int]) -> None:
            really(tid, cpus)
            other = threads.one(os.getpid())
            monkeypatch.setattr(threads, "one", lambda *_: other)

        monkeypatch.setattr(os, "sched_setaffinity", replaced)
        with pytest.raises(HostError, match=f"thread {thread.pid}: ended while") as caught:
            affinity.write(thread, {min(ONLINE)})
        assert "taskset" in caught.value.hint


def test_no_processor_that_is_there() -> None:
    with Program() as program:
        thread = who(program.pid)
        for nowhere in ({4000}, {1 << 20}, set()):
            with pytest.raises(HostError, match=f"thread {program.pid}") as caught:
                affinity.write(thread, nowhere)
            assert caught.value.errno == errno.EINVAL
            assert caught.value.hint
        assert affinity.read(thread) == ALL


def test_threads_of_the_kernel_stay() -> None:
    found = [threads.one(int(name)) for name in os.listdir("/proc") if name.isdecimal()]
    fixed = next((each for each in found if each is not None and each.fixed), None)
    if fixed is None or os.geteuid() != 0 or len(ONLINE) < 2:
        pytest.skip("the kernel's threads are not seen from here, or there is nowhere to move them")
    allowed = affinity.read(fixed.who)
    assert allowed is not None
    with pytest.raises(HostError, match=f"thread {fixed.who.pid}: processors") as caught:
        affinity.write(fixed.who, ONLINE - allowed or {min(ONLINE)})
    assert "kernel thread" in caught.value.hint


def test_threads_of_other_users() -> None:
    if os.geteuid() != 0 or len(ONLINE) < 2:
        pytest.skip("only root can try as somebody else")
    with Program() as program:
        thread = who(program.start())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setuid(65534)
                affinity.write(thread, {min(ONLINE)})
            except HostError as error:
                code = 0 if error.errno == errno.EPERM and "CAP_SYS_NICE" in error.hint else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert affinity.read(thread) == ALL


@several
def test_a_process_that_starts_threads_fast_is_caught_up_with() -> None:
    """New threads have the affinity of who started them: the list is read until no thread is elsewhere."""
    only = frozenset({min(ONLINE)})
    program = (
        "import threading\n"
        "def work(): pass\n"
        "def churn():\n"
        "    while True:\n"
        "        thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "for _ in range(4): threading.Thread(target=churn).start()\n"
        "print(flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()

        def all_there() -> bool:
            written = [affinity.write(each.who, only).written for each in threads.read(child.pid) or ()]
            return Written.DONE not in written

        wait_until(all_there)
        for _ in range(20):
            allowed = {affinity.read(each.who) for each in threads.read(child.pid) or ()}
            assert allowed - {None} == {only}
    finally:
        child.kill()
        child.communicate()


def test_this_thread_agrees_with_the_system_call() -> None:
    online = files.cpus(Path("/sys/devices/system/cpu/online").read_text())
    found = affinity.read(who(threading.get_native_id()))
    assert found is not None
    assert found & online == ONLINE
    me = processes.identify(os.getpid())
    assert me is not None
    assert affinity.read(me) == affinity.read(who(os.getpid()))
