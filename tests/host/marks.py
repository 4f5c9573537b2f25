"""Who has made something on this host that outlives its process: pid and start time, in twelve letters and digits,
which fit into a cgroup's name and a swap's label. So the next run tells what a killed one has left from what is in
use."""

import os
import re

import numpy as np

from sustain.host import processes
from sustain.host.processes import Identity

_PID, _TICKS = 5, 7  # digits to the base of 36


def own() -> str:
    """Of this process."""
    who = processes.identify(os.getpid())
    assert who is not None
    return of(who)


def of(who: Identity) -> str:
    return (np.base_repr(who.pid, 36).zfill(_PID) + np.base_repr(who.start_ticks, 36).zfill(_TICKS)).lower()


def dead(mark: str) -> bool:
    """Whether it is the mark of a process that has ended; what is no mark is nobody's."""
    if re.fullmatch(rf"[0-9a-z]{{{_PID + _TICKS}}}", mark) is None:
        return False
    return not processes.alive(Identity(int(mark[:_PID], 36), int(mark[_PID:], 36)))
