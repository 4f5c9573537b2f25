"""The agent as a process: it says when it is ready, answers, ends in order, and puts back what a killed one left."""

import ctypes
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sustain.agent.agent import Agent
from sustain.agent.config import AgentSection
from sustain.agent.http import get
from sustain.agent.systemd import ServiceManager
from sustain.errors import AgentError, SustainError
from sustain.schedulers.journal import Journal
from sustain.testing import FakeClock
from sustain.testing.scheduler import DialPolicy, DialScheduler
from tests import threads


class Rig:
    """Dials, and agents over them as processes. The rig is their service manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "dials").mkdir()
        self.set(a=9, b=2)
        self.started: list[subprocess.Popen[str]] = []
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(directory / "notify"))
        self._ear.settimeout(30)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            (self.directory / "dials" / name).write_text(str(value))

    def values(self) -> dict[str, int]:
        return {path.name: int(path.read_text()) for path in (self.directory / "dials").glob("[!.]*")}

    def start(self, what: str = "run", watchdog_us: int = 0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.dials_agent", str(self.directory), what],
            env={
                "PYTHONPATH": ".",
                "NOTIFY_SOCKET": str(self.directory / "notify"),
                "WATCHDOG_USEC": str(watchdog_us),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def hear(self, word: str) -> str:
        while True:
            said = self._ear.recv(4096).decode()
            if word in said:
                return said

    def page(self, path: str) -> Any:
        return json.loads(get(str(self.directory / "socket"), path).body)

    def until_it_has_acted(self) -> None:
        """Dial a has come down to 3, and a tick has seen it."""
        while (seen := self.page("/schedulers/dials").get("observation")) is None or seen["values"]["a"] != 3:
            assert self.started[-1].poll() is None

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        self._ear.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_works_until_a_signal_and_puts_everything_back(rig: Rig, number: signal.Signals) -> None:
    agent = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    agent.send_signal(number)
    rig.hear("STOPPING=1")
    _, said = agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert said == "dials: put back 1 of 1 changes: the scheduler stops\n"
    assert rig.values() == {"a": 9, "b": 2}
    assert not (rig.directory / "socket").exists()
    log = [json.loads(line) for line in (rig.directory / "log").read_text().splitlines()]
    assert [line["effects"][0]["action"]["to_value"] for line in log] == [8, 7, 6, 5, 4, 3]
    assert all(line["effects"][0]["action"]["reason"] for line in log)


def test_a_signal_that_another_thread_gets_ends_it_in_order_too(rig: Rig) -> None:
    """As the kernel does when the main thread is not waiting for one at that moment."""
    agent = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    others = threads.unblocked(agent.pid, signal.SIGTERM)
    assert others, "the server's thread is there before"
    assert ctypes.CDLL(None).tgkill(agent.pid, others[0], signal.SIGTERM) == 0
    _, said = agent.communicate(timeout=30)
    assert (agent.returncode, rig.values()) == (0, {"a": 9, "b": 2}), said


def test_what_could_not_be_put_back_at_all_is_its_exit_status(rig: Rig) -> None:
    (rig.directory / "refuse").touch()
    agent = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=30)
    assert agent.returncode == 1
    assert "AgentError: cannot put back what was changed: nobody is at home" in said


def test_killed_at_any_moment_the_next_one_puts_back(rig: Rig) -> None:
    for _ in range(3):
        agent = rig.start()
        rig.hear("READY=1")
        # Of this one or, while that is not yet put back, of the one before; so what is left at the kill may be nothing.
        while rig.values()["a"] == 9:
            assert agent.poll() is None
        agent.kill()
        agent.wait()
    agent = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    agent.kill()
    agent.wait()
    assert rig.values()["a"] < 9
    last = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    last.terminate()
    _, said = last.communicate(timeout=30)
    assert "left by an agent that was killed" in said
    assert rig.values() == {"a": 9, "b": 2}


def test_killed_and_put_back_by_hand(rig: Rig) -> None:
    agent = rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    agent.kill()
    agent.wait()
    assert rig.start("restore").wait(30) == 0
    assert rig.values() == {"a": 9, "b": 2}


def test_only_one_at_a_time(rig: Rig) -> None:
    rig.start()
    rig.hear("READY=1")
    second = rig.start()
    _, said = second.communicate(timeout=30)
    assert second.returncode != 0
    assert "JournalBusy" in said
    assert rig.page("/status")["pid"] == rig.started[0].pid


def test_the_watchdog_is_fed(rig: Rig) -> None:
    rig.start(watchdog_us=300_000)
    rig.hear("READY=1")
    for _ in range(3):
        rig.hear("WATCHDOG=1")


def test_pages(rig: Rig) -> None:
    rig.start()
    rig.hear("READY=1")
    rig.until_it_has_acted()
    where = str(rig.directory / "socket")
    assert get(where, "/healthz").body == b"ok\n"
    assert get(where, "/nowhere").status == 404
    (status,) = rig.page("/status")["schedulers"]
    assert (status["name"], status["acts"], status["problem"]) == ("dials", True, None)
    assert status["actions"] == 6
    snapshot = rig.page("/schedulers/dials")
    assert snapshot["observation"]["values"] == {"a": 3, "b": 2}
    assert (snapshot["state"], snapshot["acts"], snapshot["problem"]) == (6, True, None)
    refused = get(where, "/schedulers/dials/weather?today=1")
    assert refused.status == 404
    assert json.loads(refused.body)["error"] == "dials know nothing of weather"
    text = get(where, "/metrics").body.decode()
    for line in (
        'sustain_scheduler_actions_total{scheduler="dials"} 6.0',
        'sustain_scheduler_acts{scheduler="dials"} 1.0',
        'sustain_dial{dial="a"} 3.0',
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text


def agent_of(rig: Rig, clock: FakeClock, said: list[str]) -> tuple[Agent, DialScheduler]:
    scheduler = DialScheduler(rig.directory / "dials", Journal(rig.directory / "journal"), DialPolicy())
    section = AgentSection(listen="127.0.0.1:0")
    return Agent(section, [scheduler], clock, tell=said.append, environ={}), scheduler


def test_health_over_tcp(rig: Rig) -> None:
    """A source that is lost is trouble, and so is a loop that does not come round."""
    clock, said = FakeClock(), list[str]()
    agent, scheduler = agent_of(rig, clock, said)
    assert agent.where is not None
    (loop,) = agent._loops
    try:
        loop.tick()
        assert get(agent.where, "/healthz").status == 200

        def fault(step: str) -> None:
            raise SustainError("nothing to see", hint="look elsewhere")

        scheduler.fault = fault
        loop.tick()
        answer = get(agent.where, "/healthz")
        assert (answer.status, answer.body) == (503, b"dials: nothing to see\n")
        assert said == ["dials: nothing to see (look elsewhere)"]
        assert json.loads(get(agent.where, "/status").body)["troubles"] == ["dials: nothing to see"]
        # What was seen last stays to be looked at.
        assert json.loads(get(agent.where, "/schedulers/dials").body)["observation"]["values"] == {
            "a": 9,
            "b": 2,
        }
        clock.advance(121)
        assert b"dials hangs" in get(agent.where, "/healthz").body
    finally:
        agent._server.close()  # type: ignore[union-attr]
        scheduler.close()


def test_an_address_that_is_taken(rig: Rig) -> None:
    agent, scheduler = agent_of(rig, FakeClock(), [])
    assert isinstance(agent.where, tuple)
    with pytest.raises(AgentError, match=str(agent.where[1])) as caught:
        Agent(AgentSection(listen=f"127.0.0.1:{agent.where[1]}"), [], FakeClock(), tell=print)
    assert caught.value.hint
    agent._server.close()  # type: ignore[union-attr]
    with pytest.raises(AgentError, match="no agent answers"):
        get(agent.where, "/status")
    scheduler.close()


def test_without_a_service_manager_nothing_is_told() -> None:
    manager = ServiceManager({})
    manager.tell(READY=1)
    assert manager.watchdog_s is None
    assert ServiceManager({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert ServiceManager({"WATCHDOG_USEC": "30000000"}).watchdog_s == 30


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")  # the kernel finds an abstract name
        name = ear.getsockname()
        ear.settimeout(30)
        ServiceManager({"NOTIFY_SOCKET": "@" + name[1:].decode()}).tell(READY=1, STATUS="up")
        assert ear.recv(100) == b"READY=1\nSTATUS=up"


def test_a_signal_that_comes_while_nobody_waits_for_it_ends_it_in_order(rig: Rig) -> None:
    """Before it waits and while it stops; the server's thread would take it."""
    (rig.directory / "eager").touch()
    process = rig.start()
    assert process.wait(60) == 0
    assert rig.values() == {"a": 9, "b": 2}
