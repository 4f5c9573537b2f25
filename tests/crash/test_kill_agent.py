"""SIGKILL of the whole agent at any moment: `sustain agent restore`, or the next start, puts everything back."""

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host.processes import boot_id
from sustain.schedulers.journal import read
from tests.crash.guests import CHANGES, Host
from tests.crash.processes import LIMIT_S, rounds, seed
from tests.host.held import own_cgroup

pytestmark = [pytest.mark.crash, pytest.mark.timeout(7200)]

POLICIES = {
    "takes": 'goal_free = "1000TiB"',  # more than any host has
    "gives": 'goal_free = "1MiB"',  # less than any
}
MOMENT_S = 20.0  # that is waited for one; an agent that has nothing to do comes to none
LIMIT_WITHIN_S = 5.0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        group = None
        with contextlib.suppress(pytest.skip.Exception):  # no cgroups here, or not ours to make
            group = stack.enter_context(own_cgroup())
        yield stack.enter_context(Host(tmp_path, group))


class Killer:
    """Starts agents and kills them, at moments that the dice say."""

    def __init__(self, host: Host, dice: random.Random, module: str = "sustain.cli") -> None:
        self.host = host
        self.module = module
        self._dice = dice
        self.told: list[str] = []  # of this round, for people
        self.kills = 0
        self.in_reclaim = 0  # and what of them left the container with another limit

    def kill(self, *words: str, policy: str) -> None:
        """One `sustain agent WORDS`, killed: at a call of it to a guest, before or after that is carried out, while the
        container's limit is another, or after some time."""
        dice = self._dice
        config = self.host.configure(POLICIES[policy])
        process = self.host.start(config, *words, module=self.module)
        limit_s = MOMENT_S
        kind = dice.choice(("call", "change", "change", "limit", "time"))
        if kind == "limit" and (self.host.box is None or self.host.box.group.version != 1 or words):
            kind = "time"  # such limits are set in version 1 only
        if kind in ("call", "change"):
            count, late = dice.randint(1, 60 if kind == "call" else 8), dice.random() < 0.5
            self.host.trigger.aim(process, count, CHANGES if kind == "change" else (), late=late)
            kind = f"{kind} {count}{' late' if late else ''}"
        elif kind == "limit":
            limit_s = LIMIT_WITHIN_S
            self._until_the_limit_is_another(process, limit_s)
        else:
            limit_s = dice.uniform(0.3, 4.0)
        self.told.append(f"{' '.join(words) or 'agent'}, {policy}, killed at {kind} (within {limit_s:.2f} s)")
        if kind != "limit":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=limit_s)
            process.send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=LIMIT_S)
        # One that is to put back may be done before its moment.
        assert process.returncode in ((-signal.SIGKILL, 0) if words else (-signal.SIGKILL,)), said
        self.kills += process.returncode < 0
        self.told.append(said)

    def _until_the_limit_is_another(self, process: "subprocess.Popen[str]", limit_s: float) -> None:
        """And kill it then, or when time is up."""
        box = self.host.box
        assert box is not None
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s and box.as_before():
            time.sleep(0.0002)
        process.send_signal(signal.SIGKILL)
        self.in_reclaim += not box.as_before()

    def put_back(self, how: str) -> None:
        """By hand, or by an agent that starts, and is told to end once it has looked at a guest."""
        self.told.append(how)
        config = self.host.configure(POLICIES["takes"])
        if how == "restore":
            process = self.host.start(config, "restore")
        else:
            process = self.host.start(config)
            # It looks once it has put back what was left.
            self.host.guests["full"].wait_for("query-memory-size-summary")
            process.terminate()
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, f"{self.told}\n{said}"
        self.told.append(said)

    def round(self) -> list[str]:
        """Some are killed, one after the other, the last one sometimes while it puts back; what is wrong then."""
        self.told = []
        box = self.host.box
        for _ in range(self._dice.choice((1, 1, 2, 3))):
            if box is not None:
                box.work()  # so that there is something to take
            self.kill(policy=self._dice.choice(("takes", "takes", "gives")))
        if self._dice.random() < 0.3:
            self.kill("restore", policy="takes")
        self.put_back(self._dice.choice(("restore", "restore", "start")))
        if box is not None:
            box.work()
        left = read(self.host.place / "state" / "guest-memory.journal", boot_id())
        return self.host.wrong() + [f"{key} is left in the journal" for key in left]


def test_killed_at_any_moment(host: Host) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    killer = Killer(host, random.Random(chosen))
    done = 0
    for _ in range(rounds(6)):
        wrong = killer.round()
        print(*killer.told, sep="\n")
        assert wrong == [], killer.told
        done += any("restored" in each for each in killer.told)
    print(
        f"{killer.kills} kills, {killer.in_reclaim} in a reclaim, {done} rounds in which something was put back"
    )
    assert done > 0


def test_a_journal_that_notes_too_late_is_found_out(host: Host) -> None:
    chosen = seed()
    print(f"SUSTAIN_CRASH_SEED={chosen}")
    killer = Killer(host, random.Random(chosen), module="tests.crash.late_journal")
    for _ in range(20):
        if killer.round():
            return
    pytest.fail("none of these kills would have shown it")
