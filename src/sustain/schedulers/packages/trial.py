"""Parking a package and measuring what that saves, step by step; each step is safe to be the last. Pure.

Used by `decide`. A trial compares parked and not parked in turns (`pairs` of them), since load and temperature drift
within minutes. What was measured decides: the package stays parked when the whole interval of the saving is above
nothing and the saving is large enough, and no metric of a workload suffers; else it is put back as it was.

    off → pack → settle → on [→ unpack → settle → off → pack → settle → on …]

A package whose verdict still holds is parked without measuring again (`pack` alone).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from sustain.schedulers.packages.model import Observation, Package, Verdict
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.rates import Look, power_between, residency_between, use_between
from sustain.schedulers.packages.saving import Sample, estimate, of_metric
from sustain.schedulers.packages.state import Trial, independent_share
from sustain.schedulers.packages.worth import interval_of

_SAMPLE_S = 10.0  # at least
_LEAST = 3  # samples in a window
_PATIENCE = 5  # windows that one may take until it has as many
_MOVING_S = 300.0  # a step that moves groups may take, besides what their memory takes

Ending = Literal["", "kept", "undone"]


def begin(package: int, unit: str, known: bool, now_s: float, pairs: int) -> Trial:
    """A trial of that package. `known`: what it saves is known, so it is not measured."""
    steps: tuple[str, ...] = ("pack",)
    if not known and unit:
        steps = ("off", "pack", "settle", "on")
        for _ in range(pairs - 1):
            steps += ("unpack", "settle", "off", "pack", "settle", "on")
    return Trial(package, "" if known else unit, steps, now_s, now_s)


def again(package: int, unit: str, now_s: float) -> Trial:
    """Measuring anew what a parked package saves."""
    return Trial(package, unit, ("on", "unpack", "settle", "off", "pack"), now_s, now_s)


def parks(trial: Trial) -> bool:
    """Whether its package is to be parked in the step under way."""
    if trial.steps[0] in ("pack", "on"):
        return True
    if trial.steps[0] in ("off", "unpack"):
        return False
    following = next((each for each in trial.steps[1:] if each != "settle"), "on")
    return following != "off"


@dataclass(frozen=True, slots=True)
class Advance:
    """A trial after a look: how it goes on, or how it ended."""

    trial: Trial | None
    ending: Ending = ""
    verdict: Verdict | None = None
    why: str = ""


def advance(
    trial: Trial, seen: Observation, load: float | None, pending: int, moving_s: float, policy: Policy
) -> Advance:
    """`load`: processors in use in this interval; `pending`: groups that are not where they are to be; `moving_s`: that
    their memory may take."""
    step, for_s = trial.steps[0], seen.now_s - trial.since_s
    among = tuple(sorted(each.number for each in seen.packages))
    if trial.among and trial.among != among:
        return Advance(None, "undone", None, "packages came or went meanwhile")
    trial = replace(trial, among=among)
    if step in ("off", "on"):
        trial = sampled(trial, seen, load, policy)
        mine = sum(each.run == trial.run for each in trial.samples)
        if for_s < policy.window_s or mine < _LEAST:
            if for_s > max(_PATIENCE * policy.window_s, _LEAST * _PATIENCE * _SAMPLE_S):
                return Advance(
                    None, "undone", None, f"it could not be measured: {mine} samples in {for_s:.0f} s"
                )
            return Advance(trial)
    elif step in ("pack", "unpack"):
        if pending and for_s < _MOVING_S + moving_s:
            return Advance(trial)
        if pending:
            return Advance(None, "undone", None, f"{pending} groups could not be moved within {for_s:.0f} s")
    elif for_s < policy.settle_s:
        return Advance(trial)
    left = trial.steps[1:]
    if left:
        measured = step in ("off", "on")
        return Advance(replace(trial, steps=left, since_s=seen.now_s, opened=None, run=trial.run + measured))
    if not trial.unit:
        return Advance(None, "kept", None, "")
    verdict = judge(trial, seen.now_s, policy)
    if verdict is None:
        return Advance(None, "undone", None, "it could not be measured: too few samples")
    return Advance(None, "kept" if verdict.kept else "undone", verdict, verdict.detail)


def sampled(trial: Trial, seen: Observation, load: float | None, policy: Policy) -> Trial:
    """With one sample more, when all counters were read anew since the last one was opened. One that is not ended
    within a window is begun anew."""
    opened = trial.opened
    if opened is None or load is None:
        fresh = all(_read_s(each, trial.unit) >= trial.since_s for each in seen.packages)
        return replace(trial, opened=_look(seen) if fresh else None)
    values = _values(opened, seen, trial.unit)
    if values is None:
        late = seen.now_s - opened.now_s > policy.window_s
        return replace(trial, opened=None) if late else trial
    busy, _ = use_between(opened.cpus, seen.cpus, seen.now_s - opened.now_s)
    use = sum(busy.values()) if len(busy) == len(seen.packages) else load
    sample = Sample(
        at_s=seen.now_s,
        parked=trial.steps[0] == "on",
        value=values,
        load=use,
        run=trial.run,
        metrics=tuple(sorted(seen.metrics.items())),
    )
    return replace(trial, samples=(*trial.samples, sample), opened=_look(seen))


def judge(trial: Trial, now_s: float, policy: Policy) -> Verdict | None:
    """What the samples say. None: there are too few."""
    samples = list(trial.samples)
    found = estimate(samples, policy.confidence)
    if found is None:
        return None
    watts = trial.unit == "W"
    sign = -1.0 if watts else 1.0
    low, high = sorted((sign * found.low, sign * found.high))
    saving = sign * found.difference
    least = policy.least_saving_w if watts else policy.least_residency
    verdict = Verdict(
        package=trial.package,
        kept=low > 0 and saving >= least,
        unit="W" if watts else "package",
        saving=saving,
        low=low,
        high=high,
        load=sum(each.load for each in samples) / len(samples),
        at_s=now_s,
    )
    hurt = suffers(samples, policy)
    if hurt:
        verdict = msgspec.structs.replace(verdict, kept=False, detail=f"{hurt}; {interval_of(verdict)}")
    elif low <= 0:
        verdict = msgspec.structs.replace(verdict, detail=f"{interval_of(verdict)}: it may be nothing")
    else:
        verdict = msgspec.structs.replace(verdict, detail=interval_of(verdict))
    return verdict


def suffers(samples: list[Sample], policy: Policy) -> str:
    """The workload's own metric that is worse while parked, in words; "": none is shown to be."""
    names = sorted({name for each in samples for name, _ in each.metrics})
    for name in names:
        found = of_metric(samples, name, policy.confidence)
        if found is None:
            told = [each.parked for each in samples if name in dict(each.metrics)]
            if told.count(False) >= _LEAST:
                return f"{name} was not told while it was parked"
            continue
        change, before = found
        if before <= 0:
            continue
        loss = -change.difference / before
        if loss > policy.metric_loss and change.high < 0:
            return f"{name} is {loss:.1%} less while it is parked (at least {-change.high / before:.1%})"
    return ""


