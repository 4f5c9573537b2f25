"""A real cgroup, for tests and for benchmarks that have none of pytest."""

from pathlib import Path

from sustain.errors import HostError
from sustain.host.cgroup import Cgroup


def make_cgroup(name: str) -> Cgroup | None:
    """One with a memory controller, of either version, whose directory the caller removes; None: this machine lets us
    make none."""
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        directory = parent / name
        try:
            directory.mkdir()
        except OSError:
            continue
        try:
            return Cgroup.open(directory)
        except HostError:  # no memory controller for us
            directory.rmdir()
    return None
