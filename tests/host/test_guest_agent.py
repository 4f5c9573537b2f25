"""The guest agent's client: its sync, its time limits, and files. A real agent answers in tests/lab."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.guest_agent import AgentRefused, GuestAgent, read_texts
from sustain.testing.guest import FakeAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with FakeAgent(tmp_path / "agent", {"/a": "one\n", "/b": "x" * 200_000}) as fake:
        yield fake


def test_files(agent: FakeAgent) -> None:
    with GuestAgent(agent.path) as talk:
        assert read_texts(talk, ["/a", "/b", "/none"]) == {"/a": "one\n", "/b": "x" * 200_000, "/none": None}
    assert agent.left_open == 0
    assert agent.calls.count("guest-file-read") == 1 + 4


def test_leftovers_of_somebody_else(agent: FakeAgent) -> None:
    for junk in (
        b'{"return": 5}\n',
        b"\xff",
        b'{"half',
        b'\xff{"return": 7}\n',
        b"\xff[]\n",
        b"\xffx\xffy\n",
    ):
        agent.junk = junk
        with GuestAgent(agent.path) as talk:
            assert read_texts(talk, ["/a"]) == {"/a": "one\n"}


def test_an_agent_that_hangs_and_comes_back(agent: FakeAgent) -> None:
    agent.silent = True
    with pytest.raises(HostError, match="no answer in time") as caught:
        GuestAgent(agent.path, timeout_s=0.1)
    assert "qemu-guest-agent" in caught.value.hint
    agent.silent = False
    with GuestAgent(agent.path, timeout_s=0.3) as talk:
        agent.silent = True
        with pytest.raises(HostError, match="no answer in time"):
            read_texts(talk, ["/a"])
    agent.silent = False
    with GuestAgent(agent.path) as talk:
        assert read_texts(talk, ["/a"]) == {"/a": "one\n"}


def test_an_agent_that_may_not(agent: FakeAgent) -> None:
    agent.refuse = "Command guest-file-open has been disabled: the command is not allowed"
    with GuestAgent(agent.path) as talk, pytest.raises(AgentRefused) as caught:
        read_texts(talk, ["/a"])
    assert "allow guest-file-open" in caught.value.hint


@pytest.mark.parametrize(
    "said",
    [b"\xff\n", b"[]\n", b"\x80\n", b'{"error": 1}\n', b'{"return": [1]}\n', b"[" * 100_000 + b"\n"],
    ids=lambda said: repr(said[:20]),
)
def test_an_agent_that_talks_nonsense(agent: FakeAgent, said: bytes) -> None:
    """Whatever it says in the place of an answer: no file, or an error of ours, and nothing else."""
    with GuestAgent(agent.path, timeout_s=1) as talk:
        agent.junk = said
        with contextlib.suppress(HostError):
            assert read_texts(talk, ["/a"])["/a"] is None
    with GuestAgent(agent.path) as talk:
        assert read_texts(talk, ["/a"]) == {"/a": "one\n"}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="guest agent") as caught:
        GuestAgent(str(tmp_path / "none"))
    assert "virtserialport" in caught.value.hint


def test_a_port_that_nobody_listens_to(qemu: tuple[str, int]) -> None:
    """A real QEMU takes what is sent to the port; without a guest nothing comes back."""
    path = str(Path(qemu[0]).with_name("agent"))
    for _ in range(2):
        with pytest.raises(HostError, match="no answer in time"):
            GuestAgent(path, timeout_s=0.2)
