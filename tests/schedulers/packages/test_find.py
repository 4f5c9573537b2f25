"""Groups as the operator names them: real processes, and cgroups in made trees of both versions."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sustain.errors import ConfigError
from sustain.host.processes import identify
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.config import check as check_config
from sustain.schedulers.packages.find import WHOLE_S, Finder, Wanted, check, may_be_called
from sustain.schedulers.packages.policy import GroupPolicy, Policy

_SECOND = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


@contextmanager
def sleeping(*before: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*before, "sleep", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def tree(root: Path, *paths: str, mounts: str = _SECOND) -> Path:
    """Version 2 with these cgroups; its top."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mounts").write_text(mounts)
    top = root / "sys/fs/cgroup"
    top.mkdir(parents=True)
    (top / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    for path in paths:
        (top / path).mkdir(parents=True)
    return top


def put(root: Path, pid: int, cgroup: str, words: tuple[str, ...] = ("sleep",)) -> None:
    """A process of this host, shown in the tree."""
    folder = root / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "stat").write_text(Path(f"/proc/{pid}/stat").read_text())
    (folder / "comm").write_text("sleep\n")
    (folder / "exe").symlink_to("/usr/bin/sleep")
    (folder / "cwd").symlink_to("/")
    (folder / "cmdline").write_text("\0".join(words))
    (folder / "cgroup").write_text(f"0::{cgroup}\n")


def test_by_number_file_and_command(tmp_path: Path) -> None:
    with sleeping() as one, sleeping() as other:
        (tmp_path / "db.pid").write_text(f"{one.pid}\n")
        finder = Finder(
            [
                Wanted(name="db", pid_file=str(tmp_path / "db.pid")),
                Wanted(name="o", pid=other.pid),
                Wanted(name="sleepers", command="sleep"),
            ]
        )
        with sleeping() as third:
            found, problems = finder.find(0.0)
            who = identify(third.pid)
            assert who is not None
            by_name = {each.name: each for each in found}
            assert {"db", "o", f"sleepers.{third.pid}"} <= set(by_name)
            assert f"sleepers.{one.pid}" not in by_name, "a process is one group"
            assert by_name[f"sleepers.{third.pid}"].who == who
            assert by_name["db"].kind == "process"
            assert problems == []
        found, _ = finder.find(1.0)
        assert f"sleepers.{third.pid}" not in {each.name for each in found}, "it has ended"
        with sleeping() as late:  # between two searches of all
            found, _ = finder.find(2.0)
            assert f"sleepers.{late.pid}" in {each.name for each in found}
            found, _ = finder.find(WHOLE_S + 1)
            assert f"sleepers.{late.pid}" in {each.name for each in found}


def test_what_executes_the_command_later_is_found(tmp_path: Path) -> None:
    finder = Finder([Wanted(name="s", command="sleep")], tmp_path)
    (tmp_path / "proc").mkdir()
    assert finder.find(0.0) == ((), ["s: there is no such group now"])
    with sleeping() as one:
        put(tmp_path, one.pid, "/")
        (tmp_path / f"proc/{one.pid}/comm").write_text("sh\n")
        (tmp_path / f"proc/{one.pid}/exe").unlink()
        (tmp_path / f"proc/{one.pid}/exe").symlink_to("/usr/bin/sh")
        assert finder.find(1.0)[0] == ()
        (tmp_path / f"proc/{one.pid}/comm").write_text("sleep\n")
        (found,), _ = finder.find(2.0)
        assert found.name == f"s.{one.pid}"


def test_cgroups_by_pattern_path_and_directory(tmp_path: Path) -> None:
    top = tree(tmp_path, "machine.slice/web.scope/inner", "machine.slice/db.scope", "system.slice/x.service")
    (top / "machine.slice/cgroup.procs").write_text("")
    for pattern in ("machine.slice/*", "/machine.slice/*", f"{top}/machine.slice/*"):
        finder = Finder([Wanted(name="vms", cgroup=pattern)], tmp_path)
        found, problems = finder.find(0.0)
        assert problems == []
        assert [(each.name, each.kind) for each in found] == [
            ("vms.db.scope", "cgroup"),
            ("vms.web.scope", "cgroup"),
        ]
        assert found[0].life == str((top / "machine.slice/db.scope").stat().st_ino)
        assert found[0].by_cgroup
    found, _ = Finder([Wanted(name="x", cgroup="system.slice/x.service")], tmp_path).find(0.0)
    assert [each.name for each in found] == ["x"]
    found, problems = Finder([Wanted(name="x", cgroup="system.slice/none")], tmp_path).find(0.0)
    assert (found, problems) == ((), ["x: there is no such group now"])


def test_a_cgroup_that_goes_and_one_that_comes_under_its_path(tmp_path: Path) -> None:
    top = tree(tmp_path, "vms/a", "vms/b")
    finder = Finder([Wanted(name="vms", cgroup="vms/*")], tmp_path)
    first, _ = finder.find(0.0)
    (top / "vms/a").rename(top / "away")
    (top / "vms/a").mkdir()
    second, _ = finder.find(1.0)
    assert [each.name for each in second] == ["vms.a", "vms.b"]
    assert second[0].life != first[0].life
    assert second[1] == first[1]
    assert not finder.alive(first[0])
    assert finder.alive(second[0])


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    tree(tmp_path, "a/web", "b/web", "b/db")
    found, _ = Finder([Wanted(name="all", cgroup="*/*")], tmp_path).find(0.0)
    assert len({each.name for each in found}) == 3
    assert {each.name for each in found} >= {"all.db"}
    assert all(each.name.startswith("all.web.") for each in found if "web" in each.name)


