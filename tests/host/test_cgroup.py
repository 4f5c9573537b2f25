"""Cgroups: trees of both versions, and a real cgroup of version 1 or 2 where this machine lets us make one."""

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import swaps
from sustain.host.cgroup import Cgroup, Reclaimed
from sustain.host.pressure import Pressure
from tests.host.held import MIB, own_cgroup, reading_in
from tests.host.swap import taking_turns
from tests.host.test_meminfo import put

SECOND = "sys/fs/cgroup/machine.slice/vm.scope"
FIRST = "sys/fs/cgroup/memory/box"


def second(root: Path) -> Cgroup:
    put(root, "proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    put(root, f"{SECOND}/memory.current", "8192000\n")
    put(root, f"{SECOND}/memory.max", "max\n")
    put(root, f"{SECOND}/memory.swap.current", "4096\n")
    put(root, f"{SECOND}/memory.swap.max", "0\n")
    put(root, f"{SECOND}/memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n")
    put(root, f"{SECOND}/memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n")
    put(root, f"{SECOND}/cgroup.procs", "7\n8\n")
    put(
        root,
        f"{SECOND}/memory.stat",
        "anon 100\nfile 200\nkernel 50\nshmem 8\ninactive_anon 1\nactive_anon 2\ninactive_file 3\nactive_file 4\n"
        "unevictable 5\nfile_dirty 6\nworkingset_refault_anon 1\nworkingset_refault_file 2\npgmajfault 9\n",
    )
    put(root, "sys/fs/cgroup/machine.slice/memory.max", "20480\n")
    put(root, "proc/7/cgroup", "0::/machine.slice/vm.scope\n")
    put(root, "proc/8/cgroup", "0::/\n")
    return Cgroup.open("/machine.slice/vm.scope", root)


def first(root: Path) -> Cgroup:
    put(root, "proc/self/mounts", "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
    put(root, f"{FIRST}/memory.usage_in_bytes", "8192000\n")
    put(root, f"{FIRST}/memory.limit_in_bytes", "9223372036854771712\n")
    put(root, f"{FIRST}/memory.failcnt", "2\n")
    put(root, f"{FIRST}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    put(
        root,
        f"{FIRST}/memory.stat",
        "rss 1\ntotal_rss 100\ntotal_cache 200\ntotal_inactive_anon 7\ntotal_swap 4096\n"
        "total_workingset_refault_file 3\nhierarchical_memory_limit 1000000\n",
    )
    put(root, "proc/7/cgroup", "4:memory:/box\n0::/\n")
    return Cgroup.open("/box", root)


def test_version_2(tmp_path: Path) -> None:
    group = second(tmp_path)
    assert (group.version, group.current_bytes()) == (2, 8192000)
    assert (group.own_limit_bytes(), group.limit_bytes()) == (math.inf, 20480)  # the parent's counts, too
    assert (group.swap_bytes(), group.swap_limit_bytes()) == (4096, 0)
    assert group.pressure() == Pressure(5, None)
    assert (group.events().limit_hits, group.events().oom_kills) == (2, 4)
    assert group.processes() == (7, 8)
    stat = group.stat()
    assert (stat.anonymous_bytes, stat.inactive_file_bytes, stat.dirty_bytes, stat.kernel_bytes) == (
        100,
        3,
        6,
        50,
    )
    assert (stat.refault_anonymous_bytes, stat.refault_file_bytes) == (4096, 2 * 4096)
    assert (stat.swap_in_bytes, stat.major_faults) == (None, 9)
    assert not group.can_reclaim  # there is no memory.reclaim
    of_process = Cgroup.of_process(7, tmp_path)
    assert of_process is not None
    assert of_process.directory == group.directory
    assert Cgroup.of_process(8, tmp_path) is None


def test_version_1(tmp_path: Path) -> None:
    group = first(tmp_path)
    assert (group.version, group.current_bytes()) == (1, 8192000)
    assert (group.own_limit_bytes(), group.limit_bytes()) == (math.inf, 1000000)
    assert (group.swap_bytes(), group.swap_limit_bytes()) == (4096, None)
    assert group.pressure() == Pressure(None, None)  # version 1 has none
    assert (group.events().limit_hits, group.events().oom_kills) == (2, 1)
    stat = group.stat()
    assert (stat.anonymous_bytes, stat.file_bytes, stat.inactive_anonymous_bytes) == (100, 200, 7)
    assert (stat.active_file_bytes, stat.refault_file_bytes) == (None, 3 * 4096)
    of_process = Cgroup.of_process(7, tmp_path)
    assert of_process is not None
    assert of_process.directory == group.directory


def test_a_directory_is_a_cgroup_as_well_as_its_path(tmp_path: Path) -> None:
    second(tmp_path)
    assert Cgroup.open("/" + SECOND, tmp_path).directory == tmp_path / SECOND
    with pytest.raises(HostError, match=r"/machine\.slice/none") as caught:
        Cgroup.open("/machine.slice/none", tmp_path)
    assert "subtree_control" in caught.value.hint


def test_one_that_ends_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second(tmp_path)
    seen = Path.exists

    def exists(path: Path, **options: bool) -> bool:
        found = seen(path, **options)
        if found and path.name == "memory.current":
            path.parent.rename(tmp_path / "old")
        return found

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(HostError, match=r"vm\.scope: No such file") as caught:
        Cgroup.open("/machine.slice/vm.scope", tmp_path)
    assert caught.value.errno == errno.ENOENT


def test_a_cgroup_that_was_made_anew_is_another(tmp_path: Path) -> None:
    group = second(tmp_path)
    assert group.alive()
    (tmp_path / SECOND).rename(tmp_path / "old")
    assert not group.alive()
    assert (group.current_bytes(), group.limit_bytes()) == (None, None)
    assert group.stat().anonymous_bytes is None
    with pytest.raises(HostError, match="gone"):
        group.reclaim(4096)
    other = second(tmp_path)
    assert other.life != group.life
    assert not group.alive()


def test_reclaim_asks_the_kernel_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = second(tmp_path)
    put(tmp_path, f"{SECOND}/memory.reclaim", "")
    assert group.can_reclaim
    assert group.reclaim(4096) == Reclaimed(4096, 0, None)
    assert (tmp_path / SECOND / "memory.reclaim").read_text() == "4096"
    for code, fatal in ((errno.EAGAIN, False), (errno.EINVAL, True)):

        def refuse(*_: object, code: int = code, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_text", refuse)
        if fatal:
            with pytest.raises(HostError) as caught:
                group.reclaim(4096)
            assert "5.19" in caught.value.hint
        else:
            assert "less to reclaim" in (group.reclaim(4096).problem or "")


@pytest.fixture
def real() -> Iterator[Cgroup]:
    with own_cgroup() as group:
        yield group


def test_a_real_cgroup_gives_up_its_page_cache(real: Cgroup, tmp_path: Path) -> None:
    with taking_turns(), reading_in(real, tmp_path / "file", 48 * MIB) as pid:
        assert pid in real.processes()
        stat = real.stat()
        assert (stat.inactive_file_bytes or 0) + (stat.active_file_bytes or 0) > 30 * MIB
        noted: list[tuple[int, int]] = []
        limit = real.own_limit_bytes()
        result = real.reclaim(24 * MIB, lambda old, new: noted.append((old, new)))
        assert result.problem is None
        assert result.freed_bytes > 20 * MIB
        assert real.own_limit_bytes() == limit
        assert real.kills()
        assert len(noted) == (1 if real.version == 1 else 0)
        assert all(old == -1 and new % 4096 == 0 for old, new in noted)
        if swaps.read().areas:
            return
        # Anonymous memory cannot go where there is no swap: the kernel says so, and so do we; the limit is as before.
        current = real.current_bytes()
        assert current is not None
        assert real.reclaim(current).problem is not None
        assert real.own_limit_bytes() == limit
        assert real.kills()
