"""The steps of a trial, and what its samples are taken for."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.saving import Sample
from sustain.schedulers.packages.state import Trial
from sustain.schedulers.packages.trial import advance, again, begin, judge, parks, sampled
from tests.schedulers.packages.machine import Group, Machine

POLICY = Policy()


def trial(saving: float, noise: float, seed: int = 4) -> Trial:
    random = np.random.default_rng(seed)
    samples = []
    for at in range(24):
        run = at // 6
        value = 100 - saving * (run % 2) + noise * random.standard_normal()
        samples.append(Sample(10.0 * at, run % 2 == 1, value, 4.0, run))
    return replace(begin(0, "W", False, 0.0, 2), samples=tuple(samples))


def test_a_saving_that_may_be_nothing_is_not_kept() -> None:
    sure = judge(trial(10.0, 2.0), 1.0, POLICY)
    assert sure is not None
    assert sure.kept
    unsure = judge(trial(10.0, 40.0), 1.0, POLICY)
    assert unsure is not None
    assert unsure.saving > POLICY.least_saving_w  # large enough, were it true
    assert not unsure.kept
    assert "it may be nothing" in unsure.detail


def test_a_saving_that_is_too_small_is_not_kept() -> None:
    small = judge(trial(1.0, 0.1), 1.0, POLICY)
    assert small is not None
    assert small.low > 0
    assert not small.kept


def test_steps_and_when_the_package_is_empty() -> None:
    whole = begin(0, "W", False, 0.0, 2)
    assert whole.steps == ("off", "pack", "settle", "on", "unpack", "settle", "off", "pack", "settle", "on")
    empty = [parks(replace(whole, steps=whole.steps[at:])) for at in range(len(whole.steps))]
    assert empty == [False, True, True, True, False, False, False, True, True, True]
    anew = again(0, "W", 0.0)
    assert [parks(replace(anew, steps=anew.steps[at:])) for at in range(5)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert begin(0, "W", True, 0.0, 2).steps == begin(0, "", False, 0.0, 2).steps == ("pack",)


def test_each_step_waits_for_what_it_is_for() -> None:
    seen = Machine(groups={"a": Group(1.0)}).look()
    moving = Trial(0, "W", ("pack", "settle", "on"), seen.now_s - 5.0, 0.0, among=(0, 1))
    assert advance(moving, seen, 1.0, 3, 0.0, POLICY).trial == moving
    settles = advance(moving, seen, 1.0, 0, 0.0, POLICY).trial
    assert settles is not None
    assert settles.steps == ("settle", "on")
    assert settles.since_s == seen.now_s
    late = replace(moving, since_s=seen.now_s - 400.0)
    assert advance(late, seen, 1.0, 3, 200.0, POLICY).trial is not None  # their memory takes so long
    ended = advance(late, seen, 1.0, 3, 0.0, POLICY)  # what was not moved is not measured
    assert (ended.ending, ended.verdict) == ("undone", None)
    assert "3 groups could not be moved" in ended.why


def test_packages_that_come_or_go_end_it_without_a_verdict() -> None:
    machine = Machine(packages=3)
    first = advance(Trial(0, "W", ("on",), machine.now_s, 0.0), machine.look(), 1.0, 0, 0.0, POLICY).trial
    assert first is not None
    seen = machine.look()
    fewer = msgspec.structs.replace(seen, packages=seen.packages[:2])
    ended = advance(first, fewer, 1.0, 0, 0.0, POLICY)
    assert (ended.ending, ended.verdict) == ("undone", None)


def test_what_cannot_be_measured_is_undone() -> None:
    seen = Machine(watts=False).look()
    measuring = Trial(0, "W", ("on",), seen.now_s - 5 * POLICY.window_s - 1, 0.0)
    ended = advance(measuring, seen, 1.0, 0, 0.0, POLICY)
    assert ended.ending == "undone"
    assert "could not be measured" in ended.why


@pytest.mark.parametrize("unit", ["W", "package"])
def test_a_sample_holds_nothing_of_the_time_before_its_window(unit: str) -> None:
    """A parked package is read rarely: what its counters say of the time before is not taken for the window's."""
    machine = Machine(groups={"a": Group(1.0, cpus=machine_cpus())})
    machine.run(10.0)
    measuring = Trial(0, unit, ("on",), machine.now_s, 0.0)
    machine.run(5.0)
    early = machine.look()
    stale = [
        msgspec.structs.replace(each, read_s=machine.now_s - 8.0, energy_read_s=machine.now_s - 8.0)
        if each.number == 0
        else each
        for each in early.packages
    ]
    assert (
        sampled(measuring, msgspec.structs.replace(early, packages=tuple(stale)), 1.0, POLICY).opened is None
    )
    opened = sampled(measuring, early, 1.0, POLICY)
    assert opened.opened is not None
    machine.run(4.0)
    assert sampled(opened, machine.look(), 1.0, POLICY) == opened  # too short yet
    machine.run(6.0)
    (sample,) = sampled(opened, machine.look(), 1.0, POLICY).samples
    assert sample.parked
    assert sample.load == pytest.approx(1.0)


def machine_cpus() -> tuple[int, ...]:
    return tuple(range(8, 16))
