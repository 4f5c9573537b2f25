"""The loop: what a tick does, what a failing one leaves behind, and that everything is put back at the end."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain.clock import SystemClock
from sustain.errors import SustainError
from sustain.schedulers.alarms import Alarm
from sustain.schedulers.journal import Journal, Report
from sustain.schedulers.loop import Loop, Tick, next_start
from sustain.testing import FakeClock
from sustain.testing.scheduler import DialPolicy, Dials, DialScheduler, Turned, TurnPlan

DialLoop = Loop[Dials, int, TurnPlan, Turned]
DialTick = Tick[Dials, int, TurnPlan, Turned]


class Bench:
    """Two dials, a scheduler over them, and a loop that the test turns by hand."""

    def __init__(self, directory: Path) -> None:
        self.dials = directory / "dials"
        self.dials.mkdir()
        self.set(a=10, b=5)
        self.journal = directory / "journal"
        self.clock = FakeClock()
        self.said: list[str] = []
        self.scheduler = DialScheduler(self.dials, Journal(self.journal), DialPolicy(goal=3, step=2))
        self.loop: DialLoop = Loop(self.scheduler, self.clock, blind_after_s=60, tell=self.said.append)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            (self.dials / name).write_text(str(value))

    def values(self) -> dict[str, int]:
        return {path.name: int(path.read_text()) for path in self.dials.iterdir()}

    def break_at(self, step: str, error: Exception) -> None:
        def fault(at: str) -> None:
            if at == step:
                raise error

        self.scheduler.fault = fault

    def mend(self) -> None:
        self.scheduler.fault = lambda step: None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_tick_senses_decides_and_acts(bench: Bench) -> None:
    tick = bench.loop.tick()
    assert bench.values() == {"a": 8, "b": 3}
    assert tick.state == 2
    assert [effect.done for effect in tick.effects] == [True, True]
    bench.loop.tick()
    assert bench.scheduler.heard == list(tick.effects)
    assert bench.loop.last is not None
    assert (bench.loop.last.number, bench.loop.last.state) == (2, 3)
    assert (bench.loop.counts.actions, bench.loop.counts.refused) == (3, 0)


def test_a_dry_run_decides_and_changes_nothing(bench: Bench) -> None:
    loop: DialLoop = Loop(bench.scheduler, bench.clock, act=False)
    tick = loop.tick()
    assert tick.plan is not None
    assert [action.to_value for action in tick.plan.actions] == [8, 3]
    assert bench.values() == {"a": 10, "b": 5}


@pytest.mark.parametrize("step", ["sense", "decide", "act"])
@pytest.mark.parametrize("error", [SustainError("gone", hint="wait"), OSError("gone"), ValueError("defect")])
def test_a_tick_that_fails_is_not_the_end(bench: Bench, step: str, error: Exception) -> None:
    first = bench.loop.tick()
    bench.break_at(step, error)
    for _ in range(3):
        tick = bench.loop.tick()
        assert tick.problem
    assert bench.values() == {"a": 8, "b": 3}
    bench.mend()
    assert bench.loop.good is first
    assert not bench.loop.tick().problem
    assert bench.values() == {"a": 6, "b": 3}
    # Each effect is heard of once, however many ticks failed in between; each trouble is told once.
    assert bench.scheduler.heard == list(first.effects)
    assert sum(tick.problem in line for line in bench.said) == 1
    assert bench.said[-1] == "goes on"
    assert bench.loop.counts.failed == 3
    assert ("Traceback" in "".join(bench.said)) == isinstance(error, ValueError)


def test_an_action_that_does_not_come_off_is_counted(bench: Bench) -> None:
    seen = bench.scheduler.sense()
    bench.scheduler.sense = lambda: seen  # type: ignore[method-assign]
    (bench.dials / "a").unlink()
    bench.loop.tick()
    assert (bench.loop.counts.actions, bench.loop.counts.refused) == (2, 1)


def test_blind_for_long_it_puts_everything_back_once(bench: Bench) -> None:
    bench.loop.tick()
    bench.break_at("sense", SustainError("nothing to see"))
    bench.clock.advance(59)
    bench.loop.tick()
    assert bench.values() == {"a": 8, "b": 3}
    bench.clock.advance(2)
    bench.loop.tick()
    assert bench.values() == {"a": 10, "b": 5}
    bench.clock.advance(200)
    bench.loop.tick()
    assert bench.loop.counts.restores == 1
    bench.mend()
    bench.loop.tick()
    assert bench.values() == {"a": 8, "b": 3}


def test_what_was_not_put_back_the_last_time_is_remembered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(beat: Callable[[], None]) -> Report:
        raise SustainError("nobody is at home", hint="ring again")

    bench.loop.tick()
    with monkeypatch.context() as patch:
        patch.setattr(bench.scheduler, "restore", refuse)
        assert bench.loop.restore("test") == Report()
    assert bench.loop.left == ("cannot put back what was changed: nobody is at home",)
    with monkeypatch.context() as patch:
        patch.setattr(bench.scheduler, "_undo", lambda _: (_ for _ in ()).throw(OSError("it is stuck")))
        bench.loop.restore("test")
    assert bench.loop.left == ("a is not put back", "b is not put back")
    bench.loop.restore("test")
    assert (bench.loop.left, bench.values()) == ((), {"a": 10, "b": 5})


def test_one_that_puts_back_for_long_does_not_hang(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def slowly(beat: Callable[[], None]) -> Report:
        for _ in range(3):
            bench.clock.advance(100)
            beat()
            seen.append(bench.loop.beat_s)
        return Report()

    begun_s = bench.loop.beat_s
    monkeypatch.setattr(bench.scheduler, "restore", slowly)
    bench.loop.restore("test")
    assert [each - begun_s for each in seen] == [100, 200, 300]


def run(loop: DialLoop) -> threading.Thread:
    thread = threading.Thread(target=loop.run)
    thread.start()
    return thread


def until(event: threading.Event) -> None:
    assert event.wait(30)


def test_run_works_until_it_is_stopped_and_puts_back(bench: Bench) -> None:
    done = threading.Event()

    def look(loop: DialLoop, tick: DialTick) -> None:
        if tick.plan is not None and not tick.plan.actions:
            done.set()

    loop: DialLoop = Loop(bench.scheduler, SystemClock(), tell=bench.said.append, listeners=[look])
    thread = run(loop)
    until(done)
    assert bench.values() == {"a": 3, "b": 3}
    loop.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert bench.values() == {"a": 10, "b": 5}
    assert bench.said == ["put back 2 of 2 changes: the scheduler stops"]
    with Journal(bench.journal) as journal:  # it has let go
        assert journal.entries() == ()


def test_run_first_puts_back_what_a_killed_one_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.loop.tick()
    bench.set(b=4)  # by hand, meanwhile
    bench.scheduler.close()  # killed: nothing was put back
    scheduler = DialScheduler(bench.dials, Journal(bench.journal))
    seen: list[DialTick] = []

    def look(loop: DialLoop, tick: DialTick) -> None:
        seen.append(tick)
        loop.stop()

    loop: DialLoop = Loop(scheduler, SystemClock(), tell=bench.said.append, listeners=[look])
    loop.run()
    assert seen[0].observation is not None
    assert seen[0].observation.values == {"a": 10, "b": 4}
    assert bench.said[0] == "put back 1 of 2 changes: left by an agent that was killed"
    assert bench.values() == {"a": 10, "b": 4}


def test_hurry_ends_a_long_wait(bench: Bench) -> None:
    bench.scheduler.period_s = 3600
    ticks = [threading.Event(), threading.Event()]

    def look(loop: DialLoop, tick: DialTick) -> None:
        ticks[tick.number - 1].set()

    loop: DialLoop = Loop(bench.scheduler, SystemClock(), listeners=[look])
    thread = run(loop)
    until(ticks[0])
    loop.hurry()
    until(ticks[1])
    loop.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_alarms_that_fail_are_not_the_end(bench: Bench) -> None:
    bench.scheduler.period_s = bench.scheduler.least_wait_s = 0.01
    asked: list[int] = []

    def alarms() -> list[Alarm]:
        asked.append(len(asked))
        if len(asked) == 1:
            raise FileNotFoundError(2, "gone")
        if len(asked) < 4:
            raise SustainError("unknown")
        return []

    bench.scheduler.alarms = alarms  # type: ignore[method-assign]

    def look(loop: DialLoop, tick: DialTick) -> None:
        if tick.number == 6:
            loop.stop()

    loop: DialLoop = Loop(bench.scheduler, SystemClock(), tell=bench.said.append, listeners=[look])
    loop.run()
    assert loop.counts.ticks == 6
    told = [line for line in bench.said if "to be watched" in line]
    assert [line.rpartition(": ")[2] for line in told] == ["[Errno 2] gone", "unknown"]


@given(st.floats(0, 1e6), st.floats(0.001, 1e4), st.floats(0, 1e5))
def test_the_next_start_is_on_the_grid_and_not_in_the_past(
    started: float, period: float, late: float
) -> None:
    start, skipped = next_start(started, period, started + late)
    assert start == started + (skipped + 1) * period
    assert start >= started + late - 1e-6
    assert skipped == 0 or start - period < started + late + 1e-6


@pytest.mark.parametrize("error", [SustainError("DAMON stays", hint="ask later"), OSError("DAMON stays")])
def test_what_cannot_be_let_go_is_told_and_remembered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stuck() -> None:
        raise error

    monkeypatch.setattr(bench.scheduler, "close", stuck)
    bench.loop.stop()
    bench.loop.run()
    assert bench.loop.left == ("not all could be given back: DAMON stays",)
    assert any("DAMON stays" in line for line in bench.said)
