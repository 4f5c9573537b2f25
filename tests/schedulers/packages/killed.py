"""An actuator that is killed while it runs a certain line: a process that forks one for each round.

`python -m tests.schedulers.packages.killed` reads rounds as lines of JSON and answers each with one. The child is
traced line by line in the files below, and sends itself SIGKILL when it comes to the line asked for. Used by test_kill,
here and in the lab.
"""

import os
import signal
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from sustain.host import affinity, cpuset, files, timer_slack
from sustain.host.processes import identify
from sustain.schedulers import journal
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages import act, cgroups, memory, per_thread, per_thread_undo, settings, undo
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.handles import CgroupHandle, Handle, ProcessHandle
from sustain.schedulers.packages.model import Action
from tests.schedulers.packages.groups import Located, align, place, release

_MODULES = (
    journal,
    act,
    cgroups,
    memory,
    per_thread,
    per_thread_undo,
    settings,
    undo,
    affinity,
    cpuset,
    files,
    timer_slack,
)
TRACED = tuple(str(module.__file__) for module in _MODULES)
IN_TURN = tuple(str(module.__file__) for module in (act, cgroups, memory, per_thread, per_thread_undo, undo))


class Round(msgspec.Struct):
    """What the child is to do, and the line at which it is killed, when it comes there for the `nth` time."""

    what: str  # act, once (to the first processors only), restore
    directory: str
    web: int  # a process
    cpus: list[list[int]]  # two sets to place groups on
    nodes: list[int] = []  # one for each of them, where memory follows
    box: tuple[str, int] | None = None  # a cgroup: its directory and inode
    line: tuple[str, int] | None = None
    nth: int = 1
    survey: bool = False  # tell the lines
    late: bool = False  # the journal is broken: it notes a change after it is made


class Came(msgspec.Struct):
    """How the child ended; the lines that it ran, and how often, when that was asked."""

    status: int  # negative: a signal
    lines: list[tuple[str, int, int]] = []


class LateJournal(Journal):
    """Which writes down a change after it is made: what a journal must not do."""

    def __init__(self, path: Path) -> None:
        self._owed: list[Any] = []
        super().__init__(path)

    def _append(self, line: Any) -> None:
        self._owed.append(line)
        if len(self._owed) > 3:
            super()._append(self._owed.pop(0))


def work(its: Round) -> None:
    """In the child."""
    who = identify(its.web)
    assert who is not None
    handles: dict[str, Handle] = {"web": ProcessHandle((who,))}
    if its.box is not None:
        handles["box"] = CgroupHandle(Path(its.box[0]), its.box[1])
    with (LateJournal if its.late else Journal)(Path(its.directory, "journal")) as noted:
        actuator = Actuator(noted, Located(handles), limit_s=600)
        if its.what == "restore":
            for each in actuator.restore().failed:
                print(f"{each.entry.key}: {each.problem}", file=sys.stderr)
            return
        for actions in _plans(its):
            left = actions
            while left:
                effects = actuator.carry_out(left)
                assert all(each.done or each.moved_bytes is not None for each in effects), effects
                left = [each.action for each in effects if not each.done]


def _plans(its: Round) -> list[list[Action]]:
    """There, elsewhere, back to what it was, and there again."""
    one, other = (frozenset(each) for each in its.cpus)

    def to(cpus: frozenset[int]) -> list[Action]:
        nodes = (its.nodes[cpus == other],) if its.nodes else None
        return [place("web", cpus, nodes=nodes)] + ([place("box", cpus, "cgroup")] if its.box else [])

    if its.what == "once":
        return [to(one)]
    back: list[Action] = [release("web")] + ([release("box", "cgroup")] if its.box else [])
    slack = [align("web", 0.05)] if os.geteuid() == 0 else []
    return [to(one), slack, to(other), back, slack, to(one)]


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


def one_round(its: Round) -> Came:
    """In a child of this process."""
    reader, writer = os.pipe()
    sys.stdout.flush()
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
        except Exception:  # noqa: BLE001 - told by the status, and here
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    return Came(os.waitstatus_to_exitcode(status), msgspec.json.decode(told) if told else [])


def serve() -> None:
    """Until there are no more rounds."""
    for line in sys.stdin:
        came = one_round(msgspec.json.decode(line, type=Round))
        print(msgspec.json.encode(came).decode(), flush=True)


if __name__ == "__main__":
    serve()
