"""What does it cost to see 50 groups of threads, their packages and processors, every 10 s, as a share of one core?

50 real cgroups with a process of 8 threads each, which sleep, on this machine's kernel; the sensor of power-aware
placement reads as the agent has it read, only that the clock is told that 10 s have passed, so turns come as they
would. Processor time is this process's own (user and system). Beside it `ps -eL`, which tells of each thread its
policy and its time, and not where it may run; and the same sensor made to look at all threads each time. A machine
that lets us make no cgroup has the processes themselves as groups, which is said.

What it costs for 10,000 cgroups (empty ones) is told beside that. Counters of packages are what this machine has.
"""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.host import marks

from bench.harness import Answer, Contender, interleave, medians, say
from sustain.clock import SystemClock
from sustain.errors import SustainError
from sustain.host import cgroup_use
from sustain.schedulers.packages import surveys
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.find import Wanted
from sustain.schedulers.packages.sense import Sensor

QUESTION = "seeing 50 groups of 8 threads every 10 s, of a core"
_GROUPS, _THREADS, _PERIOD_S = 50, 8, 10.0
_READINGS = 6  # to a figure: two rounds of what is done every 30 s
_PS = ("ps", "-eLo", "tid,cls,rtprio,psr,cputimes,comm")

_PROGRAM = """
import os, sys, threading
count, threads = int(sys.argv[1]), int(sys.argv[2])
pids = []
for _ in range(count):
    pid = os.fork()
    if not pid:
        for _ in range(threads - 1):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        os.write(1, b"%d\\n" % os.getpid())
        sys.stdin.read()
        os._exit(0)
    pids.append(pid)
sys.stdin.read()
"""


class _Strides:
    """A clock that goes on by a period whenever it is told to."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._added_ns = 0

    def go_on(self) -> None:
        self._added_ns += int(_PERIOD_S * 1e9)

    def boottime_ns(self) -> int:
        return self._clock.boottime_ns() + self._added_ns

    def realtime_ns(self) -> int:
        return self._clock.realtime_ns() + self._added_ns


@contextlib.contextmanager
def _processes(count: int) -> Iterator[list[int]]:
    words = [sys.executable, "-c", _PROGRAM, str(count), str(_THREADS)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield [int(process.stdout.readline()) for _ in range(count)]
        finally:
            process.stdin.close()  # all of them wait for that


@contextlib.contextmanager
def _cgroups(count: int) -> Iterator[tuple[str, list[list[Path]]] | None]:
    """The path of one above them, and the directories of each; None: this machine lets us make none."""
    try:
        where = cgroup_use.trees()
    except SustainError:
        yield None
        return
    name = f"sustain-sensing-{marks.own()}"
    tops = [top / name for top in {where.top, where.use or where.top}]
    made: list[Path] = []
    try:
        try:
            for folder in [*tops, *(top / f"g{number}" for number in range(count) for top in tops)]:
                folder.mkdir()
                made.append(folder)
                for file in (
                    ("cpuset.cpus", "cpuset.mems")
                    if where.version == 1 and where.top in folder.parents
                    else ()
                ):
                    (folder / file).write_text((folder.parent / file).read_text())
        except OSError:
            yield None
        else:
            yield name, [[top / f"g{number}" for top in tops] for number in range(count)]
    finally:
        for folder in reversed(made):
            _remove(folder)


def _remove(folder: Path) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            folder.rmdir()
        except OSError:  # what was killed in it is not quite gone
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


class _Sensing:
    """A sensor that has read until all is known."""

    def __init__(self, *groups: Wanted) -> None:
        self._clock = _Strides()
        self._sensor = Sensor(PackagesConfig(groups=groups), self._clock)
        self.first_s = self._read()
        while (seen := self._sensor.read()).groups.realtime.min(initial=0) < 0:
            self._clock.go_on()
        self.groups, self.threads = len(seen.groups), int(seen.groups.threads.sum())

    def share(self) -> float:
        """Of a core."""
        return sum(self._read() for _ in range(_READINGS)) / (_READINGS * _PERIOD_S)

    def share_of_all_threads(self) -> float:
        usual = surveys.EACH_READING
        surveys.EACH_READING = 10**9
        try:
            return self.share()
        finally:
            surveys.EACH_READING = usual

    def _read(self) -> float:
        self._clock.go_on()
        begun_s = time.process_time()
        self._sensor.read()
        return time.process_time() - begun_s

    def close(self) -> None:
        self._sensor.close()


def _ps() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(_READINGS):
        subprocess.run(_PS, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent_s / (_READINGS * _PERIOD_S)


def answer(quick: bool = False) -> Answer:
    """Share of one core."""
    count, many, rounds = (5, 200, 3) if quick else (_GROUPS, 10_000, 9)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_cgroups(count))
        pids = stack.enter_context(_processes(count))
        by_process = _Sensing(*(Wanted(name=f"p{pid}", pid=pid) for pid in pids))
        stack.callback(by_process.close)
        contenders: dict[str, Contender] = {"processes": by_process.share, "ps -eL": _ps}
        ours = by_process
        if made is not None:
            path, folders = made
            for pid, each in zip(pids, folders, strict=True):
                for folder in each:
                    (folder / "cgroup.procs").write_text(str(pid))
            ours = _Sensing(Wanted(name="g", cgroup=f"{path}/*"))
            stack.callback(ours.close)
            if ours.threads != count * _THREADS:
                raise RuntimeError(f"{ours.threads} threads were seen, and there are {count * _THREADS}")
        contenders |= {"ours": ours.share, "all threads at each reading": ours.share_of_all_threads}
        found = medians(interleave(rounds, contenders))
        first_s = ours.first_s
    result = Answer(
        question=QUESTION,
        unit="of a core",
        ours=found["ours"],
        peers={name: found[name] for name in ("ps -eL", "all threads at each reading")},
        limit={},
        runs=rounds,
        quick=quick,
    )
    result.ask("at most 0.5 % of a core", found["ours"], lambda share: share <= 0.005)
    result.details["one reading, ms of processor time"] = {
        "of groups, steady": found["ours"] * _PERIOD_S * 1e3,
        "the first one": first_s * 1e3,
        "of processes, steady": found["processes"] * _PERIOD_S * 1e3,
    }
    result.details[f"{many} empty cgroups"] = _of_many(many, rounds)
    if made is None:
        result.notes.append("this machine lets us make no cgroup, so the groups are processes")
    result.notes.append(
        f"{count} groups of {_THREADS} threads at rest; at most {surveys.EACH_READING} threads are looked at in one "
        f"reading, so what binds them is known with an age of up to "
        f"{-(-count * _THREADS // surveys.EACH_READING) * _PERIOD_S:.0f} s; {os.cpu_count()} processors, and of "
        "packages no counters where this machine has none"
    )
    return result


def _of_many(count: int, rounds: int) -> dict[str, float | str]:
    say(f"making {count} cgroups")
    with _cgroups(count) as made:
        if made is None:
            return {"not measured": "this machine lets us make no cgroup"}
        sensing = _Sensing(Wanted(name="g", cgroup=f"{made[0]}/*"))
        try:
            if sensing.groups != count:
                raise RuntimeError(f"{sensing.groups} groups were seen, and there are {count}")
            share = medians(interleave(max(1, rounds // 3), {"share": sensing.share}))["share"]
        finally:
            sensing.close()
    return {"one reading, ms": share * _PERIOD_S * 1e3, "of a core at 10 s": share}
