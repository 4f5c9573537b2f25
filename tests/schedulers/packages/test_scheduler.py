"""The scheduler in its loop over a made-up host: what is read rarely, what is kept, what is watched, and that all of it
is put back."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sustain.errors import ConfigError, HostError, UnknownTarget
from sustain.schedulers.journal import Report
from sustain.schedulers.loop import Loop, Tick, no_beat
from sustain.schedulers.packages.findings import Findings
from sustain.schedulers.packages.model import Action, Effect, Observation, Release
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.scheduler import Packages
from sustain.schedulers.packages.sense import Host
from sustain.testing import FakeClock
from tests.schedulers.packages.machine import Group, Machine

_PERIOD_S = 10.0
_SOON = Policy(pack_after_s=30.0, spread_after_s=10.0, window_s=40.0, settle_s=10.0, pairs=1)


class Rig:
    """Sensor and actuator over a made-up host, and the loop that the test turns by hand."""

    def __init__(
        self, policy: Policy = _SOON, acts: bool = True, directory: Path | None = None, **fields: Any
    ) -> None:
        groups = {"web": Group(use=0.5), "db": Group(use=1.0)}
        self.machine = Machine(groups=groups, policy=policy, **fields)
        self.clock = FakeClock()
        self.host = Host("here", "a made-up host", virtual=False)
        self.asked: list[frozenset[int]] = []  # which packages were said to be parked, at each look
        self.findings = Findings(directory / "findings.json" if directory else None, "here", self.clock)
        self.closed: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.later = False
        self.scheduler = Packages(policy, _PERIOD_S, self, self._Actuator(self) if acts else None)
        self.loop: Any = Loop(self.scheduler, self.clock, act=acts, blind_after_s=60)

    # the sensor

    def read(self, parked: Collection[int] = frozenset()) -> Observation:
        if "read" in self.fails:
            raise self.fails["read"]
        self.asked.append(frozenset(parked))
        findings, verdicts, _ = self.findings.read()
        seen = self.machine.look()
        fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
        return Observation(
            **(fields | {"findings": seen.findings + findings, "verdicts": seen.verdicts + verdicts})
        )

    def close(self) -> None:
        self.closed.append("sensor")

    class _Actuator:
        def __init__(self, rig: "Rig") -> None:
            self.rig = rig

        def carry_out(self, actions: Iterable[Action]) -> Sequence[Effect]:
            if self.rig.later:
                return [Effect(action=each, outcome="again later") for each in actions]
            return [self.rig.machine.act(each) for each in actions]

        def restore(self, beat: Callable[[], None] = no_beat) -> Report:
            for name, group in self.rig.machine.groups.items():
                if group.found is not None:
                    said = {"kind": "cgroup", "purpose": "revert", "reason": ""}
                    self.rig.machine.act(Release(group=name, life=group.life, **said))  # type: ignore[arg-type]
            return Report()

        def close(self) -> None:
            self.rig.closed.append("actuator")

    def tick(self) -> Tick[Any, Any, Any, Any]:
        self.machine.run(_PERIOD_S)
        self.clock.advance(_PERIOD_S)
        found: Tick[Any, Any, Any, Any] = self.loop.tick()
        return found

    def until(
        self, done: Callable[[Tick[Any, Any, Any, Any]], bool], most: int = 300
    ) -> Tick[Any, Any, Any, Any]:
        for _ in range(most):
            tick = self.tick()
            assert not tick.problem, tick.problem
            if done(tick):
                return tick
        raise AssertionError(f"not within {most} ticks: {tick.plan.verdict}")

    @property
    def free(self) -> bool:
        return all(group.cpus is None and group.found is None for group in self.machine.groups.values())


def packed(rig: Rig) -> Tick[Any, Any, Any, Any]:
    """Until a trial has ended with a package that stays empty."""
    return rig.until(lambda tick: bool(tick.plan.judged))


def test_a_package_is_emptied_measured_and_its_verdict_kept() -> None:
    rig = Rig()
    tick = packed(rig)
    (verdict,) = tick.plan.judged
    assert verdict.kept
    _, kept, _ = rig.findings.read()  # at once
    assert [(each.package, each.saving) for each in kept] == [(verdict.package, verdict.saving)]
    (parked,) = tick.state.parked
    assert all(cpu not in rig.machine.cpus_of(parked) for cpu in rig.machine.groups["web"].cpus or ())
    rig.tick()
    assert len(rig.findings.read()[1]) == 1


def test_the_next_run_knows_what_the_last_one_found(tmp_path: Path) -> None:
    packed(Rig(directory=tmp_path))
    rig = Rig(directory=tmp_path)
    tick = rig.until(lambda tick: bool(tick.state.parked))
    assert len(tick.observation.verdicts) == 1
    assert tick.plan.trial is None or tick.plan.trial.unit == ""  # nothing is measured again


def test_the_sensor_is_told_which_packages_are_kept_empty() -> None:
    rig = Rig()
    tick = packed(rig)
    rig.tick()
    assert rig.asked[0] == frozenset()
    assert rig.asked[-1] == frozenset(tick.state.parked)
    assert len(rig.asked[-1]) == 1


def test_what_a_look_proves_is_kept_also_by_who_only_looks() -> None:
    rig = Rig(acts=False, independence=None)
    rig.machine.groups["web"].cpus = rig.machine.groups["db"].cpus = rig.machine.cpus_of(0)
    rig.until(lambda tick: bool(tick.plan.proved))
    assert rig.findings.read()[0] == ()
    rig.tick()
    found, _, _ = rig.findings.read()
    assert [(each.package, each.state, each.independence) for each in found] == [(1, "pc6", "independent")]


def test_what_cannot_be_kept_is_said_and_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rig = Rig(acts=False, independence=None, directory=tmp_path / "file")
    rig.machine.groups["web"].cpus = rig.machine.groups["db"].cpus = rig.machine.cpus_of(0)
    rig.until(lambda tick: bool(tick.plan.proved))
    tick = rig.tick()
    assert any("what was found out is not kept" in each for each in tick.plan.problems)
    rig.scheduler.close()
    assert rig.closed == ["sensor"]


def test_processors_are_watched_while_a_package_is_kept_empty() -> None:
    rig = Rig()
    rig.tick()
    assert list(rig.scheduler.alarms()) == []
    packed(rig)
    (alarm,) = rig.scheduler.alarms()
    assert alarm.path == Path("/proc/pressure/cpu")
    assert (alarm.stall_s, alarm.window_s) == (pytest.approx(0.4), 2.0)
    rig.loop.restore("the test wants it")
    assert list(rig.scheduler.alarms()) == []


def test_without_a_limit_of_pressure_nothing_is_watched() -> None:
    rig = Rig(Policy(pack_after_s=30.0, spread_after_s=10.0, pressure_limit=1.0, window_s=40.0, pairs=1))
    packed(rig)
    assert list(rig.scheduler.alarms()) == []


def test_what_was_put_back_is_not_taken_for_somebody_elses() -> None:
    """After a blind time everything is put back; then it begins anew, and packs again."""
    rig = Rig()
    packed(rig)
    assert not rig.free
    rig.fails["read"] = HostError("/proc/stat: gone", hint="")
    for _ in range(8):
        rig.tick()
    assert rig.loop.counts.restores == 1
    assert rig.free
    del rig.fails["read"]
    tick = rig.tick()
    assert tick.state.parked == ()
    assert not any("somebody else" in each.why for each in tick.plan.left)
    rig.until(lambda tick: bool(tick.state.parked))


def test_what_is_to_be_done_later_is_done_soon() -> None:
    rig = Rig()
    tick = rig.until(lambda tick: bool(tick.plan.actions))
    assert tick.wait_s == _PERIOD_S
    rig = Rig()
    rig.later = True
    tick = rig.until(lambda tick: bool(tick.plan.actions))
    assert tick.wait_s == rig.scheduler.least_wait_s < _PERIOD_S


def test_what_watching_makes_likely_is_said_and_not_believed() -> None:
    rig = Rig(acts=False, independence=None, coordinated=True)
    rig.machine.groups.clear()
    for _ in range(3):
        rig.tick()  # all idle
    rig.machine.groups["web"] = Group(use=7.0, cpus=rig.machine.cpus_of(0))
    rig.tick()
    tick = rig.until(lambda tick: bool(rig.scheduler.ask("plan", {}, tick)["host"]["likely"]))
    (said,) = rig.scheduler.ask("plan", {}, tick)["host"]["likely"]
    assert (said["package"], said["state"]) == (1, "pc6")
    assert "it looks coordinated" in rig.scheduler.ask("explain", {"name": "1"}, tick)["text"]
    assert "likely" not in rig.scheduler.ask("explain", {"name": "0"}, tick)["text"]
    assert tick.plan.seen.findings == ()


def test_without_a_journal_it_only_looks() -> None:
    rig = Rig(acts=False)
    tick = rig.until(lambda tick: bool(tick.plan.actions))
    assert tick.effects == ()
    assert rig.free
    assert rig.scheduler.restore() == Report()


def test_it_answers_what_is_asked() -> None:
    rig = Rig()
    tick = packed(rig)
    plan = rig.scheduler.ask("plan", {}, tick)
    assert plan["plan"]["verdict"] == tick.plan.verdict
    assert plan["host"]["title"] == "a made-up host"
    assert [each["source"] for each in plan["host"]["packages"]] == ["perf", "perf"]
    (parked,) = tick.state.parked
    text = rig.scheduler.ask("explain", {"name": str(parked)}, tick)["text"]
    assert "kept empty    yes, by us" in text
    assert "group           web" in rig.scheduler.ask("explain", {"name": "web"}, tick)["text"]
    with pytest.raises(UnknownTarget, match="nobody"):
        rig.scheduler.ask("explain", {"name": "nobody"}, tick)
    with pytest.raises(ConfigError, match="no such question"):
        rig.scheduler.ask("why", {}, tick)


def test_it_lets_go_of_both() -> None:
    rig = Rig()
    rig.tick()
    rig.scheduler.close()
    assert sorted(rig.closed) == ["actuator", "sensor"]
