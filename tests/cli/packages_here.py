"""`sustain packages` as a process of its own, on a host that is made up in one respect: each of two processors of this
machine is called a package, and hardly busy. Groups, affinities, journal and signals are real.

Run it as `python -m tests.cli.packages_here run --config …`."""

import sys
from collections.abc import Collection

import numpy as np

from sustain.agent import build
from sustain.cli import main
from sustain.schedulers.packages.model import Cpus, Finding, Observation, Package, Verdict
from sustain.schedulers.packages.sense import Sensor


class TwoPackages(Sensor):
    """Counters are made up; what is emptied is known to save."""

    def read(self, parked: Collection[int] = frozenset()) -> Observation:
        seen = super().read(parked)
        fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
        number = seen.cpus.number[:2]
        return Observation(
            **(fields | {"cpus": _cpus(number, seen.now_s), "packages": _packages(seen.now_s), "nodes": ()})
            | {
                "pressure": None,
                "virtual": False,
                "groups": _without_nodes(seen),
                "findings": tuple(_finding(each) for each in (0, 1)),
                "verdicts": tuple(_verdict(each, seen.now_s) for each in (0, 1)),
            }
        )


def _without_nodes(seen: Observation) -> object:
    groups = {name: getattr(seen.groups, name) for name in seen.groups.__struct_fields__}
    return type(seen.groups)(**(groups | {"memory_bytes": np.zeros(0)}))


def _cpus(number: np.ndarray, now_s: float) -> Cpus:
    zero = np.zeros(2, np.int32)
    return Cpus(
        number=number,
        package=np.arange(2, dtype=np.int32),
        die=zero,
        core=zero,
        node=zero - 1,
        busy_s=np.full(2, 0.005 * now_s),
        idle_s=np.full(2, 0.995 * now_s),
        asleep_s=np.full(2, np.nan),
    )


def _packages(now_s: float) -> tuple[Package, ...]:
    return tuple(
        Package(
            number=each,
            residency_s={"pc6": 0.1 * now_s},
            read_s=now_s,
            source="perf",
            energy_j=50.0 * now_s,
            energy_read_s=now_s,
            power_source="powercap",
        )
        for each in (0, 1)
    )


def _finding(package: int) -> Finding:
    return Finding(package=package, state="pc6", independence="independent", how="told", parked_w=25.0)


def _verdict(package: int, now_s: float) -> Verdict:
    return Verdict(
        package=package, kept=True, unit="W", saving=25.0, low=20.0, high=30.0, load=0.1, at_s=now_s
    )


if __name__ == "__main__":
    build.Sensor = TwoPackages  # type: ignore[misc]
    sys.exit(main(["packages", *sys.argv[1:]]))
