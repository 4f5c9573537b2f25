"""The active test: real spinners on this machine, a made host that reacts to them, and refusals."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host import processes, threads, topology
from sustain.host.topology import Topology
from sustain.schedulers.packages.active import ThisHost, run, spinning, workings
from sustain.schedulers.packages.model import Observation
from sustain.testing import hosts
from tests.host.threaded import wait_until

ONLINE = sorted(os.sched_getaffinity(0))


class MadeHost:
    """A made host on which time passes when it is waited, as its packages would behave. `noise`: share of time that
    the last processor works by itself, for the first so many waits."""

    def __init__(
        self,
        host: hosts.Host,
        *,
        coordinated: bool,
        noise: float = 0.0,
        noisy_waits: int = 10**6,
        real: bool = False,
    ) -> None:
        self._host = host
        self._coordinated = coordinated
        self._noise = noise
        self._noisy_waits = noisy_waits
        self._real = real
        self._working: tuple[int, ...] = ()
        self.spun: list[tuple[int, ...]] = []
        host.write("proc/self/mounts", "")
        self._reader = ThisHost(_Clock(host), self.wait, host.root)

    @property
    def topology(self) -> Topology:
        return self._reader.topology

    def look(self) -> Observation:
        return self._reader.look()

    @contextlib.contextmanager
    def spin(self, cpus: Sequence[int]) -> Iterator[None]:
        self.spun.append(tuple(cpus))
        real: AbstractContextManager[None] = (
            spinning([ONLINE[cpu % len(ONLINE)] for cpu in cpus]) if self._real else contextlib.nullcontext()
        )
        with real:
            self._working = tuple(cpus)
            yield
            self._working = ()

    def wait(self, seconds: float) -> None:
        host = self._host
        at_work = dict.fromkeys(range(host.packages), 0)
        for cpu in self._working:
            at_work[host.package_of(cpu)] += 1
        busy = dict.fromkeys(self._working, 1.0)
        self._noisy_waits -= 1
        if self._noise and self._noisy_waits >= 0:
            busy[max(host.cpus)] = self._noise
        anybody = any(at_work.values())
        asleep = {
            package: not count and not (self._coordinated and anybody) for package, count in at_work.items()
        }
        host.advance(
            seconds,
            busy=busy,
            residency={package: {"pc6": 0.9 if asleep[package] else 0.0} for package in at_work},
            watts={
                package: (15.0 if asleep[package] else 45.0) + 3.0 * count
                for package, count in at_work.items()
            },
        )


class _Clock:
    def __init__(self, host: hosts.Host) -> None:
        self._host = host

    def boottime_ns(self) -> int:
        return self._host.now_ns

    def realtime_ns(self) -> int:
        return self._host.now_ns


def rapl_alone(root: Path, packages: int = 2) -> hosts.Host:
    """An EPYC of few cores, of which powercap alone tells."""
    host = hosts.Host(root, packages, model=hosts.ROME)
    host.powercap(parts=("core",))
    return host


def test_a_made_amd_host_that_is_coordinated_and_one_that_is_not(tmp_path: Path) -> None:
    for coordinated, expected in ((True, "coordinated"), (False, "independent")):
        host = MadeHost(rapl_alone(tmp_path / expected), coordinated=coordinated)
        said: list[str] = []
        tested = run(host, repeats=3, at="2026-01-01", say=said.append)
        assert {each.state for each in tested.findings} == {"watts"}
        assert {each.independence for each in tested.findings} == {expected}
        assert len(tested.windows) == len(said) == 3 * 4
        assert tested.disturbed == 0
        assert said[0] == "1 of 3: all packages idle"
        assert tested.findings[0].parked_w == pytest.approx(0.0 if coordinated else 30.0, abs=0.2)
        host_of = {tuple(sorted(cpus)) for cpus in host.spun}
        assert len(host_of) == 4
        for cpus in host.spun:
            assert len(set(cpus)) == len(cpus)


def test_real_spinners_in_the_place_of_made_work(tmp_path: Path) -> None:
    """The machinery with processes of its own, on a made host's readings."""
    host = MadeHost(rapl_alone(tmp_path), coordinated=True, real=True)
    before = _children()
    tested = run(host, repeats=3)
    assert {each.independence for each in tested.findings} == {"coordinated"}
    assert _children() == before


