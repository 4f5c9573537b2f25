"""Processes as the operator names them: real ones, and a cgroup in a made tree."""

import os
from pathlib import Path

import pytest

from sustain.errors import ConfigError
from sustain.schedulers.large_pages.find import Wanted, check, find, may_be_called
from tests.schedulers.large_pages.touching import touching


def test_by_number_file_and_command(tmp_path: Path) -> None:
    with touching([1]) as one, touching([1]) as other:
        (tmp_path / "db.pid").write_text(f"{one.pid}\n/var/lib/db\n")
        found, problems = find(
            [Wanted(name="db", pid_file=str(tmp_path / "db.pid")), Wanted(name="o", pid=other.pid)]
        )
        assert [(each.name, each.who) for each in found] == [("db", one.who), ("o", other.who)]
        assert problems == []
        program = os.path.basename(os.readlink(f"/proc/{one.pid}/exe"))
        found, problems = find([Wanted(name="py", command=program), Wanted(name="again", pid=one.pid)])
        names = {each.name for each in found}
        assert {each.wanted for each in found} == {"py"}
        assert {f"py.{one.pid}", f"py.{other.pid}"} <= names
        assert "again" not in names, "a process is one target"
        assert os.getpid() not in {each.who.pid for each in found}, "not ourselves"
    found, problems = find(
        [Wanted(name="db", pid_file=str(tmp_path / "db.pid")), Wanted(name="x", command="no such")]
    )
    assert found == []
    assert problems == ["db: there is no such process now", "x: there is no such process now"]


def test_a_cgroup_with_all_below(tmp_path: Path) -> None:
    with touching([1]) as one, touching([1]) as other:
        for pid in (one.pid, other.pid):
            (tmp_path / f"proc/{pid}").mkdir(parents=True)
            (tmp_path / f"proc/{pid}/stat").write_text(Path(f"/proc/{pid}/stat").read_text())
        top = tmp_path / "sys/fs/cgroup"
        (top / "db.slice/below").mkdir(parents=True)
        (top / "db.slice/cgroup.procs").write_text(f"{one.pid}\n")
        (top / "db.slice/below/cgroup.procs").write_text(f"{other.pid}\n")
        found, problems = find([Wanted(name="db", cgroup="/db.slice")], tmp_path)
        assert problems == []
        assert {each.wanted for each in found} == {"db"}
        assert [(each.name, each.who) for each in found] == [
            (f"db.{pid}", who) for pid, who in sorted((each.pid, each.who) for each in (one, other))
        ]
        assert find([Wanted(name="db", cgroup=str(top / "db.slice"))], tmp_path)[0] == found
        _, (problem,) = find([Wanted(name="db", cgroup=str(top / "none"))], tmp_path)
        assert "no cgroup" in problem


def test_what_was_found_before_stays_while_it_runs_and_cannot_be_found(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    file, group = tmp_path / "db.pid", tmp_path / "sys/fs/cgroup/box"
    wanted = [Wanted(name="db", pid_file="/db.pid"), Wanted(name="box", cgroup="/box")]
    group.mkdir(parents=True)
    with touching([1]) as other, touching([1]) as boxed:
        with touching([1]) as one:
            file.write_text(str(one.pid))
            (group / "cgroup.procs").write_text(f"{boxed.pid}\n")
            before, problems = find(wanted, tmp_path)
            assert ([each.who for each in before], problems) == ([one.who, boxed.who], [])
            for spoil in (file.unlink, lambda: file.write_text(""), file.unlink):
                spoil()
                found, problems = find(wanted, tmp_path, before)
                assert found == before
                (problem,) = problems
                assert problem.startswith(f"db: {file}: ")
                assert "what was found before and still runs stays" in problem
            assert [each.who for each in find(wanted, tmp_path)[0]] == [boxed.who], "it was never found"
            group.rename(tmp_path / "away")
            found, problems = find(wanted, tmp_path, before)
            assert found == before
            assert "box: /box: no cgroup" in problems[1]
            file.write_text(str(other.pid))  # it says another one now
            found, problems = find(wanted, tmp_path, before)
            assert [each.who for each in found] == [other.who, boxed.who]
            file.unlink()
        found, problems = find(wanted, tmp_path, before)
        assert found == [before[1]], "the other one has ended"
        assert "stays" not in problems[0]


def test_which_names_a_target_may_have() -> None:
    wanted = [Wanted(name="db", command="postgres"), Wanted(name="o", pid=3), Wanted(name="vm", guest="web")]
    names = ["db", "db.4711", "db.x", "dbx", "o", "o.3", "vm", "web"]
    assert [name for name in names if may_be_called(wanted, name)] == ["db", "db.4711", "o", "vm"]
    assert may_be_called([Wanted(name="all", guest="*")], "web")


def test_a_file_that_is_no_number_or_no_file_harms_nobody_else(tmp_path: Path) -> None:
    """A pipe is not waited for, since nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("9" * 5000)
    (tmp_path / "words").write_text("none yet")
    (tmp_path / "empty").write_text("")
    with touching([1]) as one:
        wanted = [
            Wanted(name=name, pid_file=str(tmp_path / name)) for name in ("pipe", "long", "words", "empty")
        ]
        found, problems = find([*wanted, Wanted(name="one", pid=one.pid)])
        assert [each.who for each in found] == [one.who]
        assert len(problems) == 4
        assert "no regular file" in problems[0]
        # As all else, it is looked for below the root that is given.
        (tmp_path / f"proc/{one.pid}").mkdir(parents=True)
        (tmp_path / f"proc/{one.pid}/stat").write_text(Path(f"/proc/{one.pid}/stat").read_text())
        (tmp_path / "run").mkdir()
        (tmp_path / "run/db.pid").write_text(str(one.pid))
        found, problems = find([Wanted(name="db", pid_file="/run/db.pid")], tmp_path)
        assert ([each.who for each in found], problems) == ([one.who], [])


def test_what_cannot_be_meant() -> None:
    for wanted in (
        [Wanted(name="a")],
        [Wanted(name="a", pid=1, command="b")],
        [Wanted(name="", pid=1)],
        [Wanted(name="a", pid=1), Wanted(name="a", pid=2)],
    ):
        with pytest.raises(ConfigError) as caught:
            check(wanted)
        assert caught.value.hint
    check([Wanted(name="a", pid=1), Wanted(name="b", guest="*")])
