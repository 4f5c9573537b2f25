"""What a trial's samples say: the truth lies within the interval as often as it should."""

import numpy as np
import pytest

from sustain.schedulers.packages.saving import Sample, estimate, of_metric, student


def samples(
    saving: float, *, follow: float, per_load: float = 3.0, seed: int = 1, window: int = 12
) -> list[Sample]:
    """Two windows of each kind in turns; noise that follows itself; a load that drifts."""
    random = np.random.default_rng(seed)
    found: list[Sample] = []
    noise, load = random.standard_normal(), 4.0
    for run in range(4):
        for _ in range(window):
            noise = follow * noise + np.sqrt(1 - follow**2) * random.standard_normal()
            load += 0.05 * random.standard_normal()
            parked = run % 2 == 1
            value = 100 + per_load * load - saving * parked + 2 * noise
            found.append(Sample(10.0 * len(found), parked, value, load, run))
    return found


@pytest.mark.parametrize("follow", [0.0, 0.5])
def test_the_interval_holds_the_truth_as_often_as_it_says(follow: float) -> None:
    held = 0
    for seed in range(400):
        found = estimate(samples(5.0, follow=follow, seed=seed, window=24), 0.95)
        assert found is not None
        held += -found.high <= 5.0 <= -found.low
    # 95 % of 400 is 380; residuals that follow each other are known from few samples only, so it may be a little less.
    assert held >= 364 if follow == 0 else held >= 344


def test_nothing_is_found_where_there_is_nothing() -> None:
    wrong = 0
    for seed in range(400):
        found = estimate(samples(0.0, follow=0.3, seed=seed), 0.95)
        assert found is not None
        wrong += found.high < 0
    assert wrong <= 24  # 2.5 % of them is 10


def test_load_is_not_taken_for_saving() -> None:
    """Less load while it is parked saves watts, and parking does not."""
    found = estimate(
        [Sample(each, parked, 100 + 5 * load, load, run) for each, parked, load, run in _falling()], 0.95
    )
    assert found is not None
    assert abs(found.difference) < 1e-6
    assert found.per_load == pytest.approx(5.0)


def _falling() -> list[tuple[float, bool, float, int]]:
    random = np.random.default_rng(3)
    return [
        (10.0 * at, at % 20 >= 10, 6 - 0.1 * at + 0.3 * random.standard_normal(), at // 10)
        for at in range(40)
    ]


def test_too_few_samples_say_nothing() -> None:
    few = samples(5.0, follow=0.0, window=1)
    assert estimate(few, 0.95) is None
    assert estimate([each for each in samples(5.0, follow=0.0) if each.parked], 0.95) is None


def test_metrics_are_compared_where_they_were_told() -> None:
    random = np.random.default_rng(5)
    told = [
        Sample(
            each.at_s,
            each.parked,
            0.0,
            1.0,
            each.run,
            (("rate", 100.0 - 8 * each.parked + random.standard_normal()),),
        )
        for each in samples(0.0, follow=0.0)
    ]
    found = of_metric(told, "rate", 0.95)
    assert found is not None
    change, before = found
    assert change.low < -8 < change.high
    assert before == pytest.approx(100, abs=1)
    assert of_metric(told, "latency", 0.95) is None


@pytest.mark.parametrize(
    ("freedom", "wanted"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (200, 1.972)],
)
def test_students_quantile(freedom: float, wanted: float) -> None:
    """Against a table (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""
    assert student(0.95, freedom) == pytest.approx(wanted, rel=0.01)
