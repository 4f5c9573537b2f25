"""Who is behind a guest's socket: nothing that was of one guest is done to another that has come to its place."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from sustain.errors import HostError
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.handles import QemuHandle
from sustain.schedulers.guest_memory.model import Balloon
from sustain.schedulers.journal import Journal

MIB = 1 << 20
SIZE = 256 * MIB

# A line in: the balloon's target out.
_GUEST = """
import sys
from sustain.testing.guest import FakeQemu
with FakeQemu(sys.argv[1], int(sys.argv[2])) as fake:
    print("ready", flush=True)
    for line in sys.stdin:
        print(fake.target_bytes, flush=True)
"""


class Process:
    """A guest in a process of its own, with its socket at `path` from now on, whoever had it."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUEST, str(path), str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._said() == "ready"

    def target_bytes(self) -> int:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return int(self._said())

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def one() -> Process:
        started.append(Process(tmp_path / "qmp"))
        return started[-1]

    yield one
    for each in started:
        each.end()


def test_a_guest_that_has_taken_over_the_socket_is_not_taken_for_the_former(
    start: Callable[[], Process], tmp_path: Path
) -> None:
    former = start()
    handle = QemuHandle(GuestConfig(name="g", qmp=str(tmp_path / "qmp")), Path("/"), 10.0, 5)
    life = handle.life()
    assert life is not None
    action = Balloon(guest="g", life=life, from_bytes=SIZE, to_bytes=SIZE // 2, reason="test")
    with Journal(tmp_path / "journal") as journal:
        actuator = Actuator({"g": handle}, journal)
        assert [each.done for each in actuator.carry_out([action])] == [True]
        latter = start()
        assert handle.life() == life  # it still runs
        (effect,) = actuator.carry_out([action])
        assert f"answered by process {latter.pid}" in (effect.problem or "")
        (failed,) = actuator.restore().failed
        assert "it runs, and cannot be reached" in failed.problem
        assert (former.target_bytes(), latter.target_bytes()) == (SIZE // 2, SIZE)
        assert handle.life() != life
        former.end()
        assert [each.outcome for each in actuator.restore().undone] == ["gone"]
        assert (latter.target_bytes(), journal.entries()) == (SIZE, ())


def test_a_guest_with_a_process_and_another_that_answers(
    start: Callable[[], Process], tmp_path: Path
) -> None:
    former = start()
    known = GuestConfig(name="g", qmp=str(tmp_path / "qmp"), pid=former.pid)
    handle = QemuHandle(known, Path("/"), 10.0, 5)
    life, balloon = handle.life(), handle.balloon()
    assert balloon == SIZE
    start()
    for _ in range(2):
        with pytest.raises(HostError, match="answered by process"):
            handle.monitor()
        assert handle.life() == life
