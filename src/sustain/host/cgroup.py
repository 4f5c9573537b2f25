"""Memory of a cgroup, version 2 or 1: what it uses and for what, its limit, its stalls, its processes, and reclaim.

Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. Used by the guest memory scheduler, for containers and
for guests that have a cgroup of their own. A cgroup's path may be used again; what names it is its inode (`life`).

Reclaim: version 2 has `memory.reclaim`. In version 1 the limit is set to what should be left; the kernel reclaims
until that holds, and the old limit is set again. For that moment the cgroup's processes wait rather than being killed
when they need more. (`memory.force_empty` was rejected: it takes everything.)
"""

import errno
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files, hierarchies, pressure
from sustain.host.pressure import Pressure

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED_BYTES = 1 << 62  # version 1 shows "no limit" as a number near 2**63
_SWAP_NEEDED = "anonymous memory can only be reclaimed where this host, and the cgroup, have swap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What the memory is used for, with all cgroups below. Bytes and counters; None: this kernel does not say."""

    active_anonymous_bytes: int | None = None
    inactive_anonymous_bytes: int | None = None
    active_file_bytes: int | None = None
    inactive_file_bytes: int | None = None
    unevictable_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shared_bytes: int | None = None
    dirty_bytes: int | None = None
    writeback_bytes: int | None = None
    anonymous_huge_bytes: int | None = None
    slab_reclaimable_bytes: int | None = None
    kernel_bytes: int | None = None  # slab, stacks, page tables and the like
    zswap_bytes: int | None = None
    # counters
    refault_anonymous_bytes: int | None = None
    refault_file_bytes: int | None = None
    swap_in_bytes: int | None = None
    major_faults: int | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """Counters; None: not counted."""

    limit_hits: int | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What came of a reclaim, by what the cgroup used before and after it."""

    wanted_bytes: int
    freed_bytes: int  # negative: it grew meanwhile
    problem: str | None  # why it was less than wanted; None: all of it was reclaimed


class Cgroup:
    """One cgroup with a memory controller."""

    def __init__(self, directory: Path, version: int, inode: int) -> None:
        self.directory = directory
        self.version = version
        self.inode = inode

    @classmethod
    def open(cls, path: str | Path, root: Path = Path("/")) -> Self:
        """By its path as in /proc/PID/cgroup ("/machine.slice/vm.scope"), or by its directory. Raises HostError."""
        relative = str(path).lstrip("/")
        for directory in (
            root / relative,
            *(each.mount / relative for each in hierarchies.of("memory", root)),
        ):
            for version, name in ((2, "memory.current"), (1, "memory.usage_in_bytes")):
                try:
                    if (directory / name).exists():
                        return cls(directory, version, directory.stat().st_ino)
                except OSError as error:  # it may end between the two
                    raise files.refused(directory, error) from None
        raise HostError(
            f"{path}: no cgroup with a memory controller",
            hint="is it there, not the root, and does its parent's cgroup.subtree_control have memory?",
        )

    @classmethod
    def of_process(cls, pid: int, root: Path = Path("/")) -> Self | None:
        """The cgroup that a process's memory is charged to; None: it has gone, or is in the root."""
        path = "/"
        for line in (files.text(root / f"proc/{pid}/cgroup") or "").splitlines():
            _, controllers, its_path = line.split(":", 2)
            if "memory" in controllers.split(","):  # version 1
                path = its_path
                break
            if not controllers:
                path = its_path
        return None if path == "/" else cls.open(path, root)

    @property
    def life(self) -> str:
        """Tells this cgroup from an earlier or later one of the same path."""
        return str(self.inode)

    def alive(self) -> bool:
        """Whether the path still names this cgroup."""
        try:
            return self.directory.stat().st_ino == self.inode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise files.refused(self.directory, error) from None

    def current_bytes(self) -> int | None:
        """What it uses now, page cache and the kernel's memory included; None: it has gone."""
        return self._size("memory.current", "memory.usage_in_bytes")

    def limit_bytes(self) -> float | None:
        """The least limit of it and of those above it; inf: none is set, None: it has gone."""
        own = self.own_limit_bytes()
        if own is None:
            return None
        if self.version == 1:
            below = self._stat().get("hierarchical_memory_limit")
            return own if below is None or below >= _UNLIMITED_BYTES else min(own, below)
        for parent in self.directory.parents:
            text = files.text(parent / "memory.max")
            if text is None:
                break
            own = min(own, _limit(text))
        return own

    def own_limit_bytes(self) -> float | None:
        """Its own limit; inf: none."""
        text = self._text("memory.max", "memory.limit_in_bytes")
        return None if text is None else _limit(text)

    def swap_bytes(self) -> int | None:
        """What it has in swap; None: unknown, where swap is not accounted."""
        if self.version == 2:
            return files.number(self.directory / "memory.swap.current")
        stat = self._stat()
        return stat.get("total_swap", stat.get("swap"))

    def swap_limit_bytes(self) -> float | None:
        """The most that it may have in swap; inf: no limit; None: unknown. Version 1 limits only the sum."""
        text = files.text(self.directory / "memory.swap.max") if self.version == 2 else None
        return None if text is None else _limit(text)

    def stat(self) -> Stat:
        """What its memory is used for. All unknown when it has gone."""
        raw = self._stat()
        first = self.version == 1

        def take(*names: str) -> int | None:
            """The sum of those that are there."""
            known = [
                raw[name] for name in (f"total_{each}" if first else each for each in names) if name in raw
            ]
            return sum(known) if known else None

        # In pages, unlike the rest. Before Linux 5.9 files alone were counted, without "file" in the name.
        anonymous, file, swapped_in = (
            None if pages is None else pages * _PAGE_BYTES
            for pages in (
                take("workingset_refault_anon"),
                take("workingset_refault_file", "workingset_refault"),
                take("pswpin"),
            )
        )
        kernel = files.number(self.directory / "memory.kmem.usage_in_bytes") if first else take("kernel")
        if kernel is None and not first:  # before Linux 5.18
            kernel = take("slab", "kernel_stack", "pagetables", "percpu", "sock")
        return Stat(
            active_anonymous_bytes=take("active_anon"),
            inactive_anonymous_bytes=take("inactive_anon"),
            active_file_bytes=take("active_file"),
            inactive_file_bytes=take("inactive_file"),
            unevictable_bytes=take("unevictable"),
            anonymous_bytes=take("rss" if first else "anon"),
            file_bytes=take("cache" if first else "file"),
            shared_bytes=take("shmem"),
            dirty_bytes=take("dirty" if first else "file_dirty"),
            writeback_bytes=take("writeback" if first else "file_writeback"),
            anonymous_huge_bytes=take("rss_huge" if first else "anon_thp"),
            slab_reclaimable_bytes=take("slab_reclaimable"),
            kernel_bytes=kernel,
            zswap_bytes=take("zswap"),
            refault_anonymous_bytes=anonymous,
            refault_file_bytes=file,
            swap_in_bytes=swapped_in,
            major_faults=take("pgmajfault"),
        )

    def events(self) -> Events:
        """How often it hit its limit, and how often something of it was killed."""
        if self.version == 2:
            raw = files.table(files.text(self.directory / "memory.events") or "")
            return Events(raw.get("max"), raw.get("oom_kill"))
        return Events(files.number(self.directory / "memory.failcnt"), self._oom_control().get("oom_kill"))

    def pressure(self) -> Pressure:
        """How long its tasks waited for memory; unknown in version 1."""
        return pressure.read(self.pressure_file) if self.version == 2 else Pressure()

    @property
    def pressure_file(self) -> Path:
        """Where that is read, and triggers are set. Version 1 has none."""
        return self.directory / "memory.pressure"

    def processes(self) -> tuple[int, ...]:
        """The processes directly in it."""
        return tuple(int(line) for line in (files.text(self.directory / "cgroup.procs") or "").split())

    @property
    def can_reclaim(self) -> bool:
        """Whether this kernel can be asked to reclaim from it (version 2: Linux 5.19)."""
        return self.version == 1 or (self.directory / "memory.reclaim").exists()

    def reclaim(self, amount_bytes: int, before_limit: Callable[[int, int], None] | None = None) -> Reclaimed:
        """Have the kernel take that much from it. Blocks until it has, or cannot: use a thread.

        In version 1, `before_limit(old, new)` is called before the limit is changed for a moment, so that it can be
        noted and put back by somebody else, should this process die in between. Raises HostError.
        """
        before = self.current_bytes()
        if before is None:
            raise HostError(f"{self.directory}: the cgroup has gone", errno=errno.ENOENT)
        amount_bytes = min(amount_bytes, before)
        problem = None
        try:
            if self.version == 2:
                files.write(self.directory / "memory.reclaim", str(amount_bytes))
            else:
                self._reclaim_first(before - amount_bytes, before_limit)
        except HostError as error:
            if error.errno not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                raise HostError(str(error), hint=error.hint or _hint(error), errno=error.errno) from None
            problem = f"the kernel found less to reclaim ({_SWAP_NEEDED})"
        after = self.current_bytes()
        if after is None:
            raise HostError(f"{self.directory}: the cgroup went while it was reclaimed", errno=errno.ENOENT)
        return Reclaimed(amount_bytes, before - after, problem)

    def set_limit(self, limit_bytes: float) -> None:
        """Its own limit; inf: none. Raises HostError: EBUSY, version 1 could not get below it."""
        value = ("max" if self.version == 2 else "-1") if math.isinf(limit_bytes) else str(int(limit_bytes))
        files.write(self.directory / ("memory.max" if self.version == 2 else "memory.limit_in_bytes"), value)

    def kills(self) -> bool:
        """Whether processes are killed when memory runs out; in version 1 they can be made to wait instead."""
        return self.version == 2 or self._oom_control().get("oom_kill_disable") == 0

    def set_kills(self, kills: bool) -> None:
        """Version 1 only. Raises HostError."""
        files.write(self.directory / "memory.oom_control", "0" if kills else "1")

    def _oom_control(self) -> dict[str, int]:
        return files.table(files.text(self.directory / "memory.oom_control") or "")

    def _reclaim_first(self, left_bytes: int, before_limit: Callable[[int, int], None] | None) -> None:
        old = self.own_limit_bytes()
        if old is None:
            raise HostError(f"{self.directory}: the cgroup has gone", errno=errno.ENOENT)
        left_bytes = left_bytes // _PAGE_BYTES * _PAGE_BYTES  # as the kernel will show it
        if before_limit is not None:
            before_limit(-1 if math.isinf(old) else int(old), left_bytes)
        kills = self.kills()
        if kills:
            self.set_kills(False)
        try:
            self.set_limit(left_bytes)
        finally:
            self.set_limit(old)
            if kills:
                self.set_kills(True)

    def _stat(self) -> dict[str, int]:
        return files.table(files.text(self.directory / "memory.stat") or "")

    def _text(self, second: str, first: str) -> str | None:
        return files.text(self.directory / (second if self.version == 2 else first))

    def _size(self, second: str, first: str) -> int | None:
        return files.number(self.directory / (second if self.version == 2 else first))


def members(path: str | Path, root: Path = Path("/")) -> list[int]:
    """The processes of a cgroup, of any controller, and of all below it. `path`: its directory, or what follows the
    mount of version 2. Raises HostError when there is none."""
    directory = Path(path)
    if not (directory / "cgroup.procs").exists():
        directory = root / "sys/fs/cgroup" / str(path).lstrip("/")
    if not (directory / "cgroup.procs").exists():
        raise HostError(
            f"{path}: no cgroup", hint="give its directory, as /sys/fs/cgroup/system.slice/db.service"
        )
    found: set[int] = set()
    for folder, _, _ in os.walk(directory):
        found.update(int(line) for line in (files.text(Path(folder, "cgroup.procs")) or "").split())
    return sorted(found)


def _limit(text: str) -> float:
    value = text.strip()
    if value == "max" or not value.isdecimal() or int(value) >= _UNLIMITED_BYTES:
        return math.inf
    return int(value)


def _hint(error: HostError) -> str:
    if error.errno == errno.EINVAL:
        return "this kernel cannot reclaim so; Linux 5.19 has memory.reclaim"
    if error.errno == errno.ENOENT:
        return "has the cgroup gone, or is the kernel older than 5.19 (memory.reclaim)?"
    return ""
