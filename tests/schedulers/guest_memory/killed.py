"""An actuator that is killed while it runs a certain line: a process that forks one for each round.

`python -m tests.schedulers.guest_memory.killed` reads rounds as lines of JSON and answers each with one. The child is
traced line by line in the files below, and sends itself SIGKILL when it comes to the line asked for. Used by test_kill.
"""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from sustain.host import balloon, cgroup, files
from sustain.schedulers import journal
from sustain.schedulers.guest_memory import act, undo
from sustain.schedulers.guest_memory.act import Actuator
from sustain.schedulers.guest_memory.config import GuestConfig
from sustain.schedulers.guest_memory.handles import GuestHandle, QemuHandle
from sustain.schedulers.guest_memory.model import Action, Balloon, Reclaim
from sustain.schedulers.journal import Journal

TRACED = tuple(str(module.__file__) for module in (journal, act, undo, balloon, cgroup, files))
MIB = 1 << 20
_LIMIT_S = 60.0  # of an answer: what a busy machine is late with is no result


class Round(msgspec.Struct):
    """What the child is to do, and the line at which it is killed, when it comes there for the `nth` time."""

    what: str  # act, restore
    directory: str
    qmp: dict[str, str]  # sockets by guest
    cgroup: str | None = None
    line: tuple[str, int] | None = None
    nth: int = 1
    survey: bool = False  # tell the lines
    late: bool = False  # the journal is broken: it notes a change after it is made


class Came(msgspec.Struct):
    """How the child ended; the lines that it ran, and how often, when that was asked."""

    status: int  # negative: a signal
    lines: list[tuple[str, int, int]] = []


class LateJournal(Journal):
    """As if a change were noted after it is made: what a journal must not do. A balloon's change has two notes."""

    def __init__(self, path: Path) -> None:
        self._owed: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        super().__init__(path)

    def note(self, *what: Any, **more: Any) -> None:
        self._owed.append((what, more))
        while len(self._owed) > 2:
            owed, its = self._owed.pop(0)
            super().note(*owed, **its)


class _Handle(QemuHandle):
    """Whose memory is not counted, so that a round takes no longer than it must."""

    def resident(self) -> int | None:
        return 0


def work(its: Round) -> None:
    """In the child."""
    handles: dict[str, GuestHandle] = {
        name: _Handle(GuestConfig(name=name, qmp=path), Path("/"), _LIMIT_S, 5)
        for name, path in its.qmp.items()
    }
    if its.cgroup is not None:
        handles["box"] = _Boxed(
            GuestConfig(name="box", pid=os.getppid(), cgroup=its.cgroup), Path("/"), _LIMIT_S, 5
        )
    with (LateJournal if its.late else Journal)(Path(its.directory, "journal")) as noted:
        actuator = Actuator(handles, noted)
        if its.what == "restore":
            for each in actuator.restore().failed:
                print(f"{each.entry.key}: {each.problem}", file=sys.stderr)
            return
        for actions in _plans(handles):
            actuator.carry_out(actions)


class _Boxed(_Handle):
    """Whose cgroup is reclaimed from."""

    def life(self) -> str | None:
        return "box"


def _plans(handles: Mapping[str, GuestHandle]) -> list[list[Action]]:
    """Down, back to where it was, down again with others; a guest without a driver; a cgroup."""
    lives = {name: handle.life() or "" for name, handle in handles.items()}

    def to(name: str, size: int) -> Action:
        return Balloon(guest=name, life=lives[name], from_bytes=0, to_bytes=size * MIB, reason="test")

    plans: list[list[Action]] = [
        [to("a", 192)],
        [to("a", 256)],
        [to("a", 160), to("deaf", 128)],
        [to("a", 128), to("b", 200)],
    ]
    if "box" in handles:
        plans.insert(1, [Reclaim(guest="box", life="box", amount_bytes=MIB, reason="test")])
    return plans


def _trace(its: Round, seen: Counter[tuple[str, int]]) -> None:
    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            at = (frame.f_code.co_filename, frame.f_lineno)
            seen[at] += 1
            if at == its.line and seen[at] == its.nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def follow(frame: FrameType, event: str, _: object) -> Any:
        return local if frame.f_code.co_filename in TRACED else None

    threading.settrace(follow)
    sys.settrace(follow)


def serve() -> None:
    """Until there are no more rounds."""
    act._POLL_S, act._STILL_S = 0.002, 0.02
    for line in sys.stdin:
        its = msgspec.json.decode(line, type=Round)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                seen: Counter[tuple[str, int]] = Counter()
                if its.survey or its.line is not None:
                    _trace(its, seen)
                work(its)
                sys.settrace(None)
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(msgspec.json.encode([(*at, count) for at, count in seen.items()]))
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        came = Came(os.waitstatus_to_exitcode(status), msgspec.json.decode(told) if told else [])
        print(msgspec.json.encode(came).decode(), flush=True)


if __name__ == "__main__":
    serve()
