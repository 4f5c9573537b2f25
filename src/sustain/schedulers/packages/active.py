"""The active test: which idle states are independent, found out by keeping packages awake and leaving others empty.

Used by `sustain packages test`. It acts on the host: processes of its own spin on chosen cores, for some seconds each
time, and end with it, also when it is killed. `independence` says which windows there are and what they mean. They come
in turns, all kinds once and then again, so that what changes slowly (temperature, fans) is in all of them alike.

It needs a host that is nearly idle, since any thread elsewhere keeps a package awake too. That is measured in each
window by those processors that the test leaves alone; a window with too much of that is made again, and when that does
not help the test is refused. It is refused, too, where its outcome could mean nothing: with one package, in a virtual
machine, where neither residency nor watts are measurable.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sustain.clock import Clock
from sustain.errors import HostError
from sustain.host.topology import Topology
from sustain.schedulers.packages.independence import Window, judge_active, of_package
from sustain.schedulers.packages.model import Finding, Groups, Observation
from sustain.schedulers.packages.processors import Processors
from sustain.schedulers.packages.rates import Rates, look, rates
from sustain.schedulers.packages.readings import Readings

WINDOW_S = 4.0
REPEATS = 5
SETTLE_S = 1.0  # after spinners have started or ended, before a window
_BUSY = 0.05  # share of time that a processor which is to be idle may work
_AGAIN = 3  # times that a window is made again
_STARTED_S = 30.0

# It ends with whoever started it, also before it could ask for that.
_SPINNER = """
import ctypes, os, signal, sys
parent, cpu = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    sys.exit()
os.sched_setaffinity(0, {cpu})
print("spins", flush=True)
while True:
    pass
