"""SIGKILL at every line of placing groups and of putting back: the next one puts back exactly what was changed."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.schedulers.packages.groups import BOTH, FIRST, SECOND, bind
from tests.schedulers.packages.kill_host import Host, points
from tests.schedulers.packages.killed import TRACED

pytestmark = [
    pytest.mark.skipif(len(BOTH) < 2, reason="this machine has one processor for us"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, FIRST, SECOND, (0, 0))
    yield host
    host.close()


def test_nobody_killed(host: Host) -> None:
    """What the others rely on: it changes groups, and puts them back."""
    assert host.do("act").status == 0
    assert len(host.wrong()) > len(host.before), "everything is changed, and noted"
    assert host.do("restore").status == 0
    assert host.wrong() == []


def test_killed_at_any_line_of_acting(host: Host) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    came = host.do("act", survey=True)
    assert host.do("restore").status == 0
    if host.box is not None:
        assert {file for file, _, _ in came.lines} == set(TRACED)  # of memory that it is there already
    chosen = points(came, seed)
    print(f"{len(chosen)} kills")
    killed = 0
    for file, line, nth in chosen:
        killed += host.do("act", (file, line), nth).status < 0
        assert host.do("restore").status == 0
        assert host.wrong() == [], f"killed at {file}:{line}, time {nth}"
    assert killed > 0.9 * len(chosen)  # the first time the journal was not there


def test_killed_at_any_line_of_putting_back(host: Host) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    host.do("act")
    came = host.do("restore", survey=True)
    chosen = points(came, seed)
    print(f"{len(chosen)} kills")
    killed = 0
    for file, line, nth in chosen:
        assert host.do("act").status == 0
        killed += host.do("restore", (file, line), nth).status < 0
        assert host.do("restore").status == 0
        assert host.wrong() == [], f"killed at {file}:{line}, time {nth}"
    assert killed > 0.8 * len(chosen)  # threads that put back do not run alike twice


def test_what_a_user_changes_after_the_kill_is_left_alone(host: Host) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    came = host.do("once", survey=True)
    assert host.do("restore").status == 0
    for file, line, nth in points(came, seed, 40):
        host.do("once", (file, line), nth)
        bind(host.free, SECOND)
        if host.box is not None:
            host.box.set_cpus(SECOND)
        assert host.do("restore").status == 0
        left = host.wrong()
        at = f"killed at {file}:{line}, time {nth}"
        assert len(left) == (1 if host.box is None else 3), at
        assert host.now()["threads"] == {
            thread: SECOND if thread.pid == host.free else cpus
            for thread, cpus in host.before["threads"].items()  # type: ignore[attr-defined]
        }, at
        if host.box is not None:
            assert host.box.own_cpus() == SECOND, at
            host.box.set_cpus(BOTH)
        bind(host.free, BOTH)
        assert host.wrong() == [], at


def test_a_journal_that_notes_too_late_is_found_out(host: Host) -> None:
    came = host.do("act", survey=True, late=True)
    host.do("restore")
    for file, line, _ in came.lines:
        if file.endswith(("per_thread.py", "cgroups.py")):
            host.do("act", (file, line), late=True)
            host.do("restore")
            if host.wrong():
                return
    pytest.fail("none of these kills would have shown it")
