"""Pressure stall information (PSI): time that tasks waited for memory or processors, of the host, a cgroup or (`parse`)
a guest.

Documentation/accounting/psi.rst. Used by the schedulers. Only the totals are taken: an average over the
kernel's windows says less than two totals and the time between them. A `Trigger` wakes whoever polls it, when tasks
have stalled for that long within the window; the kernel counts, nobody asks in vain.
"""

import os
import select
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sustain.errors import HostError
from sustain.host import files


@dataclass(frozen=True, slots=True)
class Pressure:
    """Counters in microseconds; None: unknown."""

    some_us: int | None = None  # at least one task waited
    full_us: int | None = None  # all that could have run waited


def parse(content: str) -> Pressure:
    """A text in the form of /proc/pressure/memory."""
    totals: dict[str, int] = {}
    for line in content.splitlines():
        kind, _, rest = line.strip().partition(" ")
        for word in rest.split():
            name, _, value = word.partition("=")
            if name == "total" and (total := files.counted(value)) is not None:
                totals[kind] = total
    return Pressure(totals.get("some"), totals.get("full"))


def of_host(root: Path = Path("/")) -> Pressure:
    """This host's, for memory."""
    return read(file_of_host(root))


def file_of_host(root: Path = Path("/"), resource: str = "memory") -> Path:
    """Where that is read, and triggers are set; of "memory", "cpu" or "io"."""
    return root / "proc/pressure" / resource


def read(path: Path) -> Pressure:
    """What that file says. Unknown where the kernel has no PSI, or it is switched off (psi=1 at boot). Raises
    HostError."""
    return parse(files.text(path) or "")


class Trigger:
    """Ready to be polled (POLLPRI) when tasks stalled for `stall_us` within `window_us`; once a window at most.

    Without CAP_SYS_RESOURCE the window must be a multiple of 2 s (before Linux 6.5 it needs that right). Close it.
    """

    def __init__(self, path: Path, stall_us: int, window_us: int, kind: str = "some") -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise files.refused(
                path, error, "PSI needs a kernel with CONFIG_PSI, booted with psi=1"
            ) from None
        try:
            os.write(self._descriptor, f"{kind} {stall_us} {window_us}\0".encode())
        except OSError as error:
            self.close()
            raise files.refused(
                path,
                error,
                "the window is 500 ms to 10 s and longer than the stall; without CAP_SYS_RESOURCE a multiple of 2 s",
            ) from None

    def fileno(self) -> int:
        """For poll and select; register it for POLLPRI."""
        return self._descriptor

    def wait(self, timeout_s: float) -> bool:
        """Until it fires; False at the time-out. Raises HostError when what it watches has gone."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLPRI)
        events = poll.poll(timeout_s * 1000)
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in events):
            raise HostError(f"{self._path}: what the trigger watched has gone")
        return bool(events)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Triggers:
    """Many triggers that one thread waits for at once; each has a key. `wake` may be called from any thread."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._held: dict[Hashable, Trigger] = {}

    @property
    def keys(self) -> frozenset[Hashable]:
        return frozenset(self._held)

    def add(self, key: Hashable, path: Path, stall_us: int, window_us: int) -> None:
        """Raises HostError when the kernel does not take it."""
        assert key not in self._held
        self._held[key] = Trigger(path, stall_us, window_us)

    def drop(self, key: Hashable) -> None:
        self._held.pop(key).close()

    def wait(self) -> tuple[frozenset[Hashable], frozenset[Hashable]]:
        """Until `wake`, or some of them fire: the keys of those, and of those that watch what is no more."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        keys: dict[int, Hashable] = {}
        for key, trigger in self._held.items():
            poll.register(trigger.fileno(), select.POLLPRI)
            keys[trigger.fileno()] = key
        fired, gone = set(), set()
        for descriptor, event in poll.poll():
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif event & (select.POLLERR | select.POLLNVAL):
                gone.add(keys[descriptor])
            else:
                fired.add(keys[descriptor])
        return frozenset(fired), frozenset(gone)

    def wake(self) -> None:
        """End the wait that goes on, or else the next one."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        for key in list(self._held):
            self.drop(key)
        os.close(self._wake)
