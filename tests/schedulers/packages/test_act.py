"""Groups of our own are given processors and get back exactly what they had, on the kernel of the machine that runs
this: threads of processes, and cgroups with a cpuset."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sustain.errors import HostError, JournalError
from sustain.host import affinity, files, processes, threads
from sustain.host.cpuset import Cpuset
from sustain.host.processes import Identity, identify
from sustain.schedulers.journal import Journal
from sustain.schedulers.packages import act
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.handles import CgroupHandle, ProcessHandle
from tests.host.cpusets import enter, own_cpuset
from tests.host.threaded import wait_until
from tests.schedulers.packages.groups import (
    BOTH,
    FIRST,
    SECOND,
    Located,
    align,
    as_found,
    bind,
    handle,
    place,
    process,
    release,
    running,
    slack,
    where,
)

pytestmark = pytest.mark.skipif(len(BOTH) < 2, reason="this machine has one processor for us")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j") as held:
        yield held


@pytest.fixture
def located() -> Located:
    return Located()


@pytest.fixture
def actuator(journal: Journal, located: Located) -> Actuator:
    return Actuator(journal, located)


@pytest.fixture
def cpuset() -> Iterator[Cpuset]:
    with own_cpuset(name="place") as found:
        yield found
        wait_until(lambda: not (found.directory / "cgroup.procs").read_text())


def outcomes(effects: object) -> list[tuple[str, int]]:
    return [(each.outcome, each.written) for each in effects]  # type: ignore[attr-defined]


# processes


def test_a_process_is_placed_moved_and_released(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    with running() as program:
        for _ in range(3):
            program.start(busy=True)
        located.handles["web"] = process(program)
        before = where(program.pid)
        assert outcomes(actuator.carry_out([place("web", FIRST)])) == [("done", 4)]
        assert set(where(program.pid).values()) == {FIRST}
        assert outcomes(actuator.carry_out([place("web", FIRST)])) == [("done", 0)], (
            "only what differs is written"
        )
        born = program.start()
        assert affinity.read(thread(born)) == FIRST
        assert outcomes(actuator.carry_out([place("web", SECOND)])) == [("done", 5)]
        assert set(where(program.pid).values()) == {SECOND}
        assert len(journal.entries()) == 1, "one entry for a process"
        assert outcomes(actuator.carry_out([release("web")])) == [("done", 5)]
        after = where(program.pid)
        assert {each: after[each] for each in before} == before
        assert after[thread(born)] == before[identity(program.pid)], "as it would have been born"
        assert journal.entries() == ()
        assert outcomes(actuator.carry_out([release("web")])) == [("done", 0)]


def test_a_thread_with_an_affinity_of_its_own_keeps_to_it(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    with running() as program:
        inside, outside, free = program.start(), program.start(), program.start()
        bind(inside, FIRST)
        bind(outside, SECOND)
        located.handles["web"] = process(program)
        before = where(program.pid)
        (effect,) = actuator.carry_out([place("web", FIRST)])
        assert (effect.outcome, effect.written) == ("done", 2)
        assert f"stay within it: 1: {outside}" in effect.detail
        now = where(program.pid)
        assert now[thread(inside)] == now[thread(free)] == FIRST
        assert now[thread(outside)] == SECOND
        assert outcomes(actuator.carry_out([release("web")])) == [("done", 2)]
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_threads_that_were_bound_to_where_it_goes_are_bound_there_afterwards(
    actuator: Actuator, located: Located
) -> None:
    """Their setting is what all are given, so only the journal can tell them apart."""
    with running() as program:
        bound = program.start()
        program.start()
        bind(bound, FIRST)
        located.handles["web"] = process(program)
        before = where(program.pid)
        actuator.carry_out([place("web", FIRST)])
        actuator.carry_out([release("web")])
        assert where(program.pid) == before


def test_a_process_that_starts_threads_meanwhile(actuator: Actuator, located: Located) -> None:
    with running() as program:
        located.handles["web"] = process(program)
        before = where(program.pid)[identity(program.pid)]
        end = threading.Event()

        def breed() -> None:
            kept = [program.start() for _ in range(20)]
            while not end.is_set():
                kept.append(program.start())
                program.end(kept.pop(0))

        breeder = threading.Thread(target=breed)
        breeder.start()
        try:
            for cpus in (FIRST, SECOND) * 5:
                (effect,) = actuator.carry_out([place("web", cpus)])
                assert effect.done, effect
                assert set(where(program.pid).values()) == {cpus}
            (effect,) = actuator.carry_out([release("web")])
            assert effect.done, effect
            assert set(where(program.pid).values()) == {before}
        finally:
            end.set()
            breeder.join()


def test_what_somebody_else_sets_meanwhile_is_left_alone(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    with running() as program:
        one = program.start()
        located.handles["web"] = process(program)
        prior = where(program.pid)[identity(program.pid)]
        actuator.carry_out([place("web", FIRST)])
        bind(one, SECOND)
        (effect,) = actuator.carry_out([release("web")])
        assert (effect.outcome, effect.written) == ("done", 1)
        assert "left alone: 1" in effect.detail
        assert where(program.pid) == {identity(program.pid): prior, thread(one): SECOND}
        bind(one, prior)
        actuator.carry_out([place("web", FIRST)])
        for tid in (program.pid, one):
            bind(tid, SECOND)
        (effect,) = actuator.carry_out([place("web", FIRST)])
        assert effect.outcome == "changed"
        (effect,) = actuator.carry_out([release("web")])
        assert effect.outcome == "changed"
        assert set(where(program.pid).values()) == {SECOND}
        assert journal.entries() == ()


def test_one_that_a_user_has_bound_elsewhere_is_refused(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    with running("taskset", "-c", str(min(SECOND))) as program:
        located.handles["web"] = process(program)
        (effect,) = actuator.carry_out([place("web", FIRST)])
        assert effect.outcome == "refused"
        assert f"bound to processors {min(SECOND)} by somebody else" in effect.detail
        assert set(where(program.pid).values()) == {SECOND}
        assert journal.entries() == ()


def test_a_child_that_was_started_meanwhile_is_free_again(actuator: Actuator, located: Located) -> None:
    script = "sleep 1000 & echo $!; read x; sleep 1000 & echo $!; read x"
    with Shell(script) as shell:
        older = shell.line()
        located.handles["web"] = shell.handle
        prior = where(shell.pid)[identity(shell.pid)]
        bind(older, FIRST)  # by a user, before
        tick = thread(older).start_ticks
        wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * threads.TICKS_PER_S > tick + 1)
        actuator.carry_out([place("web", FIRST)])
        shell.say()
        younger = shell.line()
        assert affinity.read(thread(younger)) == FIRST
        assert outcomes(actuator.carry_out([release("web")])) == [("done", 2)]
        assert affinity.read(thread(younger)) == prior
        assert affinity.read(thread(older)) == FIRST


def test_several_processes_of_a_group_one_of_which_has_ended(actuator: Actuator, located: Located) -> None:
    with running() as one, running() as other:
        with running() as third:
            gone = process(third).processes
        located.handles["web"] = ProcessHandle(process(one).processes + gone + process(other).processes)
        assert outcomes(actuator.carry_out([place("web", FIRST)])) == [("done", 2)]
        assert outcomes(actuator.carry_out([release("web")])) == [("done", 2)]
    located.handles["web"] = ProcessHandle(gone)
    assert [each.outcome for each in actuator.carry_out([place("web", FIRST)])] == ["gone"]


def test_a_group_that_is_not_there_or_is_another(actuator: Actuator, located: Located) -> None:
    with running() as program:
        who = process(program).processes[0]
        located.handles["web"] = ProcessHandle((Identity(who.pid, who.start_ticks + 1),))
        effects = actuator.carry_out([place("web", FIRST), place("other", FIRST), align("other", 0.01)])
        assert outcomes(effects) == [("gone", 0)] * 3
        assert set(where(program.pid).values()) != {FIRST}


def test_no_processor_of_these_is_there(actuator: Actuator, located: Located, journal: Journal) -> None:
    with running() as program:
        located.handles["web"] = process(program)
        before = where(program.pid)
        effects = actuator.carry_out([place("web", frozenset()), place("web", frozenset((4095,)))])
        assert outcomes(effects) == [("refused", 0)] * 2
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_a_thread_that_cannot_be_moved_takes_the_others_back(
    actuator: Actuator, located: Located, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as program:
        one, other = program.start(), program.start()
        located.handles["web"] = process(program)
        before = where(program.pid)
        write = affinity.write

        def refuse(
            who: Identity, cpus: frozenset[int], expected: frozenset[int] | None = None
        ) -> affinity.Outcome:
            if who.pid == other and cpus == FIRST:
                raise HostError("thread: Device or resource busy", hint="a deadline thread")
            return write(who, cpus, expected)

        monkeypatch.setattr(affinity, "write", refuse)
        (effect,) = actuator.carry_out([place("web", FIRST)])
        assert effect.outcome == "refused"
        assert "could not be set: 1" in effect.detail
        assert "deadline" in effect.detail
        assert where(program.pid) == before
        assert journal.entries() == ()
        del one


def test_what_cannot_be_noted_is_not_done(
    actuator: Actuator, located: Located, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalError("no space", hint="make room")

    with running() as program:
        located.handles["web"] = process(program)
        before = where(program.pid)
        monkeypatch.setattr(journal, "note", full)
        (effect,) = actuator.carry_out([place("web", FIRST)])
        assert (effect.outcome, effect.detail) == ("again later", "no space (make room)")
        assert where(program.pid) == before


def test_after_stop_nothing_is_begun(actuator: Actuator, located: Located) -> None:
    with running() as program:
        located.handles["web"] = process(program)
        before = where(program.pid)
        actuator.stop()
        assert outcomes(actuator.carry_out([place("web", FIRST)])) == [("again later", 0)]
        assert where(program.pid) == before


def test_what_has_no_turn_within_the_limit_comes_later(journal: Journal, located: Located) -> None:
    with running() as program:
        located.handles["web"] = process(program)
        effects = Actuator(journal, located, limit_s=0).carry_out([place("web", FIRST)])
        assert outcomes(effects) == [("again later", 0)]


# timers


def test_timers_are_let_be_late_and_are_as_before(
    actuator: Actuator, located: Located, journal: Journal
) -> None:
    if os.geteuid() != 0:
        pytest.skip("timers of others need root")
    with running() as program:
        own = program.start()
        Path(f"/proc/{own}/timerslack_ns").write_text("1234567")
        located.handles["web"] = process(program)
        before = slack(program.pid)
        assert before[own] == 1234567
        assert outcomes(actuator.carry_out([align("web", 0.05)])) == [("done", 1)]
        born = program.start()
        assert slack(program.pid) == {program.pid: 50_000_000, own: 1234567, born: 50_000_000}
        assert outcomes(actuator.carry_out([place("web", FIRST), align("web", None)])) == [
            ("done", 3),
            ("done", 2),
        ]
        assert slack(program.pid) == {**before, born: before[program.pid]}
        assert set(where(program.pid).values()) == {FIRST}, "only timers are as before"
        assert outcomes(actuator.carry_out([align("web", 0.05), release("web")])) == [
            ("done", 2),
            ("done", 5),
        ]
        assert slack(program.pid) == {**before, born: before[program.pid]}
        assert journal.entries() == ()


# cgroups


def test_a_cgroup_is_placed_moved_and_released(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with running() as program:
        program.start(busy=True)
        enter(cpuset, program.pid)
        located.handles["box"] = handle(cpuset)
        own, before = as_found(cpuset), where(program.pid)
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("done", 1)]
        assert set(where(program.pid).values()) == {FIRST} == {cpuset.cpus()}
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("done", 0)]
        assert outcomes(actuator.carry_out([place("box", SECOND, "cgroup")])) == [("done", 1)]
        assert set(where(program.pid).values()) == {SECOND}
        assert outcomes(actuator.carry_out([release("box", "cgroup")])) == [("done", 1)]
        assert (as_found(cpuset), where(program.pid)) == (own, before)
        assert journal.entries() == ()


def test_a_thread_of_a_cgroup_that_was_bound_is_bound_again(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with running() as program:
        enter(cpuset, program.pid)
        inside, outside = program.start(), program.start()
        bind(inside, FIRST)
        bind(outside, SECOND)
        located.handles["box"] = handle(cpuset)
        before = where(program.pid)
        (effect,) = actuator.carry_out([place("box", FIRST, "cgroup")])
        assert (effect.outcome, effect.detail) == (
            "done",
            "threads that were bound to others run here meanwhile: 1",
        )
        assert set(where(program.pid).values()) == {FIRST}
        (effect,) = actuator.carry_out([release("box", "cgroup")])
        assert effect.done, effect
        assert where(program.pid) == before
        assert journal.entries() == ()


def test_a_cgroup_that_somebody_else_has_set_since_is_left_alone(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    located.handles["box"] = handle(cpuset)
    actuator.carry_out([place("box", FIRST, "cgroup")])
    cpuset.set_cpus(SECOND)
    effects = actuator.carry_out([place("box", FIRST, "cgroup"), release("box", "cgroup")])
    assert outcomes(effects) == [("changed", 0), ("changed", 0)]
    assert f"set it to {min(SECOND)} since" in effects[0].detail
    assert cpuset.own_cpus() == SECOND
    assert journal.entries() == ()
    effects = actuator.carry_out([place("box", FIRST, "cgroup")])
    assert outcomes(effects) == [("refused", 0)], "what a user has set is a limit from then on"


def test_a_cgroup_that_vanishes(actuator: Actuator, located: Located, journal: Journal) -> None:
    with own_cpuset(name="other") as other:
        located.handles["box"] = handle(other)
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("done", 1)]
        located.handles["another"] = CgroupHandle(other.directory, other.inode + 1)
    effects = actuator.carry_out(
        [place("another", FIRST, "cgroup"), place("box", SECOND, "cgroup"), release("box", "cgroup")]
    )
    assert outcomes(effects) == [("gone", 0)] * 3
    assert journal.entries() == ()


def test_a_cgroup_without_a_cpuset_is_refused_or_bound_thread_by_thread(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as program, running() as another:
        for each in (program, another):
            enter(cpuset, each.pid)
        located.handles["box"] = handle(cpuset)
        monkeypatch.setattr(Cpuset, "enabled", False)
        monkeypatch.setattr(Cpuset, "version", 2, raising=False)
        (effect,) = Actuator(journal, located).carry_out([place("box", FIRST, "cgroup")])
        assert (effect.outcome, effect.written) == ("refused", 0)
        assert "no cpuset of its own" in effect.detail
        actuator = Actuator(journal, located, without_cpuset="threads")
        before = {each.pid: where(each.pid) for each in (program, another)}
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("done", 2)]
        assert {*where(program.pid).values(), *where(another.pid).values()} == {FIRST}
        assert outcomes(actuator.carry_out([release("box", "cgroup")])) == [("done", 2)]
        assert {each.pid: where(each.pid) for each in (program, another)} == before


def test_one_process_that_somebody_else_has_set_does_not_keep_the_others(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as program, running() as another:
        for each in (program, another):
            enter(cpuset, each.pid)
        located.handles["box"] = handle(cpuset)
        monkeypatch.setattr(Cpuset, "enabled", False)
        actuator = Actuator(journal, located, without_cpuset="threads")
        before = where(program.pid)
        actuator.carry_out([place("box", FIRST, "cgroup")])
        bind(another.pid, SECOND)
        (effect,) = actuator.carry_out([place("box", BOTH, "cgroup")])
        assert (effect.outcome, effect.written) == ("done", 1)
        assert f"else has set since are left alone: 1: {another.pid}" in effect.detail
        assert set(where(program.pid).values()) == {BOTH}
        assert set(where(another.pid).values()) == {SECOND}
        bind(program.pid, SECOND)
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("changed", 0)]
        bind(program.pid, BOTH)
        assert actuator.carry_out([release("box", "cgroup")])[0].done
        assert where(program.pid) == before
        assert set(where(another.pid).values()) == {SECOND}
        assert journal.entries() == ()


def test_a_process_that_has_left_its_parent_in_such_a_cgroup_is_free_again(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo $$; read x; (sh -c 'echo $$; exec sleep 1000 >&-' &); read x"
    with Shell(script) as shell:
        shell.line()
        enter(cpuset, shell.pid)
        located.handles["box"] = handle(cpuset)
        prior = where(shell.pid)[identity(shell.pid)]
        monkeypatch.setattr(Cpuset, "enabled", False)
        actuator = Actuator(journal, located, without_cpuset="threads")
        assert outcomes(actuator.carry_out([place("box", FIRST, "cgroup")])) == [("done", 1)]
        shell.say()
        daemon = shell.line()
        wait_until(lambda: shell.pid not in processes.parents(daemon))
        assert affinity.read(thread(daemon)) == FIRST
        assert outcomes(actuator.carry_out([release("box", "cgroup")])) == [("done", 2)]
        assert affinity.read(thread(daemon)) == prior
        assert journal.entries() == ()


LEAVES = "echo $$; read x; (sh -c 'echo $$; exec sleep 1000 >&-' &); read x"  # a process without its parent


def test_one_that_was_started_in_such_a_cgroup_goes_where_the_others_go(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Shell(LEAVES) as shell, boxed(shell, located, cpuset, monkeypatch):
        actuator = Actuator(journal, located, without_cpuset="threads")
        prior = affinity.read(thread(shell.pid))
        actuator.carry_out([place("box", FIRST, "cgroup")])
        daemon = left(shell)
        (effect,) = actuator.carry_out([place("box", BOTH, "cgroup")])
        assert (effect.outcome, effect.written) == ("done", 2), effect.detail
        assert affinity.read(thread(daemon)) == BOTH
        assert {each.prior for each in journal.entries()} == {files.cpu_list(prior or ())}
        assert actuator.carry_out([release("box", "cgroup")])[0].done
        assert affinity.read(thread(daemon)) == prior
        assert journal.entries() == ()


def test_what_it_was_started_with_is_not_what_it_gets_back(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("timers of others need root")
    with Shell(LEAVES) as shell, boxed(shell, located, cpuset, monkeypatch):
        actuator = Actuator(journal, located)
        before = slack(shell.pid)[shell.pid]
        actuator.carry_out([align("box", 0.05)])
        daemon = left(shell)
        assert slack(daemon) == {daemon: 50_000_000}
        assert actuator.carry_out([align("box", 0.02)])[0].done
        assert slack(daemon) == {daemon: 20_000_000}
        assert actuator.carry_out([align("box", None)])[0].done
        assert slack(daemon) == {daemon: before}
        assert journal.entries() == ()


def test_one_whose_parent_has_ended_long_ago_is_free_again(
    journal: Journal, located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(act, "_TIDY_S", 0.0)
    with Shell(LEAVES) as shell, boxed(shell, located, cpuset, monkeypatch):
        actuator = Actuator(journal, located, without_cpuset="threads")
        prior = affinity.read(thread(shell.pid))
        actuator.carry_out([place("box", FIRST, "cgroup")])
        daemon = left(shell)
        shell.say()
        wait_until(lambda: identify(shell.pid) is None)
        actuator.carry_out([])
        assert affinity.read(thread(daemon)) == FIRST
        assert len(journal.entries()) == 1
        actuator.carry_out([place("box", FIRST, "cgroup")])
        (entry,) = journal.entries()
        assert entry.target["pid"] == daemon, "which has taken it over"
        actuator.carry_out([release("box", "cgroup")])
        assert affinity.read(thread(daemon)) == prior
        assert journal.entries() == ()
        actuator.carry_out([place("box", FIRST, "cgroup")])
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: identify(daemon) is None)
        actuator.carry_out([])
        assert journal.entries() == (), "nobody is left that it speaks for"


# everything at the end


def test_everything_is_put_back_at_the_end(
    actuator: Actuator, located: Located, journal: Journal, cpuset: Cpuset
) -> None:
    with running() as program, running() as boxed:
        bound = boxed.start()
        bind(program.start(), SECOND)
        enter(cpuset, boxed.pid)
        bind(bound, SECOND)
        located.handles.update(web=process(program), box=handle(cpuset))
        before = (as_found(cpuset), where(program.pid), where(boxed.pid))
        actuator.carry_out([place("web", FIRST), place("box", FIRST, "cgroup"), align("web", 0.01)])
        assert (as_found(cpuset), where(program.pid), where(boxed.pid)) != before
        beats: list[int] = []
        report = actuator.restore(lambda: beats.append(1))
        assert {each.outcome for each in report.undone} == {"restored"}, report
        assert beats
        assert (as_found(cpuset), where(program.pid), where(boxed.pid)) == before
        assert journal.entries() == ()


def test_what_nobody_here_knows_is_said_and_kept(actuator: Actuator, journal: Journal) -> None:
    journal.note("x", "made-up", {}, 1, 2)
    (undone,) = actuator.restore().undone
    assert (undone.outcome, undone.problem) == ("failed", "nothing here puts back a made-up")
    assert len(journal.entries()) == 1
    journal.forget("x")


def thread(tid: int) -> Identity:
    found = threads.one(tid)
    assert found is not None
    return found.who


def identity(pid: int) -> Identity:
    found = identify(pid)
    assert found is not None
    return found


@contextlib.contextmanager
def boxed(
    shell: "Shell", located: Located, cpuset: Cpuset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """It runs in the cgroup of the group "box", which is taken for one without a cpuset."""
    shell.line()
    enter(cpuset, shell.pid)
    located.handles["box"] = handle(cpuset)
    with monkeypatch.context() as patch:
        patch.setattr(Cpuset, "enabled", False)
        yield


def left(shell: "Shell") -> int:
    """A process that it starts now, and that has left it."""
    shell.say()
    daemon = shell.line()
    wait_until(lambda: shell.pid not in processes.parents(daemon))
    return daemon


class Shell:
    """A script that says lines, and goes on at each one that it is told."""

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    @property
    def handle(self) -> ProcessHandle:
        return ProcessHandle((identity(self.pid),))

    def say(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()
        wait_until(lambda: identify(self.pid) is None)
