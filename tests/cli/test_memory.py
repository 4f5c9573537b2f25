"""`memory`, `record`, `replay` and `agent` over a guest whose sockets are fakes, with the real scheduler and agent."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.testing.guest import FakeAgent, FakeQemu
from tests.cli.conftest import Ran
from tests.host.resting import files_at_rest

SIZE = 256 << 20
FILES = files_at_rest(
    {
        "MemTotal": 250 << 10,
        "MemFree": 180 << 10,
        "MemAvailable": 220 << 10,
        "Active(anon)": 4 << 10,
        "Inactive(anon)": 8 << 10,
        "Active(file)": 4 << 10,
        "Inactive(file)": 36 << 10,
        "Unevictable": 0,
        "Dirty": 0,
        "Writeback": 0,
        "SUnreclaim": 8 << 10,
        "KernelStack": 1 << 10,
        "PageTables": 1 << 10,
        "Percpu": 1 << 10,
        "SwapTotal": 0,
        "SwapFree": 0,
        "Shmem": 0,
    }
)


class Rig:
    """One guest, a configuration, and agents as processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.qemu = FakeQemu(directory / "qmp", SIZE)
        self.qemu.statistics = {"stat-total-memory": 250 << 20, "stat-free-memory": 180 << 20}
        self.qemu.updated_s = int(time.time())
        self.agent_in_guest = FakeAgent(directory / "qga", FILES)
        self.config = directory / "agent.toml"
        self.configure()
        self._started: list[subprocess.Popen[str]] = []
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(directory / "notify"))
        self._ear.settimeout(60)

    def configure(self, policy: str = "") -> None:
        self.config.write_text(
            f"""
            [agent]
            listen = "unix:{self.directory}/agent"
            state_dir = "{self.directory}/state"
            log = "{self.directory}/log"
            [guest_memory]
            period = "1s"
            [[guest_memory.guests]]
            name = "vm1"
            qmp = "{self.qemu.path}"
            guest_agent = "{self.agent_in_guest.path}"
            [guest_memory.policy]
            {policy}
            """
        )

    def squeeze(self) -> None:
        """A goal that no host has: whatever guests can give is taken."""
        self.configure('goal_free = "1000TiB"\nleast_change = "1MiB"')

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sustain.cli", *(words or ("agent",)), "--config", str(self.config)],
            env={"NOTIFY_SOCKET": str(self.directory / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        while b"READY=1" not in self._ear.recv(4096):
            pass
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        self.qemu.close()
        self.agent_in_guest.close()
        self._ear.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


Sus = Callable[..., Ran]


def test_status_looked_at_from_here(rig: Rig, sus: Sus) -> None:
    ran = sus("memory", "status", "--config", rig.config, "--for", "100ms")
    assert ran.status == 0
    assert "from here: nothing is changed" in ran.out
    (row,) = (line for line in ran.out.splitlines() if line.startswith("vm1  "))
    assert "guest-agent" in row
    assert "256 MiB" in row
    assert rig.qemu.target_bytes == SIZE


def test_the_shapes_of_json(rig: Rig, sus: Sus) -> None:
    """docs/json.md."""
    here = ("--config", rig.config, "--for", "100ms", "--json")
    plan = sus("memory", "plan", *here).json
    assert {"from", "scheduler", "age_s", "acts", "problem", "observation", "plan", "effects"} == set(plan)
    assert (plan["from"], plan["acts"], plan["effects"]) == ("here", False, [])
    (guest,) = plan["observation"]["guests"]
    assert guest["figures"]["free_bytes"] == 180 << 20
    assert [each["name"] for each in plan["plan"]["guests"]] == ["vm1"]
    explained = sus("memory", "explain", "vm1", *here).json
    assert explained["guest"]["name"] == "vm1"
    assert "working set" in explained["text"]
    admission = sus("memory", "admit", "--size", "16MiB", *here).json["admission"]
    assert (admission["verdict"], admission["size_bytes"]) == ("now", 16 << 20)


def test_what_does_not_fit_is_exit_status_1(rig: Rig, sus: Sus) -> None:
    ran = sus("memory", "admit", "--size", "900TiB", "--config", rig.config, "--for", "100ms")
    assert ran.status == 1
    assert "does not fit" in ran.out


def test_what_cannot_be_meant(rig: Rig, sus: Sus, tmp_path: Path) -> None:
    here = ("--config", rig.config, "--for", "0s")
    sus("memory", "explain", "vm2", *here).failed_with("vm2")
    sus("memory", "admit", "--size", "much", *here).failed_with("much", status=2)
    sus("memory", "admit", "--size", "1GiB", "--shares", "-1", *here).failed_with("shares", status=2)
    sus("memory", "status", "--config", tmp_path / "none").failed_with("none", status=2)
    rig.config.write_text("[agent]\n")
    sus("memory", "status", *here).failed_with("guest_memory", status=2)
    sus("agent", "--config", rig.config).failed_with("no scheduler", status=2)
    sus("record", tmp_path / "seen", "--config", rig.config).failed_with("no scheduler", status=2)
    rig.config.write_text("[guest_memory]\nperoid = 1\n")
    ran = sus("agent", "check", "--config", rig.config)
    ran.failed_with("guest_memory.peroid", status=2)
    assert "did you mean period?" in ran.err


def test_check(rig: Rig, sus: Sus) -> None:
    found = sus("agent", "check", "--config", rig.config, "--json").json
    assert found["schedulers"] == [
        {"name": "guest-memory", "period_s": 1.0, "guests": ["vm1"], "discover": False}
    ]


def test_a_running_agent_is_asked(rig: Rig, sus: Sus) -> None:
    rig.start("agent", "--dry-run")

    def asked(*words: object) -> dict[str, Any]:
        while True:  # until its first tick
            ran = sus("memory", *words, "--config", rig.config, "--json")
            if ran.status == 0:
                return ran.json
            assert "nothing has been seen yet" in ran.err

    assert (asked("plan")["from"], asked("plan")["acts"]) == ("agent", False)
    assert asked("explain", "vm1")["guest"]["name"] == "vm1"
    assert asked("admit", "--size", "16MiB")["admission"]["verdict"] == "now"
    sus("memory", "explain", "vm2", "--config", rig.config).failed_with("vm2")
    assert (
        sus("memory", "plan", "--here", "--for", "0s", "--config", rig.config, "--json").json["from"]
        == "here"
    )


def squeezed(rig: Rig, agent: subprocess.Popen[str]) -> None:
    """Wait until the agent has asked for the balloon."""
    deadline = time.monotonic() + 60
    while "balloon" not in rig.qemu.calls or rig.qemu.target_bytes == SIZE:
        assert agent.poll() is None
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_an_agent_takes_and_gives_back(rig: Rig) -> None:
    rig.squeeze()
    agent = rig.start()
    squeezed(rig, agent)
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=60)
    assert (agent.returncode, rig.qemu.target_bytes) == (0, SIZE), said
    (first, *_) = (json.loads(line) for line in (rig.directory / "log").read_text().splitlines())
    assert first["effects"][0]["action"]["type"] == "balloon"
    assert first["effects"][0]["action"]["reason"]


def test_memory_run_is_the_same_in_the_foreground(rig: Rig) -> None:
    rig.squeeze()
    agent = rig.start("memory", "run")
    squeezed(rig, agent)
    agent.send_signal(signal.SIGINT)
    agent.communicate(timeout=60)
    assert (agent.returncode, rig.qemu.target_bytes) == (0, SIZE)


def test_an_agent_that_is_killed_and_put_back(rig: Rig, sus: Sus) -> None:
    rig.squeeze()
    agent = rig.start()
    squeezed(rig, agent)
    sus("agent", "restore", "--config", rig.config).failed_with("another process")
    agent.kill()
    agent.wait()
    assert rig.qemu.target_bytes < SIZE
    found = sus("agent", "restore", "--config", rig.config, "--json").json["undone"]
    assert {each["outcome"] for each in found} == {"restored"}
    assert rig.qemu.target_bytes == SIZE
    assert sus("agent", "restore", "--config", rig.config).out == "nothing to put back\n"


def test_statistics_that_a_killed_recording_left_on(rig: Rig, sus: Sus, tmp_path: Path) -> None:
    words = ("record", str(tmp_path / "rec"), "--config", str(rig.config))
    victim = subprocess.Popen([sys.executable, "-m", "sustain.cli", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while rig.qemu.period_s == 0:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.wait(60)
    assert rig.qemu.period_s == 5
    ran = sus("agent", "restore", "--config", rig.config)
    assert ran.status == 0
    assert "statistics:vm1" in ran.out
    assert rig.qemu.period_s == 0


def test_a_guest_that_cannot_be_reached_stays_to_be_put_back(rig: Rig, sus: Sus) -> None:
    rig.squeeze()
    agent = rig.start()
    squeezed(rig, agent)
    agent.kill()
    agent.wait()
    rig.qemu.silent = True
    ran = sus("agent", "restore", "--config", rig.config)
    assert ran.status == 1
    assert "failed" in ran.out
    rig.qemu.silent = False
    assert sus("agent", "restore", "--config", rig.config).status == 0
    assert rig.qemu.target_bytes == SIZE


def test_what_is_recorded_can_be_replayed(rig: Rig, sus: Sus, tmp_path: Path) -> None:
    file = tmp_path / "recording"
    ran = sus("record", file, "--for", "2500ms", "--period", "1s", "--config", rig.config, "--json")
    count = ran.json["observations"]
    assert ran.json == {
        "file": str(file),
        "scheduler": "guest-memory",
        "observations": count,
        "period_s": 1.0,
    }
    assert count in (2, 3)  # a machine that is busy skips one
    sus("record", file, "--for", "1s", "--config", rig.config).failed_with("exists")
    # The guest's process is this one, which has the size it has: whatever it gives is too little to be asked for.
    rig.configure('least_change = "1TiB"')
    quiet = sus("replay", file, "--config", rig.config)
    assert f"{count} observations, 0 actions" in quiet.out
    rig.squeeze()
    hard = sus("replay", file, "--config", rig.config, "--guest", "vm1")
    assert "balloon" in hard.out
    assert "working set" in hard.out
    assert "The guests did not react." in hard.out
    lines = [
        json.loads(line) for line in sus("replay", file, "--config", rig.config, "--json").out.splitlines()
    ]
    afters_s = [line["after_s"] for line in lines]
    assert len(afters_s) == count
    assert afters_s[0] == 0
    assert afters_s == sorted(afters_s)
    assert 1 <= afters_s[-1] < 3
    assert lines[-1]["actions"][0]["type"] == "balloon"


def test_a_recording_that_is_cut_off_is_used_and_said(rig: Rig, sus: Sus, tmp_path: Path) -> None:
    file = tmp_path / "recording"
    ran = sus("record", file, "--for", "2500ms", "--period", "1s", "--config", rig.config, "--json")
    count = ran.json["observations"]
    assert count >= 2
    file.write_bytes(file.read_bytes()[:-10])
    ran = sus("replay", file)
    assert ran.status == 1
    assert ran.out.startswith("after 0 s: host ")
    assert f"line {count + 1} is cut off; the {count - 1} observations before it are whole" in ran.err
