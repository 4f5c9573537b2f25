"""perf_event_open(2): counters of the hardware, counted and not sampled, of a processor whatever runs on it.

Events are the kernel's own, as /sys/bus/event_source/devices describes them (Documentation/ABI/testing/
sysfs-bus-event_source-devices-events and -format). Used by power-aware placement for `cstate_pkg`, `cstate_die`,
`cstate_core` and `power`. Counters start at zero when they are opened. They count on while nobody reads them; reading
one runs on its processor's package, and wakes it, so those that are wanted together are read in one call (`Group`).

The system call is a seam (`Kernel`): `sustain.testing.hosts` has another one.
"""

import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from sustain.errors import HostError
from sustain.host import files

_DEVICES = "sys/bus/event_source/devices"
_PARANOID = "proc/sys/kernel/perf_event_paranoid"
_SYSCALLS = {"x86_64": 298, "aarch64": 241, "ppc64le": 319, "s390x": 331, "riscv64": 241}
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQQ")  # struct perf_event_attr up to config2 (PERF_ATTR_SIZE_VER1)
_TIMES_AND_GROUP = 1 | 2 | 8  # PERF_FORMAT_TOTAL_TIME_ENABLED, _TOTAL_TIME_RUNNING, _GROUP
_CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC
_DISABLED = 1  # the first bit of its flags: a leader is, until its group is complete
_ENABLE = 0x2400  # PERF_EVENT_IOC_ENABLE
_NOT_HERE = frozenset((errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENXIO))


@dataclass(frozen=True, slots=True)
class Event:
    """What a PMU can count, and what one count is: `scale` of a `unit` ("Joules"; "": a count)."""

    name: str
    config: tuple[int, int, int]  # config, config1, config2
    scale: float = 1.0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Pmu:
    """One source of events. `cpus`: those that count for the others of their package or die; empty: each by itself."""

    name: str
    type: int
    cpus: frozenset[int]
    events: dict[str, Event]


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts since the counters were opened, in the order of their events, and how long they counted."""

    counts: tuple[int, ...]
    enabled_ns: int
    running_ns: int  # less than enabled: they took turns with others, and zero means that nothing was counted


class Kernel(Protocol):
    """The calls to the kernel. Each raises OSError."""

    def open(self, kind: int, config: tuple[int, int, int], cpu: int, leader: int) -> int:
        """A counter of all that runs on that processor; leader: whose group it joins. -1: it leads one, which does not
        count before it is started."""

    def start(self, leader: int) -> None:
        """Of a group that is complete: what joins one that counts already may never be counted."""

    def read(self, descriptor: int, count: int) -> Reading:
        """Of a leader with its group of `count`."""

    def close(self, descriptor: int) -> None: ...


class SystemCalls:
    """This machine's."""

    def open(self, kind: int, config: tuple[int, int, int], cpu: int, leader: int) -> int:
        number = _SYSCALLS.get(platform.machine())
        if number is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        config0, config1, config2 = config
        attributes = ctypes.create_string_buffer(
            _ATTRIBUTES.pack(
                *(kind, _ATTRIBUTES.size, config0, 0, 0, _TIMES_AND_GROUP),
                *(_DISABLED if leader < 0 else 0, 0, 0, config1, config2),
            )
        )
        everybody = -1
        arguments = (attributes, everybody, cpu, leader, ctypes.c_ulong(_CLOSE_ON_EXEC))
        descriptor = _LIBC.syscall(ctypes.c_long(number), *arguments)
        if descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return int(descriptor)

    def start(self, leader: int) -> None:
        fcntl.ioctl(leader, _ENABLE, 0)

    def read(self, descriptor: int, count: int) -> Reading:
        content = os.read(descriptor, 8 * (3 + count))
        if len(content) != 8 * (3 + count):
            raise OSError(errno.ENODEV, "it no longer counts")  # its processor has gone
        _, enabled_ns, running_ns, *counts = struct.unpack(f"={3 + count}Q", content)
        return Reading(tuple(counts), enabled_ns, running_ns)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)


