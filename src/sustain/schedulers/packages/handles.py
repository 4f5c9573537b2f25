"""The way to one group of threads, in the life that a plan speaks of.

Made by `find`, used by `act` to carry a plan out. What is put back is found by the journal alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sustain.host.processes import Identity


@dataclass(frozen=True, slots=True)
class CgroupHandle:
    """A cgroup, with all below it: its directory where cpuset is, and the inode that tells it from others there."""

    directory: Path
    inode: int

    def there(self) -> bool:
        """Whether the path still names it."""
        try:
            return self.directory.stat().st_ino == self.inode
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class ProcessHandle:
    """Processes that were found as one group, each with all of its threads. A guest that is not libvirt's is one."""

    processes: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class DomainHandle:
    """A guest of libvirt's, which is to know where it runs."""

    uri: str
    name: str  # or UUID
    running: str  # its UUID and number: this start of it
    processes: tuple[Identity, ...] = ()  # QEMU's, for its memory and timers; none: unknown


Handle = CgroupHandle | ProcessHandle | DomainHandle
Locate = Callable[[str, str], Handle | None]  # by name and life; None: it has gone. Raises SustainError
