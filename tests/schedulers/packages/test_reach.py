"""The way to a group is that of what was seen, and of nobody who has its name."""

import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.cgroup_use import Named
from sustain.host.libvirt import Domain
from sustain.host.processes import Identity, identify
from sustain.schedulers.packages.find import Found
from sustain.schedulers.packages.handles import CgroupHandle, DomainHandle, ProcessHandle
from sustain.schedulers.packages.reach import Reach
from tests.host.test_libvirt import TEST, WHY

_QEMU = Identity(4711, 99)
_SEEN = {
    ("db", "4711:99"): Found("db", "db", "process", "4711:99", _QEMU),
    ("web", "17"): Found("web", "web", "cgroup", "17", None, Named("/a.slice/web", "17")),
    ("vm", "4711:99"): Found("vm", "vm", "guest", "4711:99", _QEMU, Named("/machine.slice/vm", "23")),
}


def found(group: str, life: str) -> Found | None:
    return _SEEN.get((group, life))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with cgroups of version 2."""
    mount = tmp_path / "sys/fs/cgroup"
    mount.mkdir(parents=True)
    (mount / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("none /sys/fs/cgroup cgroup2 rw 0 0\n")
    return tmp_path


def test_each_kind_is_reached_by_what_it_is(root: Path) -> None:
    reach = Reach(found, root)
    assert reach("db", "4711:99") == ProcessHandle((_QEMU,))
    top = root / "sys/fs/cgroup"
    assert reach("web", "17") == CgroupHandle(top / "a.slice/web", 17)
    assert reach("vm", "4711:99") == CgroupHandle(top / "machine.slice/vm", 23)  # with what is started in it


def test_another_life_is_not_reached(root: Path) -> None:
    assert Reach(found, root)("web", "18") is None
    assert Reach(found, root)("nobody", "17") is None


def test_a_host_without_cgroups_says_so(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("none /proc proc rw 0 0\n")
    assert Reach(found, tmp_path)("db", "4711:99") is not None
    with pytest.raises(HostError, match="no cgroups are mounted"):
        Reach(found, tmp_path)("web", "17")


def test_a_guest_of_libvirts_is_reached_by_it() -> None:
    pytest.importorskip("libvirt", reason=WHY)
    who = identify(os.getpid())
    assert who is not None
    ended = Identity(who.pid, who.start_ticks + 1)
    seen = {
        "vm": Found("vm", "vm", "guest", "1", who, None, "test"),
        "own": Found("own", "own", "guest", "1", who, None, "of-nobody"),
        "gone": Found("gone", "gone", "guest", "1", ended, None, "test"),
    }
    reach = Reach(lambda group, _: seen.get(group), libvirt=TEST)
    running = Domain(TEST, "test").running()
    assert reach("vm", "1") == DomainHandle(TEST, "test", running or "", (who,))
    assert reach("own", "1") == ProcessHandle((who,))
    assert reach("gone", "1") is None
