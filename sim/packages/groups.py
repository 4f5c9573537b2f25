"""Groups of threads and what they want over time; and such as are made up from a seed.

Used by `run`, the benchmark and the tests; `traces` reads recorded ones. Demand is in cores: what one core does in a
second counts as one. It holds from one point to the next.

Made up (`LOADS`): `steady` groups want what they always want, but for noise of a twentieth; `varying` ones go up and
down by a third around that, each at its own pace of one to six hours, with noise that lasts; `diurnal` ones follow the
day, most of them together; `bursts` are groups that are nearly idle and now and then take all their threads for some
minutes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.packages.residency import Floats

_GIB = float(1 << 30)
_DAY_S = 86400.0


@dataclass(frozen=True)
class Load:
    """`demand` (times x groups) in cores, one row for each `step_s`; `threads` and `memory_bytes` of each group."""

    name: str
    names: tuple[str, ...]
    demand: Floats
    threads: Floats
    memory_bytes: Floats
    step_s: float

    def __post_init__(self) -> None:
        count = len(self.names)
        if (
            self.demand.ndim != 2
            or not self.demand.shape[1] == len(self.threads) == len(self.memory_bytes) == count
        ):
            raise ValueError("demand, threads and memory are not of as many groups as there are names")
        if not len(self.demand) or self.step_s <= 0:
            raise ValueError("a load needs a time")

    @property
    def seconds(self) -> float:
        return len(self.demand) * self.step_s

    def first(self, seconds: float) -> "Load":
        """Its beginning."""
        rows = max(1, int(seconds / self.step_s))
        return Load(self.name, self.names, self.demand[:rows], self.threads, self.memory_bytes, self.step_s)

    def scaled(self, factor: float) -> "Load":
        """That many times the demand, with threads to match."""
        threads = np.maximum(self.threads, np.ceil(factor * self.demand.max(axis=0)))
        return Load(self.name, self.names, factor * self.demand, threads, self.memory_bytes, self.step_s)


def steady(
    seed: int, groups: int = 40, hours: float = 24.0, cores: float = 40.0, step_s: float = 300.0
) -> Load:
    rng = np.random.default_rng(seed)
    mean = _sizes(rng, groups, cores)
    noise = 1.0 + 0.05 * rng.standard_normal((_rows(hours, step_s), groups))
    return made_load("steady", _names(groups), mean * np.clip(noise, 0.5, 1.5), step_s)


def varying(
    seed: int, groups: int = 40, hours: float = 24.0, cores: float = 40.0, step_s: float = 300.0
) -> Load:
    rng = np.random.default_rng(seed)
    mean, rows = _sizes(rng, groups, cores), _rows(hours, step_s)
    at_s = np.arange(rows)[:, None] * step_s
    waves = np.sin(2 * np.pi * (at_s / rng.uniform(3600, 6 * 3600, groups) + rng.random(groups)))
    demand = mean * np.clip(1.0 + 0.33 * waves + _lasting(rng, rows, groups, 0.08), 0.05, None)
    return made_load("varying", _names(groups), demand, step_s)


def diurnal(
    seed: int, groups: int = 40, hours: float = 72.0, cores: float = 40.0, step_s: float = 300.0
) -> Load:
    rng = np.random.default_rng(seed)
    mean, rows = _sizes(rng, groups, cores), _rows(hours, step_s)
    at_s = np.arange(rows)[:, None] * step_s
    lead_s = rng.normal(0.0, 3600.0, groups)
    day = 1.0 - 0.7 * np.cos(2 * np.pi * (at_s + lead_s) / _DAY_S)
    demand = mean * np.clip(day + _lasting(rng, rows, groups, 0.08), 0.02, None)
    return made_load("diurnal", _names(groups), demand, step_s)


def bursts(
    seed: int, groups: int = 40, hours: float = 24.0, cores: float = 30.0, step_s: float = 300.0
) -> Load:
    rng = np.random.default_rng(seed)
    peak, rows = _sizes(rng, groups, 4 * cores), _rows(hours, step_s)
    changes = rng.random((rows, groups))
    busy = np.zeros((rows, groups), bool)
    for row in range(1, rows):  # half an hour in two, on average; ten minutes of it busy
        busy[row] = np.where(busy[row - 1], changes[row] < 1 - step_s / 900, changes[row] < step_s / 3600)
    return made_load("bursts", _names(groups), np.where(busy, peak, 0.03 * peak), step_s)


def made_load(name: str, names: list[str], demand: Floats, step_s: float) -> Load:
    """A group has as many threads as it ever needs, and 4 GiB for each."""
    threads = np.maximum(1.0, np.ceil(demand.max(axis=0) - 1e-9))
    return Load(name, tuple(names), demand, threads, 4 * _GIB * threads, step_s)


def _names(groups: int) -> list[str]:
    return [f"vm{number}" for number in range(groups)]


def _rows(hours: float, step_s: float) -> int:
    return max(1, round(hours * 3600 / step_s))


def _sizes(rng: np.random.Generator, groups: int, cores: float) -> Floats:
    """A few large ones and many small ones, all together so many cores."""
    sizes = rng.lognormal(0.0, 0.8, groups)
    found: Floats = sizes * cores / sizes.sum()
    return found


def _lasting(rng: np.random.Generator, rows: int, groups: int, share: float) -> Floats:
    """Noise of which nine tenths are still there in the next interval."""
    found = np.zeros((rows, groups))
    fresh = rng.standard_normal((rows, groups)) * share * np.sqrt(1 - 0.9**2)
    for row in range(1, rows):
        found[row] = 0.9 * found[row - 1] + fresh[row]
    return found


LOADS: dict[str, Callable[[int], Load]] = {
    "steady": steady,
    "varying": varying,
    "diurnal": diurnal,
    "bursts": bursts,
}
