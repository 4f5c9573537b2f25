"""What parking a package saved, from samples taken with it parked and not parked in turns. Pure.

Used by `trial`. The model: value = a + b·load + c·parked + noise, by least squares; −c is what parking saves at equal
load. b is left out where the load hardly varied. Neighbouring samples are not independent: the standard error of c is
widened by √((1+r)/(1−r)), r being how far residuals follow the one before them (AR(1); von Storch and Zwiers,
Statistical Analysis in Climate Research, 1999, 6.6), within a run of samples of one kind. The interval is Student's.

Rejected: the difference of two means. A window is minutes long, and the load of two such windows is not the same.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_LEAST = 3  # samples of each kind
_LOAD_VARIES = 0.02  # of its mean: below, no slope can be told


@dataclass(frozen=True, slots=True)
class Sample:
    """One stretch of time, with the package parked or not. `value`: watts of the host, or packages' shares of time in
    independent states."""

    at_s: float
    parked: bool
    value: float
    load: float  # processors in use
    run: int = 0  # stretches of one window
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the difference that parking makes (parked − not), with its interval."""

    difference: float
    low: float
    high: float
    error: float  # one standard error
    samples: int
    per_load: float | None  # what one more processor in use makes; None: it hardly varied


def estimate(samples: list[Sample], confidence: float) -> Estimate | None:
    """None: too few samples of either kind."""
    values = np.array([each.value for each in samples])
    return _estimate(samples, values, confidence)


def of_metric(samples: list[Sample], name: str, confidence: float) -> tuple[Estimate, float] | None:
    """(the difference that parking makes to a workload's metric, its mean when not parked); None: too few values."""
    told = [(each, dict(each.metrics)[name]) for each in samples if name in dict(each.metrics)]
    values = np.array([value for _, value in told])
    found = _estimate([each for each, _ in told], values, confidence, by_load=False)
    if found is None:
        return None
    return found, float(np.mean([value for each, value in told if not each.parked]))


def _estimate(
    samples: list[Sample], values: NDArray[np.float64], confidence: float, *, by_load: bool = True
) -> Estimate | None:
    parked = np.array([each.parked for each in samples], bool)
    if parked.sum() < _LEAST or (~parked).sum() < _LEAST:
        return None
    load = np.array([each.load for each in samples])
    columns = [np.ones(len(samples)), parked.astype(float)]
    varies = by_load and len(samples) > 2 * _LEAST and _varies(load, parked)
    if varies:
        columns.append(load - load.mean())
    design = np.stack(columns, axis=1)
    found, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = values - design @ found
    freedom = len(samples) - design.shape[1]
    variance = float(residual @ residual) / freedom
    spread = float(np.linalg.inv(design.T @ design)[1, 1])
    follow = _follow(residual, [each.run for each in samples])
    error = math.sqrt(variance * spread * (1 + follow) / (1 - follow))
    width = student(confidence, max(1.0, freedom * (1 - follow) / (1 + follow))) * error
    difference = float(found[1])
    return Estimate(
        difference,
        difference - width,
        difference + width,
        error,
        len(samples),
        float(found[2]) if varies else None,
    )


def _varies(load: NDArray[np.float64], parked: NDArray[np.bool_]) -> bool:
    """Whether a slope can be told: the load varies also among samples of one kind."""
    within = np.concatenate([load[parked] - load[parked].mean(), load[~parked] - load[~parked].mean()])
    return bool(within.std() > _LOAD_VARIES * max(abs(float(load.mean())), 1e-9))


def _follow(residual: NDArray[np.float64], runs: list[int]) -> float:
    """Correlation of neighbours within runs, 0 … 0.9."""
    same = np.array(runs[1:]) == np.array(runs[:-1])
    whole = float(residual @ residual)
    if not same.any() or whole <= 0:
        return 0.0
    shift = (
        float((residual[1:] * residual[:-1])[same].sum()) / whole * len(residual) / max(1, int(same.sum()))
    )
    return min(max(shift, 0.0), 0.9)


def student(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's distribution, by Cornish and Fisher's expansion (Abramowitz and Stegun,
    26.7.5), exact for 1 and 2 degrees of freedom. Within 1 % from 3 degrees on at 95 %."""
    upper = 0.5 + confidence / 2
    if freedom < 2:
        return math.tan(math.pi * (upper - 0.5))
    if freedom < 3:
        a = 2 * upper - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(upper)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
