"""/sys/devices/system/cpu/cpuN/cpuidle: idle states of each processor, and how long it was in them.

Documentation/admin-guide/pm/cpuidle.rst. Used by power-aware placement. The kernel counts here what it asked for; a
core may have gone less deep than that (its sibling was busy), and what a package did is not told at all. But
reading it wakes nobody, unlike the counters of the hardware. The counters of a processor that is offline stand still.

`Times` keeps the files open: of 256 processors with 4 states that is 1,024 of them, so half of what this process may
open is kept, and the rest is opened at each reading.
"""

import errno
import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files

_CPUS = "sys/devices/system/cpu"
_GONE = frozenset((errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.ENOTDIR))
_NUMBER_BYTES = 32


@dataclass(frozen=True, slots=True)
class State:
    """One idle state, as its driver describes it. Microseconds; None: this kernel does not say."""

    name: str  # "POLL", "C1", "C6"
    description: str
    latency_us: int | None  # to leave it
    residency_us: int | None  # stays shorter than that do not pay
    disabled: bool


@dataclass(frozen=True, slots=True)
class Count:
    """Counters of one state of one processor since boot; None: this kernel does not count it."""

    time_us: int | None
    usage: int | None  # times it was asked for
    above: int | None  # a less deep one would have been right
    below: int | None  # a deeper one would have been right
    rejected: int | None  # asked for in vain (Linux 5.10)


@dataclass(frozen=True, slots=True)
class Setup:
    """Who chooses idle states; None: this kernel has none."""

    driver: str | None
    governor: str | None


def setup(root: Path = Path("/")) -> Setup:
    """Raises HostError."""
    folder = root / _CPUS / "cpuidle"
    driver = files.text(folder / "current_driver")
    governor = files.text(folder / "current_governor") or files.text(folder / "current_governor_ro")
    return Setup(_word(driver), _word(governor))


def unavailable(root: Path = Path("/")) -> HostError | None:
    """Why no idle state is counted here; None: they are."""
    if any((root / _CPUS).glob("cpu[0-9]*/cpuidle/state0/time")):
        return None
    driver = setup(root).driver
    return HostError(
        f"{root / _CPUS}: no processor has idle states (cpuidle's driver is {driver or 'none'})",
        hint="boot without idle=poll, idle=halt and cpuidle.off=1; virtual machines mostly have none",
    )


def states(cpu: int, root: Path = Path("/")) -> tuple[State, ...]:
    """Those of a processor from the least deep on; (): it has none, or is not there. Raises HostError."""
    return tuple(
        State(
            (files.text(each / "name") or "").strip(),
            (files.text(each / "desc") or "").strip(),
            files.number(each / "latency"),
            files.number(each / "residency"),
            files.number(each / "disable") not in (0, None),
        )
        for each in _folders(cpu, root)
    )


def counts(cpu: int, root: Path = Path("/")) -> tuple[Count, ...]:
    """All counters of a processor, in the order of `states`. Raises HostError."""
    return tuple(
        Count(
            *(files.number(each / name) for name in ("time", "usage", "above", "below", "rejected")),
        )
        for each in _folders(cpu, root)
    )


class Times:
    """The time in each state, of many processors and often. Close it."""

    def __init__(self, cpus: Iterable[int], root: Path = Path("/")) -> None:
        self._root = root
        self._cpus = tuple(sorted(cpus))
        self._held: dict[int, tuple[int, ...]] = {}  # descriptors by processor
        self._paths: dict[int, tuple[Path, ...]] = {}  # of those that are opened each time
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._room = sys.maxsize if limit == resource.RLIM_INFINITY else limit // 2

    def read(self, cpus: Iterable[int] | None = None) -> dict[int, tuple[int, ...]]:
        """Microseconds since boot by state, in the order of `states`, of these of the processors; those that have no
        states, or are there no more, are left out. Raises HostError."""
        found = {}
        for cpu in self._cpus if cpus is None else cpus:
            if (held := self._held.get(cpu)) is None:
                if times := self._opened(cpu):
                    found[cpu] = times
                continue
            try:
                found[cpu] = tuple([int(os.pread(fd, _NUMBER_BYTES, 0)) for fd in held])
            except OSError as error:
                if error.errno not in _GONE:
                    raise self._refused(cpu, error) from None
                self._forget(cpu)  # it was taken out; if it comes back its files are new ones
            except ValueError:
                raise HostError(f"{self._root / _CPUS}/cpu{cpu}/cpuidle: no number") from None
        return found

    def _opened(self, cpu: int) -> tuple[int, ...]:
        """The times of one whose files are not open. They stay open if there is room."""
        paths = self._paths.get(cpu) or tuple(each / "time" for each in _folders(cpu, self._root))
        opened: list[int] = []
        try:
            for path in paths:
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            times = tuple(int(os.pread(fd, _NUMBER_BYTES, 0)) for fd in opened)
            if 0 < len(opened) <= self._room:
                self._room -= len(opened)
                self._held[cpu] = tuple(opened)
                opened = []
            else:
                self._paths[cpu] = paths
        except OSError as error:
            if error.errno not in _GONE:
                raise self._refused(cpu, error) from None
            self._paths.pop(cpu, None)
            return ()
        except ValueError:
            raise HostError(f"{self._root / _CPUS}/cpu{cpu}/cpuidle: no number") from None
        finally:
            for fd in opened:
                os.close(fd)
        return times

    def _refused(self, cpu: int, error: OSError) -> HostError:
        return files.refused(self._root / _CPUS / f"cpu{cpu}/cpuidle", error)

    def _forget(self, cpu: int) -> None:
        for fd in self._held.pop(cpu):
            self._room += 1
            os.close(fd)

    def close(self) -> None:
        for cpu in list(self._held):
            self._forget(cpu)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folders(cpu: int, root: Path) -> list[Path]:
    folder = root / _CPUS / f"cpu{cpu}/cpuidle"
    try:
        found = [each for each in folder.iterdir() if each.name.startswith("state")]
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise files.refused(folder, error) from None
    return sorted(found, key=lambda each: int(each.name.removeprefix("state")))


def _word(content: str | None) -> str | None:
    word = (content or "").strip()
    return None if word in ("", "none") else word
