"""How memory follows and goes back, piece by piece, on made-up nodes; real memory moves in the lab's machine."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError, JournalError
from sustain.host import move_pages
from sustain.host.processes import Identity, identify
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages import memory
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.handles import ProcessHandle
from sustain.schedulers.packages.memory import PIECE_BYTES, Memory, Pace
from tests.schedulers.packages.groups import BOTH, FIRST, Located, place, process, release, running, where

MIB = 1 << 20
FAST = 1e15


class Nodes:
    """What a process has on each; `stuck` of it does not move."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = {int(node[1:]): size * MIB for node, size in sizes.items()}
        self.stuck = 0
        self.steps = 0
        self.refuses = False

    def of_process(self, pid: int, root: Path = Path("/")) -> dict[int, int]:
        return {node: size for node, size in self.sizes.items() if size}

    def nodes(self, root: Path = Path("/")) -> dict[int, object]:
        return {}

    def mover(self, who: Identity, sources: Iterable[int], target: int, root: Path) -> "Mover":
        return Mover(self, set(sources) - {target}, target)


class Mover:
    def __init__(self, host: Nodes, sources: set[int], target: int) -> None:
        self._host, self._sources, self._target = host, sources, target

    def step(self, budget_bytes: int) -> move_pages.Moved:
        host = self._host
        host.steps += 1
        if host.refuses:
            raise HostError("not allowed", hint="be root")
        came = move_pages.Moved()
        for source in sorted(self._sources):
            size = min(budget_bytes - came.moved_bytes, max(0, host.sizes.get(source, 0) - host.stuck))
            host.sizes[source] = host.sizes.get(source, 0) - size
            host.sizes[self._target] = host.sizes.get(self._target, 0) + size
            came.moved_bytes += size
        came.done = came.moved_bytes < budget_bytes
        if came.done and host.stuck:
            came.stayed_bytes = {16: host.stuck}
        return came


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes(n0=40, n1=2)
    monkeypatch.setattr(memory, "numa_memory", made)
    monkeypatch.setattr(memory, "Mover", made.mover)
    return made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def located() -> Located:
    who = identify(os.getpid())
    assert who is not None
    return Located({"web": ProcessHandle((who,))})


def test_it_follows_is_noted_before_and_goes_back(host: Nodes, journal: Journal, located: Located) -> None:
    before = dict(host.sizes)
    actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
    (effect,) = actuator.carry_out([place("web", BOTH, nodes=(1,))])
    assert (effect.outcome, effect.moved_bytes) == ("done", 40 * MIB)
    assert host.sizes == {0: 0, 1: 42 * MIB}
    (entry,) = journal.entries()
    assert (entry.prior, entry.sets) == (f"0:{40 * MIB} 1:{2 * MIB}", ("1",))
    assert actuator.carry_out([release("web")])[0].done
    assert host.sizes == before
    assert journal.entries() == ()


def test_a_call_moves_no_more_than_its_time_and_pace_allow(
    host: Nodes, journal: Journal, located: Located
) -> None:
    pace = 100 * MIB
    actuator = Actuator(journal, located, memory_bytes_per_s=pace, memory_limit_s=0.1)
    begun_s = time.monotonic()
    moved: list[float] = []
    while True:
        (effect,) = actuator.carry_out([place("web", BOTH, nodes=(1,))])
        assert effect.moved_bytes is not None
        moved.append(effect.moved_bytes)
        assert moved[-1] <= pace * (time.monotonic() - begun_s) + PIECE_BYTES
        if effect.done:
            break
        assert effect.outcome == "again later"
        assert "on its way" in effect.detail
    assert moved[-1] == 40 * MIB
    assert moved == sorted(moved)
    assert len(moved) > 2


def test_what_cannot_be_moved_stays_and_is_said(host: Nodes, journal: Journal, located: Located) -> None:
    host.stuck = 5 * MIB
    (effect,) = Actuator(journal, located, memory_bytes_per_s=FAST).carry_out(
        [place("web", BOTH, nodes=(1,))]
    )
    assert (effect.outcome, effect.moved_bytes) == ("done", 35 * MIB)
    assert "memory that stays: process" in effect.detail
    host.sizes, host.stuck, host.refuses = {0: 40 * MIB}, 0, True
    other = Actuator(journal, located, memory_bytes_per_s=FAST)
    (effect,) = other.carry_out([place("web", BOTH, nodes=(1,))])
    assert (effect.outcome, effect.moved_bytes) == ("done", 0)
    assert "memory that stays: not allowed (be root)" in effect.detail


def test_where_it_is_already_nothing_is_noted(host: Nodes, journal: Journal, located: Located) -> None:
    actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
    (effect,) = actuator.carry_out([place("web", BOTH, nodes=(0, 1))])
    assert (effect.outcome, effect.moved_bytes, host.steps) == ("done", 0, 0)
    assert journal.entries() == ()


