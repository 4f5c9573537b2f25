"""What outlives an actuator that is killed: a process and a cgroup, with threads that are bound and such that are not;
and what of them is not as it was. Used by test_kill, here and in the lab."""

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sustain.host.cpuset import Cpuset
from sustain.host.processes import boot_id
from sustain.schedulers.journal import read
from tests.host.cpusets import enter, own_cpuset
from tests.schedulers.packages.groups import as_found, bind, running, slack, where
from tests.schedulers.packages.killed import IN_TURN, Came, Round

MORE = 25


class Host:
    """`one`, `other`: processors to place groups on; `nodes`: one for each of them, where memory follows."""

    def __init__(
        self, directory: Path, one: frozenset[int], other: frozenset[int], nodes: tuple[int, ...] = ()
    ) -> None:
        self._directory = directory
        self._nodes = list(nodes)
        self._cpus = [sorted(one), sorted(other)]
        self._stack = contextlib.ExitStack()
        self._actor = subprocess.Popen(
            [sys.executable, "-m", "tests.schedulers.packages.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.web = self._stack.enter_context(running())
        self.free = self.web.start()
        for cpus in (one, other):
            bind(self.web.start(), cpus)
        self.box: Cpuset | None = None
        with contextlib.suppress(pytest.skip.Exception):  # no cgroups here, or not ours to make
            self.box = self._stack.enter_context(own_cpuset(name="kill"))
        if self.box is not None:
            self._boxed = self._stack.enter_context(running())
            enter(self.box, self._boxed.pid)
            for cpus in (one, other):
                bind(self._boxed.start(), cpus)
        self.before = self.now()

    def now(self) -> dict[str, object]:
        """All that an actuator may change."""
        found: dict[str, object] = {"threads": where(self.web.pid), "slack": slack(self.web.pid)}
        if self.box is not None:
            found.update(cpuset=as_found(self.box), boxed=where(self._boxed.pid))
        return found

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
        box = None if self.box is None else (str(self.box.directory), self.box.inode)
        its = Round(
            what=what,
            directory=str(self._directory),
            web=self.web.pid,
            cpus=self._cpus,
            nodes=self._nodes,
            box=box,
            line=line,
            nth=nth,
            survey=survey,
            late=late,
        )
        print(msgspec.json.encode(its).decode(), file=self._actor.stdin, flush=True)
        came = msgspec.json.decode(self._actor.stdout.readline(), type=Came)
        assert came.status in (0, -signal.SIGKILL)
        return came

    def wrong(self) -> list[str]:
        """What is not as it was before, and what is left."""
        now = self.now()
        found = [f"{what}: {now[what]}, was {was}" for what, was in self.before.items() if now[what] != was]
        return found + [
            f"{key} is left in the journal" for key in read(self._directory / "journal", boot_id())
        ]

    def close(self) -> None:
        assert self._actor.stdin is not None
        self._actor.stdin.close()
        assert self._actor.wait(30) == 0
        self._stack.close()


def points(came: Came, seed: int, most: int | None = None) -> list[tuple[str, int, int]]:
    """Where to kill: each line of what changes things in turn, the first time that it is run; of what it calls, and of
    later times, some. Or of those as many as `most`, at random."""
    chance = random.Random(seed)
    first = [(file, line, 1) for file, line, _ in came.lines if file in IN_TURN]
    others = [(file, line, 1) for file, line, _ in came.lines if file not in IN_TURN]
    later = [(file, line, nth) for file, line, count in came.lines for nth in range(2, count + 1)]
    chosen = (
        first + chance.sample(others, min(MORE, len(others))) + chance.sample(later, min(MORE, len(later)))
    )
    return chosen if most is None else chance.sample(chosen, min(most, len(chosen)))
