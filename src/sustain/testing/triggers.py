"""Pressure triggers that a test fires: `sustain.host.pressure.Triggers` without a kernel that is under pressure."""

import threading
from collections.abc import Hashable
from pathlib import Path

from sustain.errors import HostError


class FakeTriggers:
    """Those whose path is in `refuse` are not taken."""

    def __init__(self) -> None:
        self.refuse: dict[Path, str] = {}
        self.added: list[tuple[Path, int, int]] = []  # path, stall, window, of all that ever were
        self.closed = False
        self._held: dict[Hashable, Path] = {}
        self._changed = threading.Condition()
        self._fired: set[Path] = set()
        self._gone: set[Path] = set()
        self._woken = False

    @property
    def keys(self) -> frozenset[Hashable]:
        return frozenset(self._held)

    def fire(self, path: Path) -> None:
        """Tasks stalled there."""
        self._happens(self._fired, path)

    def remove(self, path: Path) -> None:
        """What is watched there has gone."""
        self._happens(self._gone, path)

    def add(self, key: Hashable, path: Path, stall_us: int, window_us: int) -> None:
        if path in self.refuse:
            raise HostError(f"{path}: {self.refuse[path]}", hint="a test wants it so")
        with self._changed:
            self._held[key] = path
            self.added.append((path, stall_us, window_us))
            self._changed.notify_all()

    def until_it_holds(self, *paths: Path) -> None:
        """AssertionError when it does not within 30 s."""
        with self._changed:
            assert self._changed.wait_for(lambda: sorted(self._held.values()) == sorted(paths), 30)

    def drop(self, key: Hashable) -> None:
        with self._changed:
            del self._held[key]
            self._changed.notify_all()

    def wait(self) -> tuple[frozenset[Hashable], frozenset[Hashable]]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._woken or self._of(self._fired) or self._of(self._gone),
            )
            found = self._of(self._fired), self._of(self._gone)
            self._woken = False
            self._fired.clear()
            self._gone.clear()
            return found

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        self._held.clear()
        self.closed = True

    def _of(self, paths: set[Path]) -> frozenset[Hashable]:
        return frozenset(key for key, path in self._held.items() if path in paths)

    def _happens(self, to: set[Path], path: Path) -> None:
        with self._changed:
            to.add(path)
            self._changed.notify_all()