def _values(opened: Look, seen: Observation, unit: str) -> float | None:
    """Watts of all packages, or time in independent states of all of which that is known, since then; None: not all
    were read anew, or not long enough ago."""
    total, told = 0.0, 0
    if set(opened.packages) != {each.number for each in seen.packages}:
        return None
    for package in seen.packages:
        was = opened.packages.get(package.number)
        if was is None:
            return None
        if unit == "W":
            if not _long(was.energy_read_s, package.energy_read_s):
                return None
            watts = power_between(was, package)
            if watts is None:
                return None
            total, told = total + watts, told + 1
            continue
        if package.read_s is None and was.read_s is None:
            continue
        if not _long(was.read_s, package.read_s):
            return None
        share = _share(was, package, seen)
        if share is not None:
            total, told = total + share, told + 1
    return total if told else None


def _share(was: Package, package: Package, seen: Observation) -> float | None:
    shares = residency_between(was, package)
    return None if shares is None else independent_share(package.number, shares, seen.findings)


def _long(before_s: float | None, now_s: float | None) -> bool:
    return (now_s or -math.inf) - (before_s if before_s is not None else math.inf) >= _SAMPLE_S * 0.99


def _read_s(package: Package, unit: str) -> float:
    """When what is measured was last read; for ever, where it never is."""
    if unit == "W":
        return package.energy_read_s if package.energy_read_s is not None else -math.inf
    return package.read_s if package.read_s is not None else math.inf


def _look(seen: Observation) -> Look:
    packages = {each.number: each for each in seen.packages}
    return Look(seen.now_s, seen.cpus, packages, (), (), seen.groups.used_s[:0])
