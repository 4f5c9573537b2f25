"""Cpusets: real ones of the version that this machine has, and made trees of both."""

import errno
import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import affinity, cpuset, files, threads
from sustain.host.cpuset import Cpuset, Enabling
from tests.host.cpusets import enter, own_cpuset
from tests.host.test_meminfo import put
from tests.host.threaded import Program, wait_until

ONLINE = frozenset(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(ONLINE) < 2, reason="this machine has one processor for us")


def second(root: Path) -> Path:
    """Version 2 on two sockets: `a/b` has lists of its own, `c` has not, since nobody has enabled them below `c`."""
    put(root, "proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    top = root / "sys/fs/cgroup"
    for folder, enabled in (("", "cpuset cpu"), ("a", "cpuset"), ("c", "memory"), ("c/d", "")):
        put(root, f"sys/fs/cgroup/{folder}/cgroup.subtree_control", enabled + "\n")
    for folder in ("", "a", "a/b", "c", "c/d", "c/d/e"):
        put(root, f"sys/fs/cgroup/{folder}/cgroup.procs", "")
        put(root, f"sys/fs/cgroup/{folder}/cgroup.threads", "")
        put(root, f"sys/fs/cgroup/{folder}/cpu.stat", "usage_usec 0\nuser_usec 0\n")
        put(root, f"sys/fs/cgroup/{folder}/cgroup.controllers", "cpuset cpu memory\n")
    for folder, cpus, effective in (
        ("", None, "0-3"),
        ("a", "", "0-3"),
        ("a/b", "2-3,6", "2-3"),
        ("c", "0", "0"),
    ):
        put(root, f"sys/fs/cgroup/{folder}/cpuset.cpus.effective", effective + "\n")
        put(root, f"sys/fs/cgroup/{folder}/cpuset.mems.effective", "0-1\n")
        if cpus is not None:
            put(root, f"sys/fs/cgroup/{folder}/cpuset.cpus", cpus + "\n")
            put(root, f"sys/fs/cgroup/{folder}/cpuset.mems", "\n")
            put(root, f"sys/fs/cgroup/{folder}/cpuset.cpus.partition", "member\n")
    return top


def first(root: Path) -> Path:
    """Version 1, with other hierarchies beside it, as this suite's machine often has."""
    put(
        root,
        "proc/self/mounts",
        "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
    )
    put(root, "sys/fs/cgroup/unified/cgroup.controllers", "\n")
    put(root, "sys/fs/cgroup/unified/vm/cgroup.procs", "7\n")
    put(root, "sys/fs/cgroup/cpu,cpuacct/vm/cpuacct.usage", "123456789\n")
    for name, content in (
        ("cpuset.cpus", "0-1\n"), ("cpuset.effective_cpus", "0\n"), ("cpuset.mems", "0\n"),
        ("cpuset.effective_mems", "0\n"), ("cpuset.memory_migrate", "0\n"),
        ("cgroup.procs", "7\n"), ("tasks", "7\n8\n"),
    ):  # fmt: skip
        for folder in ("", "vm/"):
            put(root, f"sys/fs/cgroup/cpuset/{folder}{name}", content)
    return root / "sys/fs/cgroup/cpuset"


def test_version_2_of_made_files(tmp_path: Path) -> None:
    top = second(tmp_path)
    group = Cpuset.open("/a/b", tmp_path)
    assert (group.directory, group.version, group.enabled) == (top / "a/b", 2, True)
    assert (group.own_cpus(), group.cpus()) == ({2, 3, 6}, {2, 3})  # 6 is offline, or not for it
    assert (group.own_mems(), group.mems()) == (frozenset(), {0, 1})
    assert group.partition() == "member"
    assert group.moves_memory()
    assert Cpuset.open("/a", tmp_path).own_cpus() == frozenset()
    put(top, "a/b/cpu.stat", "usage_usec 4567\nuser_usec 1\n")
    assert group.used_us() == 4567
    put(top, "a/b/cgroup.threads", "9\n11\n")
    assert (group.processes(), group.threads()) == ((), (9, 11))
    assert Cpuset.open(top / "a", tmp_path).tree() == (top / "a", top / "a/b")
    put(tmp_path, "proc/9/cgroup", "0::/a/b\n")
    found = Cpuset.of_process(9, tmp_path)
    assert found is not None
    assert found.directory == group.directory
    assert Cpuset.of_process(10, tmp_path) is None


def test_what_is_empty_is_put_back_as_empty(tmp_path: Path) -> None:
    top = second(tmp_path)
    group = Cpuset.open("/a", tmp_path)
    before = group.own_cpus()
    assert before == frozenset()
    group.set_cpus({0, 1, 3})
    assert (top / "a/cpuset.cpus").read_text() == "0-1,3\n"
    group.set_cpus(before)
    assert (top / "a/cpuset.cpus").read_text() == "\n"


def test_lists_that_are_as_good_as_an_empty_one(tmp_path: Path) -> None:
    second(tmp_path)
    put(tmp_path, "sys/devices/system/cpu/possible", "0-7\n")
    group = Cpuset.open("/a", tmp_path)
    assert [group.inherits(frozenset(each)) for each in ((), range(8), range(9), range(7))] == [
        True,
        True,
        True,
        False,
    ]
    first(tmp_path)
    assert not Cpuset.open("/vm", tmp_path).inherits(frozenset())


def test_a_list_that_cannot_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux 6.12 refuses it where there are threads; what it takes instead has the same effect."""
    top = second(tmp_path)
    put(tmp_path, "sys/devices/system/cpu/possible", "0-7\n")
    really = os.write

    def full(descriptor: int, content: bytes) -> int:
        if content == b"\n":
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    group = Cpuset.open("/a/b", tmp_path)
    group.set_cpus(())
    group.set_mems(())
    assert (top / "a/b/cpuset.cpus").read_text() == "0-7\n"
    assert (top / "a/b/cpuset.mems").read_text() == "0-1\n"  # more than these the kernel refuses
    assert group.inherits(group.own_cpus() or frozenset())


def test_a_cgroup_without_lists_of_its_own(tmp_path: Path) -> None:
    top = second(tmp_path)
    group = Cpuset.open("/c/d/e", tmp_path)
    assert not group.enabled
    assert (group.own_cpus(), group.cpus(), group.mems()) == (None, {0}, {0, 1})
    assert group.partition() is None
    put(top, "c/other/cgroup.procs", "5\n6\n")
    put(top, "c/d/e/cgroup.procs", "7\n")
    put(top, "c/cgroup.procs", "4\n")  # stays where it is
    assert group.enabling() == Enabling((top / "c", top / "c/d"), 3, None)
    put(top, "c/cgroup.controllers", "memory\n")
    assert "no cpuset controller" in (group.enabling().problem or "")
    with pytest.raises(HostError, match=r"cpuset\.cpus") as caught:
        group.set_cpus({1})
    assert caught.value.errno == errno.ENOENT
    assert "enabled" in caught.value.hint
    assert not (top / "c/d/e/cpuset.cpus").exists()
    assert Cpuset.open("/a/b", tmp_path).enabling() == Enabling((), 0, None)
    assert Cpuset.open("/", tmp_path).enabling().problem


def test_version_1_of_made_files(tmp_path: Path) -> None:
    top = first(tmp_path)
    group = Cpuset.open("/vm", tmp_path)
    assert (group.directory, group.version, group.enabled) == (top / "vm", 1, True)
    assert (group.own_cpus(), group.cpus(), group.own_mems(), group.mems()) == ({0, 1}, {0}, {0}, {0})
    assert group.partition() is None
    assert (group.processes(), group.threads()) == ((7,), (7, 8))
    assert group.used_us() == 123456
    assert not group.moves_memory()
    group.set_moves_memory(True)
    assert group.moves_memory()
    put(tmp_path, "proc/7/cgroup", "4:cpuset:/vm\n3:cpu,cpuacct:/elsewhere\n0::/vm\n")
    found = Cpuset.of_process(7, tmp_path)
    assert found is not None
    assert found.directory == group.directory


def test_there_is_no_such_cgroup(tmp_path: Path) -> None:
    second(tmp_path)
    for path in ("/none", tmp_path / "proc"):
        with pytest.raises(HostError, match="no cgroup with a cpuset controller"):
            Cpuset.open(path, tmp_path)
    with pytest.raises(HostError, match="/a"):
        Cpuset.open("/a", tmp_path / "none")


def test_a_path_that_another_cgroup_has_by_now(tmp_path: Path) -> None:
    top = second(tmp_path)
    group = Cpuset.open("/a/b", tmp_path)
    (top / "a/b").rename(top / "a/kept")
    assert not group.alive()
    (top / "a/b").mkdir()
    for name in ("cpuset.cpus", "cgroup.procs"):
        (top / "a/b" / name).write_text("5\n")
    assert not group.alive()
    with pytest.raises(HostError, match="another one has its path") as caught:
        group.set_cpus({0})
    assert caught.value.errno == errno.ENOENT
    assert (top / "a/b/cpuset.cpus").read_text() == "5\n"
    assert Cpuset.open("/a/b", tmp_path).life != group.life


@several
def test_a_real_one_moves_its_threads() -> None:
    with own_cpuset() as group, Program() as program:
        enter(group, program.pid)
        busy = program.start(busy=True)
        assert group.processes() == (program.pid,)
        assert set(group.threads()) == {program.pid, busy}
        before = group.own_cpus()
        assert before is not None
        for cpu in sorted(ONLINE)[:2]:
            assert group.set_cpus({cpu}) == {cpu}
            assert (group.own_cpus(), group.cpus()) == ({cpu}, {cpu})
            wait_until(lambda cpu=cpu: (threads.one(busy) or pytest.fail("gone")).cpu == cpu)  # type: ignore[misc]
        group.set_cpus(before)
        # Version 2 empties no list of a cgroup with threads: all processors that there could be are as good.
        assert group.own_cpus() == (before or _possible())
        assert group.inherits(group.own_cpus() or frozenset()) == (group.version == 2)
        assert group.cpus() == Cpuset.open(group.mount).cpus()
    with own_cpuset() as group:
        group.set_cpus(ONLINE)
        group.set_mems(group.mems() or ())
        if group.version == 2:
            group.set_cpus(())
            group.set_mems(())
            assert (group.own_cpus(), group.own_mems()) == (frozenset(), frozenset())


def test_a_real_one_counts_time() -> None:
    with own_cpuset() as group, Program() as program:
        enter(group, program.pid)
        before_us = group.used_us()
        assert before_us is not None
        program.start(busy=True)
        wait_until(lambda: (group.used_us() or 0) > before_us + 50_000)


@several
def test_an_affinity_is_cut_to_the_cpuset() -> None:
    low, high = sorted(ONLINE)[:2]
    with own_cpuset() as group, Program() as program:
        enter(group, program.pid)
        thread = threads.one(program.start())
        assert thread is not None
        group.set_cpus({low})
        assert affinity.read(thread.who) == {low}
        assert affinity.write(thread.who, {low, high}).cpus == {low}
        with pytest.raises(HostError, match=f"processors {high}") as caught:
            affinity.write(thread.who, {high})
        assert caught.value.errno == errno.EINVAL
        assert "cpuset" in caught.value.hint


def test_a_real_one_that_has_gone() -> None:
    with own_cpuset() as group:
        group.directory.rmdir()
        assert not group.alive()
        assert (group.own_cpus(), group.cpus(), group.processes(), group.threads()) == (None, None, (), ())
        with pytest.raises(HostError, match=r"cpuset\.cpus") as caught:
            group.set_cpus(ONLINE)
        assert caught.value.errno == errno.ENOENT
        group.directory.mkdir()  # the same path: another one
        assert not group.alive()
        with pytest.raises(HostError, match="another one"):
            group.set_cpus(ONLINE)


def test_lists_that_cannot_be() -> None:
    with own_cpuset() as group, Program() as program:
        enter(group, program.pid)
        with pytest.raises(HostError, match=r"cpuset\.cpus") as caught:
            group.set_cpus({1 << 20})
        assert caught.value.hint
        if group.version == 2:
            # Kept, and with no effect: what the one above has is used.
            if absent := min(
                _possible() - files.cpus(Path("/sys/devices/system/cpu/online").read_text()), default=0
            ):
                assert group.set_cpus({absent}) == Cpuset.open(group.mount).cpus()
        else:
            with pytest.raises(HostError, match=r"cpuset\.cpus") as caught:
                group.set_cpus(())
            assert caught.value.errno == errno.ENOSPC
            assert "threads" in caught.value.hint


@several
def test_a_cgroup_below_that_has_more() -> None:
    low, high = sorted(ONLINE)[:2]
    with own_cpuset() as above, own_cpuset(below=above, name="below") as group:
        group.set_cpus({low, high})
        if above.version == 2:
            assert above.set_cpus({low}) == {low}
            assert (group.own_cpus(), group.cpus()) == ({low, high}, {low})
        else:
            with pytest.raises(HostError, match=r"cpuset\.cpus") as caught:
                above.set_cpus({low})
            assert caught.value.errno == errno.EBUSY
            assert "below" in caught.value.hint


def test_this_process() -> None:
    try:
        found = Cpuset.of_process(os.getpid())
    except HostError as error:
        pytest.skip(f"this machine has no cpusets: {error}")
    assert found is not None
    assert os.getpid() in found.processes()
    cpus = found.cpus()
    assert cpus is not None
    assert cpus >= ONLINE
    assert cpuset.Cpuset.open(found.mount, Path("/")).mems()


def _possible() -> frozenset[int]:
    return files.cpus(Path("/sys/devices/system/cpu/possible").read_text())
