"""Putting back what a predecessor has noted: each kind, as it may be found by then."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.host import files
from sustain.host.cpuset import Cpuset
from sustain.schedulers.journal import Entry, Journal, Report, Value
from sustain.schedulers.packages import act
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.memory import apart, decode, encode
from sustain.schedulers.packages.per_thread import Of, process_of, thread_of
from sustain.schedulers.packages.settings import Affinity
from tests.host.cpusets import enter, own_cpuset
from tests.host.threaded import Program
from tests.schedulers.packages.groups import (
    BOTH,
    FIRST,
    SECOND,
    Located,
    as_found,
    bind,
    handle,
    place,
    process,
    running,
    where,
)

pytestmark = pytest.mark.skipif(len(BOTH) < 2, reason="this machine has one processor for us")
MIB = 1 << 20


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def cpuset() -> Iterator[Cpuset]:
    with own_cpuset(name="undo") as found:
        yield found


def restore(journal: Journal) -> Report:
    return Actuator(journal, Located()).restore()


def note_process(journal: Journal, program: Program, prior: frozenset[int], new: frozenset[int]) -> None:
    of = Of("web", "1", process(program).processes[0])
    target: dict[str, Value] = {**of.target(), "free": 0, "since": 0}
    journal.note(of.key(Affinity.kind), Affinity.kind, target, files.cpu_list(prior), files.cpu_list(new))


def test_noted_and_not_done(journal: Journal) -> None:
    with running() as program:
        note_process(journal, program, BOTH, FIRST)
        before = where(program.pid)
        assert [each.outcome for each in restore(journal).undone] == ["restored"]
        assert where(program.pid) == before
    assert journal.entries() == ()


def test_half_done(journal: Journal) -> None:
    with running() as program:
        program.start()
        before = where(program.pid)
        note_process(journal, program, BOTH, FIRST)
        bind(program.pid, FIRST)
        assert [each.outcome for each in restore(journal).undone] == ["restored"]
        assert where(program.pid) == before


def test_the_last_and_the_one_before_are_ours(journal: Journal) -> None:
    """It died between noting the second and setting it."""
    with running() as program:
        other = program.start()
        before = where(program.pid)
        for cpus in (FIRST, SECOND):
            note_process(journal, program, BOTH, cpus)
        bind(program.pid, FIRST)
        bind(other, SECOND)
        assert [each.outcome for each in restore(journal).undone] == ["restored"]
        assert where(program.pid) == before


def test_all_its_threads_were_set_by_somebody_else(journal: Journal) -> None:
    with running() as program:
        note_process(journal, program, BOTH, FIRST)
        bind(program.pid, SECOND)
        assert [each.outcome for each in restore(journal).undone] == ["changed"]
        assert set(where(program.pid).values()) == {SECOND}
    assert journal.entries() == ()


def test_the_process_has_ended(journal: Journal) -> None:
    with running() as program:
        note_process(journal, program, BOTH, FIRST)
    assert [each.outcome for each in restore(journal).undone] == ["gone"]
    assert journal.entries() == ()


def test_what_cannot_be_put_back_stays_noted(journal: Journal) -> None:
    nowhere = frozenset((4090,))
    with running() as program:
        note_process(journal, program, nowhere, FIRST)
        bind(program.pid, FIRST)
        (undone,) = restore(journal).undone
        assert undone.outcome == "failed"
        assert "1 threads are not as they were" in undone.problem
        assert len(journal.entries()) == 1


def test_a_cgroup_that_another_one_has_followed(journal: Journal, cpuset: Cpuset) -> None:
    target: dict[str, Value] = {
        "group": "box",
        "life": "1",
        "directory": str(cpuset.directory),
        "inode": cpuset.inode + 1,
    }
    cpuset.set_cpus(FIRST)
    journal.note("package-cpuset:1", "package-cpuset", target, files.cpu_list(BOTH), files.cpu_list(FIRST))
    assert [each.outcome for each in restore(journal).undone] == ["gone"]
    assert cpuset.own_cpus() == FIRST


def test_a_thread_is_bound_again_inside_of_its_cgroup_only_after_that(
    journal: Journal, cpuset: Cpuset
) -> None:
    """As a kernel before Linux 6.2 leaves it: with the cpuset the thread's own affinity is forgotten."""
    own = as_found(cpuset)
    with running() as program:
        enter(cpuset, program.pid)
        who = process(program).processes[0]
        cpuset.set_cpus(FIRST)
        target: dict[str, Value] = {
            "group": "box",
            "life": "1",
            "directory": str(cpuset.directory),
            "inode": cpuset.inode,
        }
        thread: dict[str, Value] = {**target, "thread": who.pid, "thread_started": who.start_ticks}
        kind = "package-cpuset-thread"
        journal.note(f"{kind}:1", kind, thread, files.cpu_list(SECOND), files.cpu_list(FIRST))
        journal.note("package-cpuset:1", "package-cpuset", target, files.cpu_list(own), files.cpu_list(FIRST))
        assert [each.outcome for each in restore(journal).undone] == ["restored", "restored"]
        assert as_found(cpuset) == own
        assert where(program.pid) == {who: SECOND}


def test_notes_of_what_has_gone_are_let_go_of(
    journal: Journal, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act, "_TIDY_S", 0.0)
    located = Located({"box": handle(cpuset)})
    actuator = Actuator(journal, located)
    with running() as stays:
        with running() as ends:
            bind(ends.start(), SECOND)
            located.handles.update(web=process(ends), db=process(stays))
            actuator.carry_out([place("web", FIRST), place("db", FIRST), place("box", FIRST, "cgroup")])
            assert len(journal.entries()) == 4
        assert actuator.carry_out([]) == []
        assert {each.target["group"] for each in journal.entries()} == {"db", "box"}
        assert {each.outcome for each in actuator.restore().undone} == {"restored"}


def test_names_of_entries() -> None:
    target: dict[str, Value] = {"pid": 7, "started": 8, "thread": 9, "thread_started": 10}
    entry = Entry("k", "x", target, "", ())
    assert (process_of(entry), thread_of(entry)) == ((7, 8), (9, 10))


@pytest.mark.parametrize(
    ("prior", "now", "lacking", "surplus"),
    [
        ({0: 100}, {1: 100}, {0: 100}, {1: 100}),
        ({0: 100, 1: 50}, {1: 150}, {0: 100}, {1: 100}),
        ({0: 100}, {0: 60, 1: 40}, {0: 40}, {1: 40}),
        ({0: 100}, {1: 50}, {0: 50}, {1: 50}),  # it uses less: all of that was on 0
        ({0: 80, 1: 20}, {1: 50}, {0: 40}, {1: 40}),  # four fifths
        ({0: 100}, {0: 100, 1: 300}, {}, {1: 300}),  # it has grown there itself
        ({0: 100}, {0: 20, 1: 300}, {0: 80}, {1: 300}),
        ({0: 100, 1: 50, 2: 50}, {1: 50, 2: 150}, {0: 100}, {2: 100}),  # what was on 1 stays there
        ({0: 100}, {}, {}, {}),
        ({}, {1: 100}, {}, {1: 100}),
    ],
)
def test_what_of_its_memory_goes_back(
    prior: dict[int, int], now: dict[int, int], lacking: dict[int, int], surplus: dict[int, int]
) -> None:
    def sizes(shares: dict[int, int]) -> dict[int, int]:
        return {node: size * MIB for node, size in shares.items()}

    assert apart(sizes(prior), sizes(now)) == (sizes(lacking), sizes(surplus))
    assert decode(encode(sizes(prior))) == sizes(prior)
