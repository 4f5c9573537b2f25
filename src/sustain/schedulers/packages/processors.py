"""The host's processors in columns: which there are, and what they have spent their time on.

Used by `sense`. Which there are is looked up anew when others are online, and else every minute: of 256 processors that
is some 800 files. Their times are two more files for each, at most, and wake nobody.
"""

from pathlib import Path

import numpy as np

from sustain.errors import SustainError
from sustain.host import cpu_frequency, cpu_idle, cpu_time, topology
from sustain.host.cpu_frequency import Range
from sustain.host.topology import Node as MemoryNode
from sustain.host.topology import Topology
from sustain.schedulers.packages.model import Cpus

_AGAIN_S = 60.0
_POLL = "POLL"  # the idle state in which a processor is awake all the same


class Processors:
    """Close it."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._online = ""
        self._looked_s = -_AGAIN_S
        self._topology = Topology((), ())
        self._times: cpu_idle.Times | None = None
        self._asleep: dict[int, tuple[int, ...]] = {}  # by processor, which of its idle states are no polling
        self._ranges: dict[int, Range] = {}

    @property
    def topology(self) -> Topology:
        """As of the last reading."""
        return self._topology

    def nodes(self) -> tuple[MemoryNode, ...]:
        """With their memory as it is now, where there are several; one node's is not looked at. Raises HostError."""
        known = self._topology.nodes
        return known if len(known) < 2 else topology.nodes(self._root)

    def range_of(self, package: int) -> Range:
        """Of the first processor of a package, as of the last reading."""
        return self._ranges.get(package, Range(None, None))

    def read(self, now_s: float, problems: list[str]) -> Cpus:
        """All that are online. Raises HostError when that cannot be told; what else is unknown is among `problems`."""
        self._look(now_s)
        spent = cpu_time.read(self._root)
        # One that went between the two looks is left out.
        cpus = [each for each in self._topology.cpus if each.number in spent]
        asleep_us = self._asleep_us(problems)
        times = [spent[each.number] for each in cpus]
        ticks = cpu_time.TICKS_PER_S
        return Cpus(
            number=np.array([each.number for each in cpus], np.int32),
            package=np.array([each.package for each in cpus], np.int32),
            die=np.array([each.die for each in cpus], np.int32),
            core=np.array([each.core for each in cpus], np.int32),
            node=np.array([-1 if each.node is None else each.node for each in cpus], np.int32),
            busy_s=np.array([each.busy for each in times], np.float64) / ticks,
            idle_s=np.array([each.idle + each.iowait for each in times], np.float64) / ticks,
            asleep_s=np.array([asleep_us.get(each.number, np.nan) for each in cpus], np.float64) / 1e6,
        )

    def _look(self, now_s: float) -> None:
        online = topology.online(self._root)
        if online == self._online and now_s - self._looked_s < _AGAIN_S:
            return
        self._topology = topology.read(self._root)
        # Only what was online before and after is known to be as it was read.
        self._online = online if topology.online(self._root) == online else ""
        self._looked_s = now_s
        firsts = {package: min(cpus) for package, cpus in self._topology.packages.items()}
        self._ranges = {package: cpu_frequency.read(cpu, self._root) for package, cpu in firsts.items()}
        self._close_times()
        numbers = [each.number for each in self._topology.cpus]
        for cpu in numbers:
            states = cpu_idle.states(cpu, self._root)
            self._asleep[cpu] = tuple(at for at, state in enumerate(states) if state.name != _POLL)
        if any(self._asleep.values()):
            self._times = cpu_idle.Times(numbers, self._root)

    def _asleep_us(self, problems: list[str]) -> dict[int, float]:
        if self._times is None:
            return {}
        try:
            found = self._times.read()
        except SustainError as error:
            problems.append(
                f"time in idle states is unknown: {error}" + (f" ({error.hint})" if error.hint else "")
            )
            return {}
        return {
            cpu: float(sum(times[at] for at in self._asleep[cpu]))
            for cpu, times in found.items()
            if len(times) > max(self._asleep.get(cpu) or (len(times),))
        }

    def _close_times(self) -> None:
        self._asleep = {}
        if self._times is not None:
            self._times.close()
            self._times = None

    def close(self) -> None:
        self._close_times()
