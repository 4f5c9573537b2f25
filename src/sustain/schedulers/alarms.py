"""Ends a loop's wait when tasks stall: a thread that waits for pressure triggers of the host and of cgroups.

Used by `loop`. A scheduler says after each tick what is to be watched; the thread opens and closes triggers to match.
What the kernel does not take is said once, and the loop goes on by its period alone. There is no thread until there is
something to watch. How often a loop may be woken is the loop's affair; a trigger fires at most once a window.

Rejected: asking /proc/pressure now and then. It costs while nothing happens, and is late when something does.
"""

import threading
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from sustain.errors import SustainError
from sustain.host import pressure


class Alarm(NamedTuple):
    """Rings when some task stalled for `stall_s` within `window_s`."""

    of: str  # whom it watches, for people
    path: Path  # a pressure file
    stall_s: float
    window_s: float
    life: str = ""  # tells what is there now from what was at the same path before


class Triggers(Protocol):
    """What `host.pressure.Triggers` does, and `testing.FakeTriggers`."""

    @property
    def keys(self) -> frozenset[Hashable]: ...
    def add(self, key: Hashable, path: Path, stall_us: int, window_us: int) -> None: ...
    def drop(self, key: Hashable) -> None: ...
    def wait(self) -> tuple[frozenset[Hashable], frozenset[Hashable]]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class Alarms:
    """Calls `ring` from its thread when one of those that are watched rings."""

    def __init__(
        self,
        ring: Callable[[], None],
        tell: Callable[[str], None],
        triggers: Callable[[], Triggers] = pressure.Triggers,
    ) -> None:
        self._ring = ring
        self._tell = tell
        self._make = triggers
        self._triggers: Triggers | None = None
        self._thread: threading.Thread | None = None
        self._wanted: frozenset[Alarm] = frozenset()
        self._ended = False
        self._refused: dict[Alarm, str] = {}
        self._told: set[str] = set()
        self.watched: tuple[str, ...] = ()  # whose stalls are waited for; replaced whole
        self.problems: tuple[str, ...] = ()  # what is not watched, and why; replaced whole
        self.rung = 0

    def watch(self, wanted: Iterable[Alarm]) -> None:
        """From now on those, and no others. Raises what `wanted` raises, and OSError; then it is as it was."""
        now = frozenset(wanted)
        if now == self._wanted or self._ended:
            return
        made = self._make() if self._triggers is None else None  # raises OSError: the next call tries again
        self._wanted = now
        if made is not None:
            self._triggers = made
            self._thread = threading.Thread(
                target=self._run, args=(self._triggers,), name="alarms", daemon=True
            )
            self._thread.start()
        else:
            assert self._triggers is not None
            self._triggers.wake()

    def close(self) -> None:
        """Watch nothing more."""
        self._ended = True
        if self._triggers is not None and self._thread is not None:
            self._triggers.wake()
            self._thread.join()
            self._triggers.close()
            self._triggers = None
        self.watched = ()

    def _run(self, triggers: Triggers) -> None:
        while not self._ended:
            self._follow(triggers, self._wanted)
            fired, gone = triggers.wait()
            for alarm in gone:
                triggers.drop(alarm)
                assert isinstance(alarm, Alarm)
                self._refused[alarm] = "what it watched has gone"
            if fired:
                self.rung += 1
                self._ring()

    def _follow(self, triggers: Triggers, wanted: frozenset[Alarm]) -> None:
        """Open and close, until what is held is what is wanted, as far as the kernel lets."""
        for alarm in triggers.keys - wanted:
            triggers.drop(alarm)
        self._refused = {alarm: why for alarm, why in self._refused.items() if alarm in wanted}
        for alarm in sorted(wanted - triggers.keys - self._refused.keys()):
            try:
                triggers.add(alarm, alarm.path, round(alarm.stall_s * 1e6), round(alarm.window_s * 1e6))
            except SustainError as error:
                self._refused[alarm] = str(error)
                self._say(
                    f"pressure of {alarm.of} is not watched, its period alone counts: {error} ({error.hint})"
                )
        self.watched = tuple(sorted(alarm.of for alarm in wanted - self._refused.keys()))
        self.problems = tuple(f"{alarm.of}: {why}" for alarm, why in sorted(self._refused.items()))

    def _say(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)
