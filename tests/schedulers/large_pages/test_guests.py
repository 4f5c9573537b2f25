"""Guests that are no guests, or have the sockets of another: of their blocks nothing is known, and all others go on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sustain.host.processes import Identity, identify
from sustain.schedulers.large_pages.find import Found
from sustain.schedulers.large_pages.guests import Guests, Inside
from sustain.testing.guest import FakeAgent, FakeQemu
from tests.schedulers.guest_memory.test_handles import Process

SIZE = 64 << 20
ADDRESSES = np.array([1 << 30], np.uint64)


class Liar(FakeQemu):
    """Whatever it is asked, it says that there is nothing."""

    def _return(self, command: str, arguments: dict[str, Any]) -> Any:
        return {}


_AGENT = """
import sys
from sustain.testing.guest import FakeAgent
with FakeAgent(sys.argv[1], {}):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Process]:
    """Another guest."""
    process = Process(tmp_path / "other")
    try:
        yield process
    finally:
        process.end()


@pytest.fixture
def other_agent(tmp_path: Path) -> Iterator[int]:
    """The agent's socket of another guest: its process."""
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, str(tmp_path / "other")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def us() -> Identity:
    found = identify(os.getpid())
    assert found is not None
    return found


def ask(qmp: Path | str, agent: FakeAgent) -> Inside:
    found = Found("guest", "guest", us(), guest=True, qmp=str(qmp), guest_agent=agent.path)
    return Guests().look(found, ADDRESSES)


def test_one_that_says_nothing_of_its_size_is_unknown(tmp_path: Path) -> None:
    with Liar(tmp_path / "qmp", SIZE) as qemu, FakeAgent(tmp_path / "agent", {}) as agent:
        inside = ask(qemu.path, agent)
    assert inside.large.tolist() == [-1]
    assert "no size of memory" in inside.problem


def test_the_monitor_of_another_guest_is_not_asked(tmp_path: Path, other: Process) -> None:
    with FakeAgent(tmp_path / "agent", {}) as agent:
        inside = ask(tmp_path / "other", agent)
    assert inside.large.tolist() == [-1]
    assert (
        f"{tmp_path / 'other'} is answered by process {other.pid}, and not by {os.getpid()}" in inside.problem
    )


def test_the_agent_of_another_guest_is_not_asked(tmp_path: Path, other_agent: int) -> None:
    class Guest(FakeQemu):
        """Whose memory lies somewhere."""

        def _return(self, command: str, arguments: dict[str, Any]) -> Any:
            if command != "human-monitor-command":
                return super()._return(command, arguments)
            address = int(arguments["command-line"].split()[1], 16)
            return f"Host virtual address for {address:#x} is {(1 << 30) + address:#x}"

    with Guest(tmp_path / "qmp", SIZE) as qemu:
        found = Found(
            "guest",
            "guest",
            us(),
            guest=True,
            qmp=qemu.path,
            guest_agent=str(tmp_path / "other"),
        )
        inside = Guests().look(found, ADDRESSES)
    assert f"is answered by process {other_agent}, and not by" in inside.problem
