"""What cgroups have used and where they may run: a real one of this machine, and made trees of both versions."""

import os
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host import cgroup_use
from tests.host import marks
from tests.host.threaded import Program, wait_until


def _tree(root: Path, version: int) -> cgroup_use.Trees:
    (root / "proc/self").mkdir(parents=True)
    top = root / "sys/fs/cgroup"
    if version == 2:
        (top / "vms/a/below").mkdir(parents=True)
        (top / "cgroup.controllers").write_text("cpuset cpu\n")
        (root / "proc/self/mounts").write_text("none /sys/fs/cgroup cgroup2 rw 0 0\n")
        (top / "vms/a/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
        (top / "vms/a/cgroup.threads").write_text("12\n11\n")
        (top / "vms/a/below/cgroup.threads").write_text("13\n")
        (top / "cpuset.cpus.effective").write_text("0-3\n")
        (top / "vms/a/cpuset.cpus.effective").write_text("2-3\n")
    else:
        for each in ("cpuset", "cpuacct"):
            (top / each / "vms/a/below").mkdir(parents=True)
        (root / "proc/self/mounts").write_text(
            "c /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\nc /sys/fs/cgroup/cpuacct cgroup rw,cpuacct 0 0\n"
        )
        (top / "cpuacct/vms/a/cpuacct.usage").write_text("2500000000\n")
        (top / "cpuset/vms/a/tasks").write_text("12\n11\n")
        (top / "cpuset/vms/a/below/tasks").write_text("13\n")
        (top / "cpuset/cpuset.effective_cpus").write_text("0-3\n")
        (top / "cpuset/vms/a/cpuset.effective_cpus").write_text("2-3\n")
    return cgroup_use.trees(root)


@pytest.mark.parametrize("version", [1, 2])
def test_use_threads_and_processors(tmp_path: Path, version: int) -> None:
    where = _tree(tmp_path, version)
    assert where.version == version
    (group,) = cgroup_use.matching("vms/*", where, tmp_path)
    with cgroup_use.Use(where) as use:
        assert use.read_s([group]) == {group: 2.5}
        assert use.read_s([group]) == {group: 2.5}
    assert cgroup_use.threads(group.path, where) == [11, 12, 13]
    assert cgroup_use.cpus(group.path, where) == {2, 3}
    assert cgroup_use.cpus("/vms/a/below", where) == {2, 3}, "from above"
    assert cgroup_use.cpus("/vms", where) == {0, 1, 2, 3}


def test_what_is_not_counted_is_left_out(tmp_path: Path) -> None:
    where = _tree(tmp_path, 2)
    group = cgroup_use.named("/vms", where)
    assert group is not None
    with cgroup_use.Use(where) as use:
        assert use.read_s([group]) == {}
        (where.top / "vms/cpu.stat").write_text("nonsense\n")
        assert use.read_s([group]) == {}


def test_another_one_of_the_same_path_is_not_taken_for_it(tmp_path: Path) -> None:
    where = _tree(tmp_path, 2)
    group = cgroup_use.named("/vms/a", where)
    assert group is not None
    (where.top / "vms/a").rename(where.top / "vms/old")
    (where.top / "vms/a").mkdir()
    (where.top / "vms/a/cpu.stat").write_text("usage_usec 9\n")
    with cgroup_use.Use(where) as use:
        use.read_s([group])
        assert use._held == {}, "what is open under its path is another one's"
    assert cgroup_use.named("/vms/a", where) != group


def test_a_real_one() -> None:
    where = cgroup_use.trees()
    name = f"sustain-use-{marks.own()}"
    made = [top / name for top in {where.top, where.use or where.top}]
    try:
        for folder in made:
            folder.mkdir()
    except OSError as error:
        pytest.skip(f"this machine lets us make no cgroup: {error}")
    try:
        if where.version == 1 and where.cpus is not None:  # a new one of version 1 has none
            for file in ("cpuset.cpus", "cpuset.mems"):
                (where.cpus / name / file).write_text((where.cpus / file).read_text())
        (group,) = cgroup_use.matching(name, where)
        with cgroup_use.Use(where) as use, Program() as program:
            before_s = use.read_s([group]).get(group)
            for folder in made:
                (folder / "cgroup.procs").write_text(str(program.pid))
            tid = program.start(busy=True)
            assert tid in cgroup_use.threads(group.path, where)
            assert cgroup_use.processes(group.path, where) == [program.pid]
            assert cgroup_use.of_process(program.pid, where) == f"/{name}"
            assert (cgroup_use.cpus(group.path, where) or set()) <= os.sched_getaffinity(0)
            program.end(tid)
            after_s = use.read_s([group])[group]
            assert before_s is not None
            assert after_s > before_s
    finally:
        for folder in made:
            _empty(folder)
            folder.rmdir()
    with cgroup_use.Use(where) as use:
        assert use.read_s([group]) == {}
    assert cgroup_use.threads(group.path, where) == []


def _empty(folder: Path) -> None:
    """Wait until what was killed in it is no more."""
    wait_until(lambda: not (folder / "cgroup.procs").read_text())


def test_an_error_says_what_to_do(tmp_path: Path) -> None:
    where = _tree(tmp_path, 2)
    with pytest.raises(HostError, match="no such cgroup") as error:
        cgroup_use.matching("none/*/x", where, tmp_path)
    assert "machine.slice" in error.value.hint
    with pytest.raises(HostError, match="the root is not a group"):
        cgroup_use.matching("/", where, tmp_path)
