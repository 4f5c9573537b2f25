"""Reads the host, its packages and the groups into one Observation.

Used by the scheduler's loop and by verbs that only look. What costs is done in turns: threads one by one (`surveys`),
memory by node (`groups`), the search for processes (`find`), and counters of packages that are parked (`readings`),
which reading would wake. The rest is read each time. What cannot be read is unknown, and why is among the problems;
only where there are no processors to be seen is there no observation.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sustain.clock import Clock
from sustain.errors import SustainError
from sustain.host import firmware, perf_events, pressure
from sustain.schedulers.packages.config import PackagesConfig, check
from sustain.schedulers.packages.find import Finder, Found
from sustain.schedulers.packages.findings import Findings
from sustain.schedulers.packages.groups import GroupReader, MemoryOf
from sustain.schedulers.packages.model import Node, Observation, Package
from sustain.schedulers.packages.own_metrics import OwnMetrics
from sustain.schedulers.packages.processors import Processors
from sustain.schedulers.packages.readings import Readings
from sustain.schedulers.stalls import Stalls


@dataclass(frozen=True, slots=True)
class Host:
    """Who this host is. `key` is "" where that cannot be told; then nothing that was found out holds."""

    key: str
    title: str
    virtual: bool | None


def who(root: Path = Path("/")) -> Host:
    """Raises HostError."""
    found = firmware.identify(root)
    return Host(found.key, found.title, found.virtual)


class Sensor:
    """Close it."""

    def __init__(
        self,
        config: PackagesConfig,
        clock: Clock,
        findings: Path | None = None,
        root: Path = Path("/"),
        *,
        memory_of: MemoryOf | None = None,
        kernel: perf_events.Kernel | None = None,
        pread: Callable[[int, int, int], bytes] = os.pread,
    ) -> None:
        """`findings`: where what is found out is kept, when `config` does not say; None: nowhere. In place of the
        host's own: `memory_of`, `kernel` (performance counters), `pread` (registers). Raises ConfigError, and HostError
        when it is not known what host this is."""
        check(config)
        self.host = who(root)
        self.findings = Findings(
            Path(config.findings) if config.findings else findings, self.host.key, clock, self.host.title
        )
        self._policy = config.policy
        self._clock = clock
        self._root = root
        # Pins are of threads: of guests that libvirt places, these are looked at.
        self._finder = Finder(config.groups, root, scopes=config.libvirt is None)
        self._processors = Processors(root)
        self._groups = GroupReader(clock, root, memory_of)
        self._readings = Readings(clock, root, kernel=kernel, pread=pread)
        self._metrics = OwnMetrics(config.metrics, config.metric_timeout_s, clock)
        self._stalls = Stalls()
        self._found: Mapping[tuple[str, str], Found] = {}

    def found(self, group: str, life: str) -> Found | None:
        """The group of that name and life, as of the last observation; None: there was none."""
        return self._found.get((group, life))

    def read(self, parked: Collection[int] = frozenset()) -> Observation:
        """All that can be known now; `parked`: packages to be left asleep. Raises HostError when not even the
        processors can be seen."""
        problems: list[str] = []
        now_s = self._clock.boottime_ns() / 1e9
        cpus = self._processors.read(now_s, problems)
        packages = self._packages(parked, problems)
        nodes = self._nodes(problems)
        found, notes = self._finder.find(now_s)
        problems += notes
        groups, places = self._groups.read(
            now_s,
            found,
            self._finder.trees,
            frozenset(cpus.number.tolist()),
            [each.number for each in nodes],
            problems,
        )
        self._found = {(each.name, each.life): each for each in found}
        findings, verdicts, problem = self.findings.read()
        problems += [problem] if problem is not None else []
        return Observation(
            now_s=now_s,
            cpus=cpus,
            groups=groups,
            packages=packages,
            nodes=nodes,
            places=places,
            host=self.host.key,
            virtual=self.host.virtual,
            findings=findings,
            verdicts=verdicts,
            metrics=self._metrics.read(problems),
            pressure=self._pressure(now_s, problems),
            problems=tuple(problems),
        )

    def close(self) -> None:
        """Raises nothing."""
        for each in (self._metrics, self._readings, self._groups, self._processors):
            each.close()

    def _packages(self, parked: Collection[int], problems: list[str]) -> tuple[Package, ...]:
        topology = self._processors.topology
        try:
            return self._readings.read(topology, self._speeds, parked, self._policy.parked_read_s)
        except SustainError as error:
            problems.append(_words(error))
            return tuple(
                Package(number=number, problems=(f"not measurable here, because {error}",))
                for number in sorted(topology.packages)
            )

    def _speeds(self, package: int) -> tuple[float | None, float | None]:
        found = self._processors.range_of(package)
        return found.base_hz, found.most_hz

    def _nodes(self, problems: list[str]) -> tuple[Node, ...]:
        try:
            return tuple(
                Node(number=each.number, total_bytes=each.total_bytes, free_bytes=each.free_bytes)
                for each in self._processors.nodes()
            )
        except SustainError as error:
            problems.append(f"memory by node is unknown: {_words(error)}")
            return ()

    def _pressure(self, now_s: float, problems: list[str]) -> float | None:
        try:
            some_us = pressure.read(pressure.file_of_host(self._root, "cpu")).some_us
        except SustainError as error:
            problems.append(_words(error))
            return None
        return self._stalls.share(now_s, some_us)


def _words(error: SustainError) -> str:
    return f"{error}" + (f" ({error.hint})" if error.hint else "")