def pmu(name: str, root: Path = Path("/")) -> Pmu | None:
    """None: this host has none of that name. Raises HostError."""
    folder = root / _DEVICES / name
    kind = files.number(folder / "type")
    if kind is None:
        return None
    formats = {
        name: said for name in _names(folder / "format") if (said := files.text(folder / "format" / name))
    }
    events = {}
    for each in _names(folder / "events"):
        if "." not in each and (said := files.text(folder / "events" / each)):
            events[each] = Event(
                each,
                _config(said.strip(), formats, folder / "events" / each),
                float(files.text(folder / f"events/{each}.scale") or 1),
                (files.text(folder / f"events/{each}.unit") or "").strip(),
            )
    return Pmu(name, kind, files.cpus(files.text(folder / "cpumask")), events)


class Group:
    """Counters of one processor that are read at once. Close it."""

    def __init__(
        self,
        events: Sequence[tuple[Pmu, Event]],
        cpu: int,
        kernel: Kernel | None = None,
        root: Path = Path("/"),
    ) -> None:
        """Raises HostError; its `errno` is the kernel's."""
        self._kernel = SystemCalls() if kernel is None else kernel
        self._root = root
        self._name = (
            f"{', '.join(f'{source.name}/{event.name}/' for source, event in events)} of processor {cpu}"
        )
        self._members: list[tuple[int, int]] = []  # (leader, how many it has)
        self._descriptors: list[int] = []
        try:
            for source, event in events:
                self._add(source, event, cpu)
            for leader, _ in self._members:
                self._kernel.start(leader)
        except OSError as error:
            self.close()
            raise _explained(self._name, error, root) from None

    def _add(self, source: Pmu, event: Event, cpu: int) -> None:
        """Into the group that there is, or else, as not all sources can be grouped, into one of its own."""
        if self._members:
            leader, count = self._members[-1]
            try:
                self._descriptors.append(self._kernel.open(source.type, event.config, cpu, leader))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                self._members[-1] = (leader, count + 1)
                return
        descriptor = self._kernel.open(source.type, event.config, cpu, -1)
        self._descriptors.append(descriptor)
        self._members.append((descriptor, 1))

    def read(self) -> Reading:
        """Raises HostError, with ENODEV when its processor has gone."""
        counts: list[int] = []
        enabled_ns, running_ns = [], []
        try:
            for leader, count in self._members:
                reading = self._kernel.read(leader, count)
                counts += reading.counts
                enabled_ns.append(reading.enabled_ns)
                running_ns.append(reading.running_ns)
        except OSError as error:
            raise _explained(self._name, error, self._root) from None
        return Reading(tuple(counts), max(enabled_ns), min(running_ns))

    def close(self) -> None:
        while self._descriptors:
            self._kernel.close(self._descriptors.pop())
        self._members.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _explained(name: str, error: OSError, root: Path) -> HostError:
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        level = files.number(root / _PARANOID)
        hint = (
            f"kernel.perf_event_paranoid is {'unknown' if level is None else level}: run it as root or with "
            "CAP_PERFMON, or sysctl -w kernel.perf_event_paranoid=0; a container's seccomp profile may forbid it too"
        )
    elif error.errno in _NOT_HERE:
        hint = "this processor has no such counter, or the hypervisor hides it"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "too many open files: raise ulimit -n (LimitNOFILE= of the unit)"
    elif error.errno == errno.ENOSYS:
        hint = "the kernel has no perf_event_open here, or a seccomp profile hides it"
    return HostError(f"perf {name}: {error.strerror or error}", hint=hint, errno=error.errno)


def _config(said: str, formats: dict[str, str], path: Path) -> tuple[int, int, int]:
    """ "event=0x02,umask=1" by the bits that the formats give each word ("config:0-7,32-35"). Raises HostError."""
    words = [0, 0, 0]
    for term in said.split(","):
        name, _, value = term.partition("=")
        match = re.fullmatch(r"config([12]?):([\d,-]+)", formats.get(name, "").strip())
        try:
            rest = int(value or "1", 0)
        except ValueError:
            match = None
        if match is None:
            raise HostError(f"{path}: {term!r} is of no known format")
        place = int(match[1] or 0)
        for bit in sorted(files.cpus(match[2])):  # a list of numbers once more
            words[place] |= (rest & 1) << bit
            rest >>= 1
    return words[0], words[1], words[2]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise files.refused(folder, error) from None
