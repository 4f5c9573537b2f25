"""A real cgroup with a cpuset of its own, of either version, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import hierarchies
from sustain.host.cpuset import Cpuset
from tests.host import cgroups, marks


@contextlib.contextmanager
def own_cpuset(*, below: Cpuset | None = None, name: str = "cpuset") -> Iterator[Cpuset]:
    """As it is when it is made: version 2, with empty lists; version 1, with all that the one above has, and with a
    cgroup of the same name where time is counted. Skips the test where we may make none. Whoever runs in it must end
    before."""
    try:
        above = below or Cpuset.open("/")
    except HostError as error:
        pytest.skip(f"this machine has no cpusets: {error}")
    if below and below.version == 2:
        (below.directory / "cgroup.subtree_control").write_text("+cpuset")
    folders = [above.directory / (name if below else f"sustain-{name}-{marks.own()}")]
    if above.version == 1:
        inside = folders[0].relative_to(above.mount)
        folders += [each.mount / inside for each in hierarchies.of("cpuacct") if each.version == 1]
    cgroups.clear([] if below else [each.parent for each in folders])
    with contextlib.ExitStack() as stack:
        for folder in folders:
            try:
                folder.mkdir()
            except OSError as error:
                pytest.skip(f"this machine lets us make no cgroup: {error}")
            stack.callback(_remove, folder)
        made = Cpuset.open(folders[0])
        if not made.enabled:
            pytest.skip("cpuset is not enabled for cgroups here, and enabling it would change other programs")
        if made.version == 1:
            made.set_cpus(above.cpus() or ())
            made.set_mems(above.mems() or ())
        yield made


def enter(cpuset: Cpuset, pid: int) -> None:
    """Put a process into it, and into the one beside it that counts time."""
    inside = cpuset.directory.relative_to(cpuset.mount)
    for each in hierarchies.of("cpuacct") if cpuset.version == 1 else ():
        if each.version == 1:
            (each.mount / inside / "cgroup.procs").write_text(str(pid))
    (cpuset.directory / "cgroup.procs").write_text(str(pid))


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
