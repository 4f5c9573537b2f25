"""A real cgroup, for tests and for benchmarks that have none of pytest."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from sustain.errors import HostError
from sustain.host import processes
from sustain.host.cgroup import Cgroup
from tests.host import marks

_PARENTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
_GONE_S = 30.0


@contextlib.contextmanager
def made_cgroup(what: str) -> Iterator[Cgroup | None]:
    """One with a memory controller, of either version, for as long as the block lasts; None: this machine lets us make
    none. Whoever runs in it must end before. What killed processes have left of such, and in them, goes first."""
    clear()
    group = _make(f"sustain-{what}-{marks.own()}")
    try:
        yield group
    finally:
        if group is not None:
            group.directory.rmdir()


def clear(parents: Iterable[Path] = _PARENTS) -> None:
    """End what runs in the cgroups of processes that were killed, and remove them."""
    for parent in parents:
        for directory in parent.glob("sustain-*-*"):
            if marks.dead(directory.name.rpartition("-")[2]):
                _remove(directory)


def _make(name: str) -> Cgroup | None:
    for parent in _PARENTS:
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


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody else clears, too
        for pid in (directory / "cgroup.procs").read_text().split():
            who = processes.identify(int(pid))
            if who is not None and processes.kill(who):
                assert processes.wait_gone(who, _GONE_S), f"{directory}: process {pid} does not end"
        directory.rmdir()