def test_of_groups_within_each_other_the_outer_one_is_placed(tmp_path: Path) -> None:
    tree(tmp_path, "vms/a/inner", "vms/b")
    with sleeping() as inside, sleeping() as outside:
        put(tmp_path, inside.pid, "/vms/a/inner")
        put(tmp_path, outside.pid, "/elsewhere")
        finder = Finder(
            [
                Wanted(name="deep", cgroup="vms/a/inner"),
                Wanted(name="vms", cgroup="vms/*"),
                Wanted(name="in", pid=inside.pid),
                Wanted(name="out", pid=outside.pid),
            ],
            tmp_path,
        )
        for now_s in (0.0, 1.0):
            found, problems = finder.find(now_s)
            assert [each.name for each in found] == ["vms.a", "vms.b", "out"]
            assert problems == [
                "deep: lies within vms.a, with which it is placed",
                "in: lies within vms.a, with which it is placed",
            ]


def test_guests_by_the_cgroup_that_libvirt_made_for_them(tmp_path: Path) -> None:
    scope = "machine.slice/machine-qemu\\x2d3\\x2dweb.scope"
    top = tree(tmp_path, f"{scope}/libvirt/emulator")
    with sleeping() as one, sleeping() as other:
        put(tmp_path, one.pid, f"/{scope}/libvirt/emulator", ("qemu-system-x86_64", "-name", "guest=web"))
        put(tmp_path, other.pid, "/user.slice", ("qemu-kvm", "-name", "db", "-uuid", "aa-bb"))
        found, problems = Finder([Wanted(name="vms", guest="*")], tmp_path).find(0.0)
        by_name = {each.name: each for each in found}
        assert problems == []
        assert set(by_name) == {"vms.web", "vms.db"}
        web, db = by_name["vms.web"], by_name["vms.db"]
        assert web.kind == db.kind == "guest"
        assert web.cgroup is not None
        assert web.cgroup.path == f"/{scope}"
        assert web.cgroup.life == str((top / scope).stat().st_ino)
        assert not db.by_cgroup, "it is placed by affinity: its cgroup has others in it"
        (only,), _ = Finder([Wanted(name="d", guest="aa-bb")], tmp_path).find(0.0)
        assert (only.name, only.who) == ("d", db.who)
        found, _ = Finder([Wanted(name="vms", guest="*")], tmp_path, scopes=False).find(0.0)
        assert {each.name for each in found} == {"vms.web", "vms.db"}
        assert not any(each.by_cgroup for each in found), "libvirt pins threads"


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    top = tree(
        tmp_path,
        "cpuset/vms/a",
        "cpu,cpuacct/vms/a",
        "unified/vms/other",
        mounts="cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
    )
    (top / "unified/cgroup.controllers").write_text("hugetlb\n")
    finder = Finder([Wanted(name="v", cgroup="vms/*")], tmp_path)
    (found,), _ = finder.find(0.0)
    assert found.name == "v.a"
    assert found.life == str((top / "cpuset/vms/a").stat().st_ino)
    assert finder.trees is not None
    assert finder.trees.use == top / "cpu,cpuacct"


def test_what_was_found_before_stays_while_it_is_there_and_cannot_be_found(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    file = tmp_path / "db.pid"
    finder = Finder([Wanted(name="db", pid_file="/db.pid")], tmp_path)
    with sleeping() as one:
        file.write_text(str(one.pid))
        before, _ = finder.find(0.0)
        file.write_text("")
        found, (problem,) = finder.find(1.0)
        assert found == before
        assert "what was found before and is there still stays" in problem
    assert finder.find(2.0)[0] == ()


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("")
    found, problems = Finder([Wanted(name="v", cgroup="vms/*")], tmp_path).find(0.0)
    assert found == ()
    assert "no cgroups are mounted (name processes instead)" in problems[0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([Wanted(name="a", pid=1), Wanted(name="a", pid=2)], "there twice"),
        ([Wanted(name="a.b", pid=1)], "has a dot"),
        ([Wanted(name="a")], "not named in exactly one way"),
        ([Wanted(name="a", pid=1, guest="*")], "not named in exactly one way"),
        ([Wanted(name="a", cgroup="/")], "the host itself"),
    ],
)
def test_what_cannot_be_meant(bad: list[Wanted], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        check(bad)
    assert error.value.hint


def test_a_policy_for_nobody_is_an_error_and_one_for_a_found_one_is_not() -> None:
    groups = (Wanted(name="vms", cgroup="machine.slice/*"), Wanted(name="db", pid=1))
    assert may_be_called(groups, "vms.web1.scope")
    assert not may_be_called(groups, "db.1")
    for name in ("vms", "vms.web", "db"):
        check_config(PackagesConfig(groups=groups, policy=Policy(groups={name: GroupPolicy()})))
    with pytest.raises(ConfigError, match="no group is called that"):
        check_config(PackagesConfig(groups=groups, policy=Policy(groups={"web": GroupPolicy()})))
    for command in ("", "a 'b"):
        with pytest.raises(ConfigError, match=r"metrics\.m"):
            check_config(PackagesConfig(metrics={"m": command}))


def test_we_are_no_group_of_our_own() -> None:
    found, _ = Finder([Wanted(name="me", pid=os.getpid())]).find(0.0)
    assert found == ()
