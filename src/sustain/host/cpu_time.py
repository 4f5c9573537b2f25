"""/proc/stat: what each processor spent its time on.

proc_stat(5). Used by power-aware placement. Reading it wakes nobody. Offline processors are left out, and count on from
where they were when they come back. `idle` and `iowait` may go back a little on kernels without ticks in idle, so a
difference may be below zero and means none.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

TICKS_PER_S = os.sysconf("SC_CLK_TCK")  # USER_HZ
_FIELDS = 10


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Of one processor since boot, in ticks (`TICKS_PER_S`). `user` holds `guest` and `nice` holds `guest_nice`."""

    user: int
    nice: int
    system: int
    idle: int
    iowait: int  # also idle
    irq: int
    softirq: int
    steal: int  # it was ready to run, and the hypervisor ran somebody else
    guest: int
    guest_nice: int

    @property
    def busy(self) -> int:
        """Ticks in which it executed something."""
        return self.user + self.nice + self.system + self.irq + self.softirq


def read(root: Path = Path("/")) -> dict[int, CpuTime]:
    """By number, those that are online. Raises HostError."""
    path = root / "proc/stat"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise files.refused(path, error, "is /proc mounted?") from None
    try:
        return parse(content)
    except (ValueError, TypeError):
        raise HostError(f"{path}: not in the form of proc_stat(5)") from None


def parse(content: bytes) -> dict[int, CpuTime]:
    """A text in the form of /proc/stat. The lines of processors come first, and most of the rest are interrupts, which
    are not looked at. Raises ValueError and TypeError."""
    found = {}
    for line in content.partition(b"\nintr")[0].splitlines():
        name, *values = line.split()
        if name.startswith(b"cpu") and name != b"cpu":
            found[int(name[3:])] = CpuTime(*map(int, values[:_FIELDS]))
    return found
