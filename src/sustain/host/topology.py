"""Processors and memory of this host: packages, dies, cores, their threads (SMT), and NUMA nodes.

Documentation/ABI/stable/sysfs-devices-system-cpu and -node. Used by the schedulers. A core's number is only unique
within its die, and a die's within its package, so they are told apart by all of them. Offline processors are left out;
on kernels and machines that do not say, a processor is a package 0, a die 0 and a core of its own (as the kernel does).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from sustain.errors import HostError
from sustain.host import files

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, order=True)
class Cpu:
    """One logical processor that is online."""

    number: int
    package: int
    die: int
    core: int
    node: int | None  # None: this kernel has no NUMA


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node; it may have no processors, or no memory. Bytes; None: unknown."""

    number: int
    cpus: frozenset[int]
    total_bytes: int | None
    free_bytes: int | None
    distances: dict[int, int]  # to each node; 10 is its own


@dataclass(frozen=True)
class Topology:
    """All of it."""

    cpus: tuple[Cpu, ...]
    nodes: tuple[Node, ...]

    @cached_property
    def packages(self) -> dict[int, frozenset[int]]:
        """Processors by package."""
        return _grouped({each.number: each.package for each in self.cpus})

    @cached_property
    def dies(self) -> dict[tuple[int, int], frozenset[int]]:
        """Processors by (package, die)."""
        return _grouped({each.number: (each.package, each.die) for each in self.cpus})

    @cached_property
    def cores(self) -> dict[tuple[int, int, int], frozenset[int]]:
        """Processors by (package, die, core): the threads of each core."""
        return _grouped({each.number: (each.package, each.die, each.core) for each in self.cpus})


def read(root: Path = Path("/")) -> Topology:
    """As it is now. Raises HostError when it cannot be read."""
    folder = root / "sys/devices/system"
    its_nodes = nodes(root)
    node_of = {cpu: each.number for each in its_nodes for cpu in each.cpus}
    cpus = files.cpus(online(root))
    if not cpus:
        raise HostError(f"{folder}/cpu/online: no processor", hint="is /sys mounted?")
    return Topology(tuple(_cpu(folder / "cpu", each, node_of.get(each)) for each in sorted(cpus)), its_nodes)


def online(root: Path = Path("/")) -> str:
    """The processors that are online, as the kernel writes them; "" where it does not say. Raises HostError."""
    return (files.text(root / "sys/devices/system/cpu/online") or "").strip()


def nodes(root: Path = Path("/")) -> tuple[Node, ...]:
    """The nodes alone, as they are now. Raises HostError."""
    return tuple(sorted(_nodes(root / "sys/devices/system/node"), key=lambda each: each.number))


def _cpu(folder: Path, number: int, node: int | None) -> Cpu:
    topology = folder / f"cpu{number}/topology"
    core = files.number(topology / "core_id")
    die = files.number(topology / "die_id")
    package = files.number(topology / "physical_package_id")
    return Cpu(
        number,
        0 if package is None or package < 0 else package,
        0 if die is None or die < 0 else die,
        number if core is None or core < 0 else core,
        node,
    )


def _nodes(folder: Path) -> list[Node]:
    present = files.cpus(files.text(folder / "online"))
    found = []
    for number in sorted(present):
        place = folder / f"node{number}"
        sizes = {
            match[1]: int(match[2]) * 1024
            for match in re.finditer(
                r"Node \d+ (MemTotal|MemFree): +(\d+) kB", files.text(place / "meminfo") or ""
            )
        }
        distances = [int(each) for each in (files.text(place / "distance") or "").split()]
        found.append(
            Node(
                number,
                files.cpus(files.text(place / "cpulist")),
                sizes.get("MemTotal"),
                sizes.get("MemFree"),
                dict(zip(sorted(present), distances, strict=False)),
            )
        )
    return found


def _grouped(keys: dict[int, _Key]) -> dict[_Key, frozenset[int]]:
    groups: dict[_Key, set[int]] = {}
    for number, key in keys.items():
        groups.setdefault(key, set()).add(number)
    return {key: frozenset(numbers) for key, numbers in groups.items()}
