"""The QMP client against a real QEMU, and against peers that hang, hang up, and talk nonsense."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError
from sustain.host.qmp import Qmp, QmpRefused, listener
from sustain.testing.guest import FakeQemu


def test_a_command_and_an_answer(qemu: tuple[str, int]) -> None:
    with Qmp(qemu[0]) as talk:
        assert talk.ask("query-status")["status"] == "running"
        assert talk.ask("qom-get", path="/machine/peripheral/b0", property="type") == "virtio-balloon-pci"


def test_qemu_says_no(qemu: tuple[str, int]) -> None:
    with Qmp(qemu[0]) as talk:
        with pytest.raises(QmpRefused, match="no-such-command") as caught:
            talk.ask("no-such-command")
        assert caught.value.kind == "CommandNotFound"
        assert talk.ask("query-status")["running"]  # a refusal ends nothing


def test_an_event(qemu: tuple[str, int]) -> None:
    with Qmp(qemu[0]) as talk:
        talk.ask("stop")
        talk.ask("cont")
        assert talk.event("RESUME")["event"] == "RESUME"  # STOP came before it, and is dropped


def test_an_event_that_does_not_come(qemu: tuple[str, int]) -> None:
    with (
        Qmp(qemu[0], timeout_s=2.0) as talk,
        pytest.raises(HostError, match="event RESUME: no answer in time"),
    ):
        talk.event("RESUME")


def test_one_client_at_a_time(qemu: tuple[str, int]) -> None:
    with Qmp(qemu[0]), pytest.raises(HostError, match="no answer in time"):
        Qmp(qemu[0], timeout_s=0.1)
    Qmp(qemu[0]).close()


def test_a_connection_that_was_closed(qemu: tuple[str, int]) -> None:
    talk = Qmp(qemu[0])
    talk.close()
    talk.close()
    with pytest.raises(HostError, match="closed"):
        talk.ask("query-status")


def test_who_listens(qemu: tuple[str, int], tmp_path: Path) -> None:
    path, pid = qemu
    assert listener(path) == pid
    with Qmp(path):
        assert listener(path) == pid  # also while somebody else is served
    with pytest.raises(HostError):
        listener(str(tmp_path / "none"))


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="QMP") as caught:
        Qmp(str(tmp_path / "none"))
    assert "-qmp unix:" in caught.value.hint


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A peer that says these bytes at once, and hangs up."""
    threads = []

    def serve(said: bytes) -> str:
        path = str(tmp_path / "peer")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()

        def talk() -> None:
            with listener, listener.accept()[0] as client:
                client.sendall(said)

        threads.append(threading.Thread(target=talk))
        threads[-1].start()
        return path

    yield serve
    for each in threads:
        each.join(10)
        assert not each.is_alive()


@pytest.mark.parametrize(
    "said", [b"", b"hello\r\n", b'{"QMP": 1}\r\n', b'{"return": {}}\r\n', b'["QMP"]\r\n']
)
def test_a_peer_that_is_no_qemu(peer: Callable[[bytes], str], said: bytes) -> None:
    with pytest.raises(HostError, match="QMP: greeting"):
        Qmp(peer(said), timeout_s=5)


def test_qemu_that_hangs_between_two_commands(tmp_path: Path) -> None:
    with FakeQemu(tmp_path / "qmp", 1 << 26) as fake, Qmp(fake.path, timeout_s=1.0) as talk:
        talk.ask("query-balloon")
        fake.silent = True
        with pytest.raises(HostError, match="query-balloon: no answer in time"):
            talk.ask("query-balloon")


def test_qemu_that_dies_between_two_commands(tmp_path: Path) -> None:
    with FakeQemu(tmp_path / "qmp", 1 << 26) as fake, Qmp(fake.path, timeout_s=5) as talk:
        talk.ask("query-balloon")
        fake.close()
        with pytest.raises(HostError, match="query-balloon"):
            talk.ask("query-balloon")