"""


class TestedHost(Protocol):
    """What a test needs of a host."""

    @property
    def topology(self) -> Topology: ...
    def look(self) -> Observation:
        """Processors and packages alone. Raises SustainError."""

    def spin(self, cpus: Sequence[int]) -> "contextlib.AbstractContextManager[None]":
        """Keep these processors busy for as long as the block lasts. Raises HostError."""

    def wait(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Tested:
    """What came of it."""

    findings: tuple[Finding, ...]
    windows: tuple[Window, ...]
    disturbed: int  # windows that were made again


class ThisHost:
    """The host that this runs on. Close it."""

    def __init__(self, clock: Clock, wait: Callable[[float], None], root: Path = Path("/")) -> None:
        """`wait`: returns after so many seconds, or raises to end the test."""
        self.wait = wait
        self._clock = clock
        self._processors = Processors(root)
        self._readings = Readings(clock, root)
        self.look()

    @property
    def topology(self) -> Topology:
        return self._processors.topology

    def look(self) -> Observation:
        problems: list[str] = []
        now_s = self._clock.boottime_ns() / 1e9
        cpus = self._processors.read(now_s, problems)
        packages = self._readings.read(self.topology, lambda _: (None, None))
        return Observation(
            now_s=now_s, cpus=cpus, groups=no_groups(), packages=packages, problems=tuple(problems)
        )

    def spin(self, cpus: Sequence[int]) -> "contextlib.AbstractContextManager[None]":
        return spinning(cpus)

    def close(self) -> None:
        self._readings.close()
        self._processors.close()


def run(
    host: TestedHost,
    *,
    virtual: bool | None = None,
    window_s: float = WINDOW_S,
    repeats: int = REPEATS,
    at: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Tested:
    """All windows, and what they say. `at`: when, for people; `say`: is told of each window. Raises HostError where it
    cannot be tested, with what is missing."""
    packages = sorted(host.topology.packages)
    refuse(host, virtual)
    plans = workings(packages)
    windows: list[Window] = []
    disturbed = 0
    for turn in range(repeats):
        for working in plans:
            say(f"{turn + 1} of {repeats}: {_words(working)}")
            window, again = _undisturbed(host, working, window_s)
            windows.append(window)
            disturbed += again
    findings = judge_active(windows, packages, at)
    if not findings:
        raise HostError(
            "the test has measured neither idle states nor watts",
            hint="`sustain packages doctor` says what this host lacks for that",
        )
    return Tested(findings, tuple(windows), disturbed)


def refuse(host: TestedHost, virtual: bool | None) -> None:
    """Raises HostError where a test could say nothing."""
    packages = host.topology.packages
    if len(packages) < 2:
        raise HostError(
            "this host has one processor package, so there is none that could be parked while another works",
            hint="power-aware placement is for hosts with several sockets",
        )
    if virtual:
        raise HostError(
            "this host is a virtual machine: what its packages do is decided by the host below",
            hint="run the test on that host",
        )
    seen = host.look()
    if not any(_measurable(each.power_source, each.residency_s) for each in seen.packages):
        why = sorted({problem for each in seen.packages for problem in each.problems})
        raise HostError(
            "neither the idle states of packages nor their watts are measurable here: " + "; ".join(why),
            hint="`sustain packages doctor` says what would enable them",
        )


def workings(packages: Sequence[int]) -> list[dict[int, int]]:
    """The kinds of windows, as cores that work by package: for each package the same work packed on another one, and
    split over the two."""
    found: list[dict[int, int]] = [{}]
    for place, package in enumerate(packages):
        other = packages[(place + 1) % len(packages)]
        for working in ({other: 2}, {package: 1, other: 1}):
            if working not in found:
                found.append(working)
    return found


def _undisturbed(host: TestedHost, working: Mapping[int, int], window_s: float) -> tuple[Window, int]:
    """A window of that kind, and how many were made in vain. Raises HostError."""
    for again in range(_AGAIN + 1):
        window = _window(host, working, window_s)
        busiest = max(window.awake, key=lambda package: window.awake[package], default=None)
        if busiest is None or window.awake[busiest] <= _BUSY:
            return window, again
    assert busiest is not None
    raise HostError(
        f"the host is not idle: a processor of package {busiest} that is to be left alone works "
        f"{window.awake[busiest]:.0%} of the time, more than {_BUSY:.0%}",
        hint="stop or move what runs, and test again; what watching proves needs no idle host",
    )


def _window(host: TestedHost, working: Mapping[int, int], window_s: float) -> Window:
    cpus = [cpu for package, count in working.items() for cpu in _cores(host.topology, package)[:count]]
    with host.spin(cpus):
        host.wait(SETTLE_S)
        first = host.look()
        host.wait(window_s)
        second = host.look()
    between = rates(look(first), second)
    if between is None:
        raise HostError("no time has passed in a window of the test", hint="is the clock stopped?")
    return Window(
        working=dict(working),
        seconds=between.passed_s,
        residency=between.residency,
        power_w=between.power_w,
        awake=_others_awake(first, second, between, frozenset(cpus)),
    )


def _cores(topology: Topology, package: int) -> list[int]:
    """A processor of each core of a package, those of other cores first and then their second threads."""
    firsts = {min(cpus) for key, cpus in topology.cores.items() if key[0] == package}
    rest = topology.packages[package] - firsts
    return [*sorted(firsts), *sorted(rest)]


def _others_awake(
    first: Observation, second: Observation, between: Rates, working: frozenset[int]
) -> dict[int, float]:
    """How much the busiest processor of each package worked, of those that the test leaves alone."""
    before = dict(zip(first.cpus.number.tolist(), first.cpus.busy_s.tolist(), strict=True))
    found: dict[int, float] = {}
    for cpu, package, busy_s in zip(
        second.cpus.number.tolist(), second.cpus.package.tolist(), second.cpus.busy_s.tolist(), strict=True
    ):
        if cpu not in working and cpu in before:
            share = max(0.0, busy_s - before[cpu]) / between.passed_s
            found[package] = max(found.get(package, 0.0), share)
    return found


@contextlib.contextmanager
def spinning(cpus: Sequence[int]) -> Iterator[None]:
    """Processes of this program's own that keep these processors busy, and that end with it. Raises HostError when one
    cannot run there."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for cpu in cpus:
            started.append(_spinner(cpu))
        for cpu, process in zip(cpus, started, strict=True):
            assert process.stdout is not None
            if process.stdout.readline() != b"spins\n":
                raise HostError(
                    f"no process could be kept running on processor {cpu}",
                    hint="is it online, and in the cpuset of this command's cgroup?",
                )
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def _spinner(cpu: int) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-I", "-S", "-c", _SPINNER, str(os.getpid()), str(cpu)]
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise HostError(
            f"{sys.executable}: {error.strerror}", hint="it runs the test's own processes"
        ) from None


def no_groups() -> Groups:
    """None, in columns."""
    whole, floats = np.zeros(0, np.int32), np.zeros(0, np.float64)
    return Groups(
        name=(),
        life=(),
        kind=(),
        used_s=floats,
        threads=whole,
        realtime=whole,
        pinned=whole,
        place=whole,
        memory_bytes=floats,
    )


def _measurable(power_source: str, residency_s: Mapping[str, float]) -> bool:
    return power_source != "none" or any(of_package(state) for state in residency_s)


def _words(working: Mapping[int, int]) -> str:
    if not working:
        return "all packages idle"
    return ", ".join(f"{count} at work on package {package}" for package, count in working.items())
