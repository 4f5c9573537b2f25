"""Which of several sources each package is read by, and why not by a better one.

Used by `package_idle` and `package_power`. A source is tried by opening it; one that fails later is opened anew, and
given up for the next best one if it fails again. Counters of a source that was opened anew are other counters, so each
opening is told from the others by its time.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from sustain.errors import HostError

_Found_co = TypeVar("_Found_co", covariant=True)
Clock = Callable[[], int]


def since_boot_ns() -> int:
    """CLOCK_BOOTTIME, which goes on while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Way(Protocol[_Found_co]):
    """One package by one source. Opening and reading raise HostError."""

    def read(self) -> _Found_co: ...

    def close(self) -> None: ...


class Ways(Generic[_Found_co]):
    """All packages, each by the first of the sources that can be opened. Close it."""

    def __init__(
        self, packages: Iterable[int], sources: Mapping[str, Callable[[int], Way[_Found_co]]], clock: Clock
    ) -> None:
        self._packages = frozenset(packages)
        self._sources = sources
        self._clock = clock
        self._open: dict[int, tuple[str, int, Way[_Found_co]]] = {}  # (source, when it was opened, …)
        self.lacks: dict[int, dict[str, str]] = {}  # by package: sources that were tried in vain, and why
        for package in sorted(self._packages):
            self._find(package)

    def source(self, package: int) -> str:
        """Which one is used; "none"."""
        return self._open[package][0] if package in self._open else "none"

    def offers(self, package: int) -> dict[str, HostError | None]:
        """What each source answers to being opened for this package, from the best one on; None: it can be."""
        found: dict[str, HostError | None] = {}
        for name, opened in self._sources.items():
            try:
                opened(package).close()
            except HostError as error:
                found[name] = error
            else:
                found[name] = None
        return found

    def read(self, package: int) -> tuple[str, int, _Found_co]:
        """By which source, when that was opened, and what it says. Raises HostError: not measurable, because …"""
        failed: dict[str, str] = {}
        again: set[str] = set()
        for _ in range(2 * len(self._sources)):
            if package not in self._open and not self._find(package, failed):
                break
            source, opened_ns, way = self._open[package]
            try:
                return source, opened_ns, way.read()
            except HostError as error:
                self._drop(package)
                self.lacks[package][source] = _words(error)
                if source in again:
                    failed[source] = _words(error)
                again.add(source)
        why = "; ".join(self.lacks.get(package, {}).values()) or "it has no processor that is online"
        raise HostError(f"not measurable here, because {why}")

    def _find(self, package: int, failed: Mapping[str, str] | None = None) -> bool:
        """Open the best source but those that have just failed twice; whether there is one."""
        if package not in self._packages:
            return False
        lacks = self.lacks[package] = dict(failed or {})
        for name, opened in self._sources.items():
            if name in lacks:
                continue
            try:
                self._open[package] = (name, self._clock(), opened(package))
            except HostError as error:
                lacks[name] = _words(error)
            else:
                return True
        return False

    def _drop(self, package: int) -> None:
        self._open.pop(package)[2].close()

    def close(self) -> None:
        for package in list(self._open):
            self._drop(package)


def _words(error: HostError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)
