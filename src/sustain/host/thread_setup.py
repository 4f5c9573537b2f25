"""How a thread is set up to run: its policy, and the processors that it may use. /proc/TID/stat and status, proc(5).

Used by power-aware placement to look at many threads one after the other; `affinity` and `threads` are for those who
change something. Of a thread that ends between the two reads, or whose number another one has by then, what comes out
is of no use and of no harm: it is counted among others, and looked at again.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

_ALLOWED = b"\nCpus_allowed_list:"
_REALTIME = frozenset((1, 2, 6))  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
_BYTES = 8192  # more than either file has
_POLICY, _FLAGS = 38, 6  # fields 41 and 9, from the state (3) on
_KERNEL = 0x00200000  # PF_KTHREAD


@dataclass(frozen=True, slots=True)
class Setup:
    """Of one thread."""

    realtime: bool  # it has a claim on time that others must not be in the way of
    kernel: bool
    cpus: frozenset[int]  # offline ones, too


def read(tid: int, root: Path = Path("/")) -> Setup | None:
    """None: it has gone. Raises HostError when it may not be looked at."""
    folder = root / "proc" / str(tid)
    status, stat = _content(f"{folder}/status"), _content(f"{folder}/stat")
    if status is None or stat is None:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name may hold anything
    _, found, rest = status.partition(_ALLOWED)
    if len(fields) <= _POLICY or not found:
        raise HostError(f"{folder}: not as proc(5) says", hint="is /proc mounted?")
    cpus = _cpus(rest.partition(b"\n")[0])
    return Setup(int(fields[_POLICY]) in _REALTIME, bool(int(fields[_FLAGS]) & _KERNEL), cpus)


@lru_cache(maxsize=1024)
def _cpus(content: bytes) -> frozenset[int]:
    return files.cpus(content.decode("ascii", "replace"))


def _content(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _BYTES)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise files.refused(path, error) from None
