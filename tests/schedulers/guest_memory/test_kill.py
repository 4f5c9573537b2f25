"""SIGKILL at every line of carrying out and of putting back: the next one puts back exactly what was changed."""

import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sustain.host.cgroup import Cgroup
from sustain.host.processes import boot_id
from sustain.schedulers.journal import read
from sustain.testing.guest import FakeQemu
from tests.host.held import own_cgroup
from tests.schedulers.guest_memory.killed import MIB, TRACED, Came, Round

PRIOR = {"a": 256 * MIB, "b": 224 * MIB, "deaf": 256 * MIB, "other": 100 * MIB}
SIZE = 256 * MIB
MORE = 15  # kills at later times that a line is run, at random


class Host:
    """Guests that outlive whoever acts on them, and a cgroup. `other` is touched by nobody."""

    def __init__(self, directory: Path, group: Cgroup | None) -> None:
        self.directory = directory
        self.group = group
        self.limit = None if group is None else group.own_limit_bytes()
        self.guests = {name: FakeQemu(directory / name, SIZE, driver=name != "deaf") for name in PRIOR}
        self._actor = subprocess.Popen(
            [sys.executable, "-m", "tests.schedulers.guest_memory.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.begin()

    def begin(self) -> None:
        """As before anybody acted."""
        for name, guest in self.guests.items():
            guest.target_bytes = PRIOR[name]
            guest.calls.clear()
        (self.directory / "journal").unlink(missing_ok=True)

    def do(
        self,
        what: str,
        line: tuple[str, int] | None = None,
        nth: int = 1,
        *,
        survey: bool = False,
        late: bool = False,
    ) -> Came:
        assert self._actor.stdin is not None
        assert self._actor.stdout is not None
        sockets = {name: guest.path for name, guest in self.guests.items()}
        box = None if self.group is None else str(self.group.directory)
        its = Round(what, str(self.directory), sockets, box, line, nth, survey, late)
        print(msgspec.json.encode(its).decode(), file=self._actor.stdin, flush=True)
        came = msgspec.json.decode(self._actor.stdout.readline(), type=Came)
        assert came.status in (0, -signal.SIGKILL)
        return came

    def wrong(self) -> list[str]:
        """What is not as it was before, and what is left."""
        found = [
            f"{name}: {guest.target_bytes}, was {PRIOR[name]}"
            for name, guest in self.guests.items()
            if guest.target_bytes != PRIOR[name]
        ]
        if "balloon" in self.guests["other"].calls:
            found.append("a guest that nobody was to touch was")
        if self.group is not None and (self.group.own_limit_bytes() != self.limit or not self.group.kills()):
            found.append(f"the cgroup's limit: {self.group.own_limit_bytes()}, kills: {self.group.kills()}")
        return found + [
            f"{key} is left in the journal" for key in read(self.directory / "journal", boot_id())
        ]

    def close(self) -> None:
        assert self._actor.stdin is not None
        self._actor.stdin.close()
        assert self._actor.wait(30) == 0
        for guest in self.guests.values():
            guest.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        group = None
        with contextlib.suppress(pytest.skip.Exception):  # no cgroups here, or not ours to make
            group = stack.enter_context(own_cgroup())
        host = Host(tmp_path, group)
        stack.callback(host.close)
        yield host


def test_nobody_killed(host: Host) -> None:
    """What the others rely on: it changes guests, and puts them back."""
    assert host.do("act").status == 0
    assert {name: guest.target_bytes // MIB for name, guest in host.guests.items()} == {
        "a": 128,
        "b": 200,
        "deaf": 256,
        "other": 100,
    }
    host.do("restore")
    assert host.wrong() == []


def points(came: Came, seed: int) -> list[tuple[str, int, int]]:
    """Each line, the first time that it is run, and some of the later times."""
    chance = random.Random(seed)
    later = [(file, line, nth) for file, line, count in came.lines for nth in range(2, count + 1)]
    first = [(file, line, 1) for file, line, _ in came.lines]
    return first + chance.sample(later, min(MORE, len(later)))


def test_killed_at_any_line_of_acting(host: Host) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    came = host.do("act", survey=True)
    assert {file for file, _, _ in came.lines} == set(TRACED)
    chosen = points(came, seed)
    killed = 0
    for file, line, nth in chosen:
        host.begin()
        killed += host.do("act", (file, line), nth).status < 0
        assert host.do("restore").status == 0
        assert host.wrong() == [], f"killed at {file}:{line}, time {nth}"
    assert killed > 0.8 * len(chosen)  # threads do not run alike twice


def test_killed_at_any_line_of_putting_back(host: Host) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    host.do("act")
    changed = {name: guest.target_bytes for name, guest in host.guests.items()}
    journal = (host.directory / "journal").read_bytes()
    came = host.do("restore", survey=True)
    assert {Path(file).name for file, _, _ in came.lines} >= {"journal.py", "undo.py", "balloon.py"}
    chosen = points(came, seed)
    killed = 0
    for file, line, nth in chosen:
        host.begin()
        for name, guest in host.guests.items():
            guest.target_bytes = changed[name]
        (host.directory / "journal").write_bytes(journal)
        killed += host.do("restore", (file, line), nth).status < 0
        assert host.do("restore").status == 0
        assert host.wrong() == [], f"killed at {file}:{line}, time {nth}"
    assert killed > 0.8 * len(chosen)


def test_a_journal_that_notes_too_late_is_found_out(host: Host) -> None:
    lines = [
        (file, line)
        for file, line, _ in host.do("act", survey=True, late=True).lines
        if file.endswith("act.py")
    ]
    for at in lines:
        host.begin()
        host.do("act", at, late=True)
        host.do("restore")
        if host.wrong():
            return
    pytest.fail("none of these kills would have shown it")