def test_at_a_pace_of_nothing_it_stays(host: Nodes, journal: Journal, located: Located) -> None:
    (effect,) = Actuator(journal, located, memory_bytes_per_s=0).carry_out([place("web", BOTH, nodes=(1,))])
    assert (effect.outcome, effect.moved_bytes, host.steps) == ("done", None, 0)


def test_what_cannot_be_noted_is_not_moved(
    host: Nodes, journal: Journal, located: Located, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalError("no space", hint="make room")

    monkeypatch.setattr(journal, "note", full)
    (effect,) = Actuator(journal, located, memory_bytes_per_s=FAST).carry_out(
        [place("web", BOTH, nodes=(1,))]
    )
    assert (effect.outcome, host.steps) == ("done", 0)
    assert "memory that stays: no space (make room)" in effect.detail


def test_moved_on_and_then_back_is_where_it_was_first(
    host: Nodes, journal: Journal, located: Located
) -> None:
    before = dict(host.sizes)
    actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
    for nodes in ((1,), (2,)):
        assert actuator.carry_out([place("web", BOTH, nodes=nodes)])[0].done
    assert host.sizes[2] == 42 * MIB
    assert [each.outcome for each in actuator.restore().undone] == ["restored"]
    assert {node: size for node, size in host.sizes.items() if size} == before
    assert journal.entries() == ()


def test_it_goes_back_over_calls_and_is_called_off_by_another_place(
    host: Nodes, journal: Journal, located: Located
) -> None:
    actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
    actuator.carry_out([place("web", BOTH, nodes=(1,))])
    slow = Actuator(journal, located, memory_bytes_per_s=1024, memory_limit_s=0.01)
    assert slow.carry_out([release("web")])[0].done, "its threads are free at once"
    while not host.sizes[0]:  # a busy machine may have had no time for a first piece
        slow.carry_out([])
    assert host.sizes == {0: PIECE_BYTES, 1: 42 * MIB - PIECE_BYTES}
    assert len(journal.entries()) == 1
    (effect,) = slow.carry_out([place("web", BOTH, nodes=(1,))])
    assert effect.outcome == "again later"
    assert [each.outcome for each in actuator.restore().undone] == ["restored"]
    assert host.sizes == {0: 40 * MIB, 1: 2 * MIB}


def test_what_is_measured_without_it_waits_until_it_is_back(host: Nodes, journal: Journal) -> None:
    with running() as program:
        located = Located({"web": process(program)})
        before = where(program.pid)
        Actuator(journal, located, memory_bytes_per_s=FAST).carry_out([place("web", FIRST, nodes=(1,))])
        slow = Actuator(journal, located, memory_bytes_per_s=200 * MIB, memory_limit_s=0.01)
        again = 0
        while not (effect := slow.carry_out([release("web", purpose="measure")])[0]).done:
            assert effect.outcome == "again later"
            assert "its memory goes back first" in effect.detail
            assert set(where(program.pid).values()) == {FIRST}
            again += 1
        assert again > 2
        assert host.sizes == {0: 40 * MIB, 1: 2 * MIB}
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_memory_that_cannot_go_back_holds_up_no_trial(host: Nodes, journal: Journal) -> None:
    with running() as program:
        located = Located({"web": process(program)})
        before = where(program.pid)
        actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
        actuator.carry_out([place("web", FIRST, nodes=(1,))])
        host.refuses = True
        effects = [actuator.carry_out([release("web", purpose="measure")])[0] for _ in range(2)]
        assert [each.outcome for each in effects] == ["again later", "done"]
        assert where(program.pid) == before
        assert [each.kind for each in journal.entries()] == [memory.KIND], "it is tried again at the end"


def test_one_piece_ends_it_when_all_is_to_stop(host: Nodes, journal: Journal) -> None:
    who = identify(os.getpid())
    assert who is not None
    stop = threading.Event()
    its = Memory(journal, Pace(FAST, stop))
    its.to("web", "1", [who], [1])
    stop.set()
    its.go_on(60)
    assert host.steps == 0
    job = its.job("web", "1")
    assert job is not None
    assert not job.done


def test_placed_again_after_a_release_it_is_looked_at_anew(
    host: Nodes, journal: Journal, located: Located
) -> None:
    actuator = Actuator(journal, located, memory_bytes_per_s=FAST)
    host.sizes = {1: 40 * MIB}
    assert actuator.carry_out([place("web", BOTH, nodes=(1,))])[0].moved_bytes == 0
    actuator.carry_out([release("web")])
    host.sizes = {0: 40 * MIB}
    assert actuator.carry_out([place("web", BOTH, nodes=(1,))])[0].moved_bytes == 40 * MIB