def test_a_window_that_was_disturbed_is_made_again(tmp_path: Path) -> None:
    host = MadeHost(rapl_alone(tmp_path), coordinated=True, noise=0.4, noisy_waits=4)
    tested = run(host, repeats=3)
    assert tested.disturbed == 2
    assert {each.independence for each in tested.findings} == {"coordinated"}


def test_a_host_that_is_not_idle_is_refused_with_where(tmp_path: Path) -> None:
    host = MadeHost(rapl_alone(tmp_path), coordinated=True, noise=0.4)
    with pytest.raises(HostError, match="package 1 that is to be left alone works 40%") as error:
        run(host)
    assert "stop or move what runs" in error.value.hint


def test_without_counters_it_says_what_is_missing(tmp_path: Path) -> None:
    host = MadeHost(hosts.bare(tmp_path), coordinated=True)
    with pytest.raises(HostError, match="neither the idle states") as error:
        run(host)
    assert "powercap" in str(error.value)
    assert "cstate_pkg" in str(error.value)
    assert "packages doctor" in error.value.hint
    assert host.spun == [], "nothing was made to work"


def test_a_virtual_machine_and_a_single_package_are_refused(tmp_path: Path) -> None:
    host = MadeHost(rapl_alone(tmp_path / "two"), coordinated=True)
    with pytest.raises(HostError, match="virtual machine"):
        run(host, virtual=True)
    one = MadeHost(rapl_alone(tmp_path / "one", packages=1), coordinated=True)
    with pytest.raises(HostError, match="one processor package") as error:
        run(one)
    assert error.value.hint


@pytest.mark.skipif(len(topology.read().packages) > 1, reason="this machine has several packages")
def test_this_machine_is_refused() -> None:
    host = ThisHost(SystemClock(), lambda _: pytest.fail("it must not come to a window"))
    try:
        with pytest.raises(HostError, match="one processor package"):
            run(host)
    finally:
        host.close()


def test_windows_of_many_packages_have_the_same_work_packed_and_split() -> None:
    assert workings([0, 1]) == [{}, {1: 2}, {0: 1, 1: 1}, {0: 2}]
    four = workings([0, 1, 2, 3])
    assert four[0] == {}
    for package in range(4):
        split = [each for each in four if package in each and len(each) > 1]
        packed = [each for each in four if len(each) == 1 and package not in each]
        assert split
        assert any(one.keys() < other.keys() for one in packed for other in split)
    assert all(sum(each.values()) == 2 for each in four[1:])


def test_spinners_work_where_they_are_told_and_end() -> None:
    before = _children()
    with spinning(ONLINE[:2]):
        new = _children() - before
        assert {threads.read(pid)[0].who.pid for pid in new} == new  # type: ignore[index]
        assert {frozenset(os.sched_getaffinity(pid)) for pid in new} == {
            frozenset({cpu}) for cpu in ONLINE[:2]
        }
        wait_until(lambda: all((threads.use(pid) or _NONE).used_ticks > 0 for pid in new))
    assert _children() == before


def test_a_processor_that_is_not_there_is_an_error_and_leaves_nothing() -> None:
    before = _children()
    with (
        pytest.raises(HostError, match="no process could be kept running on processor 4000"),
        spinning([ONLINE[0], 4000]),
    ):
        pytest.fail("it spins")
    assert _children() == before


def test_spinners_end_when_the_test_is_killed() -> None:
    program = (
        "import sys, time; from sustain.schedulers.packages.active import spinning\n"
        f"with spinning([{ONLINE[0]}]): print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (spinner,) = _children(process.pid)
        who = processes.identify(spinner)
        assert who is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert processes.wait_gone(who, 30)


_NONE = threads.Use(processes.Identity(0, 0), 0, 0)


def _children(of: int | None = None) -> set[int]:
    pid = of or os.getpid()
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(each) for each in (task / "children").read_text().split()}
    return found
