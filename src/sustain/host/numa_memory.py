"""On which NUMA nodes memory is: of a process (/proc/PID/numa_maps) and of a cgroup (memory.numa_stat, both versions);
and what a node has (/sys/devices/system/node/nodeN/meminfo). Used by the package scheduler.

What each costs: a node, one small file; a cgroup, one file of counters that the kernel keeps anyway; a process, a walk
of its page tables as for smaps (some 0.1 s for each 10 GiB of small pages). `move_pages.sample` asks of a few pages
instead. A page that several processes map counts for each of them, and for the one cgroup that it is charged to.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sustain.host import files

_PAGE_BYTES = 4096
_KIB = 1024
_ON_NODE = re.compile(r" N(\d+)=(\d+)")
_LINE = re.compile(r"([0-9a-f]+) (.*)")
_PAGE_KIB = re.compile(r" kernelpagesize_kB=(\d+)")
# Version 2's kinds that are not a part of another one; version 1 has a total.
_KINDS = frozenset(("anon", "file", "kernel_stack", "pagetables", "slab_reclaimable", "slab_unreclaimable"))
_TOTALS = ("hierarchical_total", "total")


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """One node's. Bytes; None: this kernel does not say."""

    total_bytes: int | None
    free_bytes: int | None
    file_bytes: int | None
    anonymous_bytes: int | None


@dataclass(frozen=True, slots=True)
class Area:
    """One area of a process, and what of it is in memory, by node. Bytes."""

    start: int
    by_node: dict[int, int]
    huge: bool  # of hugetlbfs, whose pages are larger
    file: bool  # of a file, tmpfs or memfd: others may map it, too


def of_process(pid: int, root: Path = Path("/")) -> dict[int, int] | None:
    """What a process has in memory, in bytes by node; None: it has gone, or there is no NUMA. Raises HostError."""
    found = areas(pid, root)
    if found is None:
        return None
    sums: Counter[int] = Counter()
    for each in found:
        sums.update(each.by_node)
    return dict(sums)


def areas(pid: int, root: Path = Path("/")) -> tuple[Area, ...] | None:
    """The same area by area, in the order of addresses, with those that have nothing in memory."""
    content = files.text(root / f"proc/{pid}/numa_maps")
    # Of what has gone, and of a thread of the kernel, the file is there and empty.
    return tuple(_areas(content)) if content else None


def of_cgroup(directory: Path) -> dict[int, int] | None:
    """What a cgroup and all below it have in memory, in bytes by node; None: gone, or no memory controller. `directory`
    is `Cgroup.directory`. Raises HostError."""
    content = files.text(directory / "memory.numa_stat")
    if not content:
        return None
    lines = {name: numbers for name, _, numbers in (line.partition(" ") for line in content.splitlines())}
    # Version 1: "total=12 N0=12", in pages; version 2: "anon N0=4096".
    for total in _TOTALS:
        for name, numbers in lines.items():
            if name.startswith(f"{total}="):
                return {node: pages * _PAGE_BYTES for node, pages in _by_node(numbers)}
    sums: Counter[int] = Counter()
    for name in _KINDS & lines.keys():
        sums.update(dict(_by_node(lines[name])))
    return dict(sums)


def nodes(root: Path = Path("/")) -> dict[int, NodeMemory]:
    """All nodes that are online, those without memory, too; none: this kernel has no NUMA. Raises HostError."""
    folder = root / "sys/devices/system/node"
    found = {}
    for number in sorted(files.cpus(files.text(folder / "online"))):
        content = files.text(folder / f"node{number}/meminfo") or ""
        sizes = {
            match[1]: int(match[2]) * _KIB
            for match in re.finditer(r"^Node \d+ ([^:]+): +(\d+) kB", content, re.MULTILINE)
        }
        found[number] = NodeMemory(
            *(sizes.get(each) for each in ("MemTotal", "MemFree", "FilePages", "AnonPages"))
        )
    return found


def _areas(content: str) -> Iterator[Area]:
    for line in content.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        rest = match[2]
        size = _PAGE_KIB.search(rest)
        page_bytes = int(size[1]) * _KIB if size else _PAGE_BYTES
        by_node = {node: pages * page_bytes for node, pages in _by_node(rest)}
        yield Area(int(match[1], 16), by_node, " huge" in rest, " file=" in rest)


def _by_node(text: str) -> Iterator[tuple[int, int]]:
    return ((int(node), int(count)) for node, count in _ON_NODE.findall(f" {text}"))
