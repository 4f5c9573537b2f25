"""Looking at groups of busy threads on a machine of two packages, inside it. Run by test_packages_sense.

What is real: kernel, cgroups, threads, processors that go off line. What is made: the watts of the active test, of
which an emulator has none; they follow what real processors have done, by a rule that is told.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sustain.clock import SystemClock
from sustain.errors import HostError
from sustain.host.topology import Topology
from sustain.schedulers.packages.active import ThisHost, run
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.find import Wanted
from sustain.schedulers.packages.model import MIXED, Observation
from sustain.schedulers.packages.rates import look, rates
from sustain.schedulers.packages.sense import Sensor
from tests.host.threaded import Program, wait_until

TOP = Path("/sys/fs/cgroup")


def main() -> dict[str, Any]:
    return {"groups": groups(), "hotplug": hotplug(), "refused": refused(), "tested": tested()}


def groups() -> dict[str, Any]:
    """Two cgroups and a process: one busy on package 1, one with a bound thread, one with threads of two kinds."""
    for name in ("vms", "vms/a", "vms/b"):
        (TOP / name).mkdir()
        (TOP / name / "cgroup.subtree_control").write_text("+cpuset +cpu +memory") if name == "vms" else None
    (TOP / "vms/a/cpuset.cpus").write_text("2-3")
    config = PackagesConfig(
        groups=(Wanted(name="vms", cgroup="vms/*"), Wanted(name="db", pid_file="/tmp/db.pid"))
    )
    with Program() as busy, Program() as bound, Program("chrt", "-f", "10") as alone:
        (TOP / "vms/a/cgroup.procs").write_text(str(busy.pid))
        (TOP / "vms/b/cgroup.procs").write_text(str(bound.pid))
        Path("/tmp/db.pid").write_text(str(alone.pid))
        busy.start(busy=True)
        os.sched_setaffinity(bound.start(), {1})
        os.sched_setaffinity(alone.start(), {0, 1})
        sensor = Sensor(config, SystemClock(), Path("/tmp/findings.json"))
        try:
            first = sensor.read()
            wait_until(lambda: _used(sensor.read(), "vms.a") > _used(first, "vms.a") + 1)
            second = sensor.read()
            between = rates(look(first), second)
            assert between is not None
            told = _told(second) | {
                "packages": [
                    [each.number, each.source, each.power_source, bool(each.problems)]
                    for each in second.packages
                ],
                "of": second.cpus.package.tolist(),
                "busy": between.busy,
                "used": float(between.used[second.groups.name.index("vms.a")]),
                "nodes": len(second.nodes),
                "memory known": int(np.isfinite(second.groups.memory_bytes).sum()),
                "virtual": second.virtual,
                "problems": list(second.problems),
            }
            # Somebody moves one, and another one vanishes.
            (TOP / "vms/a/cpuset.cpus").write_text("0-1")
            told["moved"] = _told(sensor.read())["places"]["vms.a"]
            (TOP / "cgroup.procs").write_text(str(bound.pid))
            (TOP / "vms/b").rmdir()
            told["left"] = list(sensor.read().groups.name)
        finally:
            sensor.close()
        (TOP / "cgroup.procs").write_text(str(busy.pid))
    return told


def hotplug() -> list[dict[str, Any]]:
    """A processor goes off line between two looks, and comes back."""
    switch = Path("/sys/devices/system/cpu/cpu3/online")
    sensor = Sensor(PackagesConfig(groups=(Wanted(name="me", pid=os.getppid()),)), SystemClock())
    found = []
    try:
        before = sensor.read()
        for value in ("0", "1"):
            switch.write_text(value)
            now = sensor.read()
            between = rates(look(before), now)
            found.append(
                {
                    "cpus": now.cpus.number.tolist(),
                    "known": sorted(between.busy) if between is not None else [],
                }
            )
            before = now
    finally:
        switch.write_text("1")
        sensor.close()
    return found


def refused() -> list[str]:
    """As it is here: a virtual machine, without any counters."""
    words = []
    for virtual in (True, False):
        host = ThisHost(SystemClock(), _never)
        try:
            run(host, virtual=virtual)
        except HostError as error:
            words.append(str(error))
        finally:
            host.close()
    return words


def tested() -> dict[str, list[str]]:
    """Real spinners on both packages; watts made of what processors did: all packages take 30 W more while any of them
    is awake (coordinated), or each by itself."""
    return {
        kind: sorted({f"{each.state} {each.independence}" for each in _made(kind).findings})
        for kind in ("coordinated", "independent")
    }


def _made(kind: str) -> Any:
    host = _MadeWatts(coordinated=kind == "coordinated")
    try:
        return run(host, virtual=False, window_s=2.0, repeats=3)
    finally:
        host.close()


class _MadeWatts:
    def __init__(self, *, coordinated: bool) -> None:
        self._coordinated = coordinated
        self._real = ThisHost(SystemClock(), _wait)
        self._last: Observation | None = None
        self._energy_j = {0: 0.0, 1: 0.0}

    @property
    def topology(self) -> Topology:
        return self._real.topology

    def look(self) -> Observation:
        seen = self._real.look()
        between = rates(look(self._last), seen) if self._last is not None else None
        if between is not None:
            # Of four processors that share one thread of the emulator each has a part of a core at most.
            awake = {package: between.busy.get(package, 0.0) > 0.2 for package in self._energy_j}
            for package, its_own in awake.items():
                up = any(awake.values()) if self._coordinated else its_own
                watts = 15.0 + 30.0 * up
                self._energy_j[package] += watts * between.passed_s
        self._last = seen
        packages = tuple(
            msgspec.structs.replace(
                each, energy_j=self._energy_j[each.number], energy_read_s=seen.now_s, power_source="perf"
            )
            for each in seen.packages
        )
        fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
        return Observation(**(fields | {"packages": packages}))

    def spin(self, cpus: Sequence[int]) -> AbstractContextManager[None]:
        return self._real.spin(cpus)

    def wait(self, seconds: float) -> None:
        self._real.wait(seconds)

    def close(self) -> None:
        self._real.close()


def _wait(seconds: float) -> None:
    import threading

    threading.Event().wait(seconds)


def _never(_: float) -> None:
    raise AssertionError("it must not come to a window")


def _used(seen: Observation, name: str) -> float:
    return float(seen.groups.used_s[seen.groups.name.index(name)])


def _told(seen: Observation) -> dict[str, Any]:
    groups = seen.groups
    return {
        "places": {
            name: None if place == MIXED else list(seen.places[place])
            for name, place in zip(groups.name, groups.place.tolist(), strict=True)
        },
        "pinned": dict(zip(groups.name, groups.pinned.tolist(), strict=True)),
        "realtime": dict(zip(groups.name, groups.realtime.tolist(), strict=True)),
        "threads": dict(zip(groups.name, groups.threads.tolist(), strict=True)),
    }
