"""What a run that was killed has left on this host goes with the next run, and nothing else."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import processes
from sustain.host.processes import Identity
from tests.host import cgroups, marks, swap
from tests.host.held import MIB

# Makes a cgroup with a process in it, and swap; says how they are called, and stays.
_RUN = """
import contextlib, subprocess, sys
from tests.host.cgroups import made_cgroup
from tests.host.swap import host_swap
with contextlib.ExitStack() as stack:
    made = []
    if "cgroup" in sys.argv:
        group = stack.enter_context(made_cgroup("test"))
        made += [str(group and group.directory), "0"]
        if group:
            enter = f'echo $$ > {group.directory}/cgroup.procs && exec sleep 600'
            child = subprocess.Popen(["sh", "-c", enter], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.kill)
            made[1] = str(child.pid)
            while not (group.directory / "cgroup.procs").read_text():
                pass
    if "swap" in sys.argv:
        try:
            made.append(stack.enter_context(host_swap(16 << 20)))
        except OSError as error:
            made.append("None")
    print(*made, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def a_run(*what: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A process that has made that, and what it is called; it ends in order, if it was not killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        made = process.stdout.readline().split()
        if "None" in made or not made:
            pytest.skip(f"this machine lets us make no {what[0]}")
        yield process, made
    finally:
        process.communicate()


def active() -> list[str]:
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def test_a_cgroup_and_what_runs_in_it() -> None:
    with a_run("cgroup") as (process, (directory, pid)):
        inside = processes.identify(int(pid))
        assert inside is not None
        cgroups.clear()
        assert processes.alive(inside)  # whose run goes on
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert processes.alive(inside)
        with cgroups.made_cgroup("test") as group:
            assert group is not None
            assert not processes.alive(inside)
            assert not Path(directory).exists()
        assert not group.directory.exists()


def test_swap() -> None:
    with a_run("swap") as (process, (device,)):
        swap.clear()
        assert device in active()  # whose run goes on
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert device in active()
        with swap.host_swap(16 * MIB) as own:
            # The next one may get the number of the one that went.
            assert [each for each in active() if each in (device, own)] == [own]
            assert Path(device).exists() == (device == own)
        assert own not in active()


def test_marks() -> None:
    """Of this process, of one that has had its number, of none."""
    assert not marks.dead(marks.own())
    other = subprocess.Popen(["sleep", "600"])
    try:
        its = processes.identify(other.pid)
        assert its is not None
        mark = marks.of(its)
        assert not marks.dead(mark)
        assert marks.dead(marks.of(Identity(its.pid, its.start_ticks - 1)))
    finally:
        other.kill()
        other.wait()
    assert marks.dead(mark)
    assert len(marks.of(Identity(1 << 22, 10**10))) == len(mark) == 12
    for nobody in ("", "29914", "0000000000000", "00000000000:"):
        assert not marks.dead(nobody)
