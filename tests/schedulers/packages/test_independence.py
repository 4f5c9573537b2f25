"""What a test's windows say, on recorded hosts; and that watching never proves what is not so."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sustain.schedulers.packages.active import workings
from sustain.schedulers.packages.independence import Watched, Window, judge_active, likely, watched
from sustain.schedulers.packages.model import Cpus, Finding, Groups, Observation, Package
from sustain.schedulers.packages.passive import passive
from sustain.schedulers.packages.rates import look, rates

LENGTH_S = 10.0


def noisy(value: float, seed: random.Random, spread: float) -> float:
    return value + seed.uniform(-spread, spread)


def windows_of(
    packages: Sequence[int],
    power_w: dict[str, float] | None,
    residency: dict[str, dict[str, float]] | None = None,
    *,
    repeats: int = 5,
    spread_w: float = 0.3,
) -> list[Window]:
    """A host by a rule. Watts of one package: "idle" with all idle, "parked" while another works, "awake" with a core
    at work, "core" for another one. Residency: "idle" and "parked"."""
    seed = random.Random(7)
    found = []
    for _ in range(repeats):
        for working in workings(packages):
            shares: dict[int, dict[str, float]] = {}
            watts: dict[int, float] = {}
            for package in packages:
                kind = "idle" if not working else ("awake" if package in working else "parked")
                if residency is not None:
                    shares[package] = {
                        state: min(1.0, max(0.0, noisy(share, seed, 0.01 if share else 0.0)))
                        for state, share in residency.get(kind, dict.fromkeys(residency["idle"], 0.0)).items()
                    }
                if power_w is not None:
                    more = power_w["core"] * (working.get(package, 1) - 1)
                    watts[package] = noisy(power_w[kind] + more, seed, spread_w)
            found.append(Window(working=working, seconds=4.0, residency=shares, power_w=watts))
    return found


def by_state(findings: Sequence[Finding], package: int = 0) -> dict[str, Finding]:
    return {each.state: each for each in findings if each.package == package}


def test_the_published_pair_of_sockets_parks_a_package_and_saves_nothing() -> None:
    """linux-pm 2022-02-06: package 0 in PC2 for 92.5 %, 45.0 W; the one where a core spins 46.2 W. What a core takes
    is the rest of it, so the windows of the same work packed and split are alike to some tenths."""
    findings = judge_active(
        windows_of(
            [0, 1],
            {"idle": 11.5, "parked": 45.0, "awake": 46.2, "core": 1.1},
            {"idle": {"pc2": 0.05, "pc6": 0.9}, "parked": {"pc2": 0.925, "pc6": 0.0}},
        ),
        [0, 1],
        "now",
    )
    found = by_state(findings)
    assert found["pc6"].independence == "coordinated"
    assert found["pc2"].independence == "independent"
    assert found["pc2"].parked_share == pytest.approx(0.925, abs=0.01)
    for each in found.values():
        assert each.parked_w is not None
        assert each.parked_w < 2.0, "so it is not packed: less than what is worth it"
        assert each.parked_error_w is not None
        assert each.at == "now"


def test_four_gold_6130_likewise() -> None:
    """The parked one 44.7 W, the others 49.5 W on average, of which a core at its highest frequency takes 4.6."""
    findings = judge_active(
        windows_of(
            [0, 1, 2, 3],
            {"idle": 20.0, "parked": 44.7, "awake": 49.5, "core": 4.6},
            {"idle": {"pc2": 0.05, "pc6": 0.85}, "parked": {"pc2": 0.90, "pc6": 0.0}},
        ),
        range(4),
    )
    assert len(findings) == 8
    for package in range(4):
        found = by_state(findings, package)
        assert found["pc6"].independence == "coordinated"
        assert found["pc6"].parked_w == pytest.approx(0.2, abs=1.0)
        assert "of the time" not in found["pc6"].detail
        assert "while another package worked" in found["pc6"].detail


def rome(sockets: int = 2) -> list[Window]:
    """TU Dresden 2021, two EPYC 7502 at the wall: 99.05 W with all in C2, 81 W more for the first thread awake
    anywhere, 0.332 W for each active core. No residency of packages; cpuidle counts of cores say nothing of them."""
    seed = random.Random(3)
    found = []
    for _ in range(5):
        for working in workings(range(sockets)):
            total_w = 99.05 if not working else 180.04 + 0.332 * sum(working.values())
            shares = {package: {"core-c2": 1.0 - 0.1 * working.get(package, 0)} for package in range(sockets)}
            watts = {package: noisy(total_w, seed, 0.4) / sockets for package in range(sockets)}
            found.append(Window(working=working, seconds=4.0, residency=shares, power_w=watts))
    return found


def test_rome_by_watts_alone() -> None:
    findings = judge_active(rome(), [0, 1])
    assert [(each.package, each.state) for each in findings] == [(0, "watts"), (1, "watts")]
    for each in findings:
        assert each.independence == "coordinated"
        assert each.parked_w == pytest.approx(0.0, abs=0.5)


def test_a_host_whose_packages_are_independent() -> None:
    watts = {"idle": 20.0, "parked": 20.5, "awake": 48.0, "core": 3.0}
    with_counters = judge_active(
        windows_of([0, 1], watts, {"idle": {"pc6": 0.95}, "parked": {"pc6": 0.93}}), [0, 1]
    )
    assert by_state(with_counters)["pc6"].independence == "independent"
    assert by_state(with_counters)["pc6"].parked_w == pytest.approx(24.5, abs=1)
    by_watts = judge_active(windows_of([0, 1], watts), [0, 1])
    assert by_state(by_watts)["watts"].independence == "independent"
    assert by_state(by_watts)["watts"].parked_share is None


def test_states_that_are_switched_off_in_the_firmware() -> None:
    flat = {"idle": 50.0, "parked": 50.0, "awake": 53.0, "core": 3.0}
    none = {"idle": {"pc2": 0.0, "pc6": 0.0}, "parked": {"pc2": 0.0, "pc6": 0.0}}
    for each in judge_active(windows_of([0, 1], flat, none), [0, 1]):
        assert each.independence == "disabled"


def test_without_watts_nothing_is_said_of_a_saving() -> None:
    (pc6, _) = judge_active(windows_of([0, 1], None, {"idle": {"pc6": 0.9}, "parked": {"pc6": 0.88}}), [0, 1])
    assert pc6.independence == "independent"
    assert (pc6.parked_w, pc6.parked_error_w) == (None, None)
    assert "W" not in pc6.detail
    assert judge_active(windows_of([0, 1], None), [0, 1]) == ()


def test_watts_that_scatter_more_than_they_differ_leave_it_unknown() -> None:
    watts = {"idle": 30.0, "parked": 40.0, "awake": 55.0, "core": 3.0}
    findings = judge_active(windows_of([0, 1], watts, spread_w=40.0), [0, 1])
    assert "unknown" in {each.independence for each in findings}
    once = judge_active(windows_of([0, 1], watts, repeats=1), [0, 1])
    assert {each.independence for each in once} <= {"unknown"}, "one window each proves nothing by watts"


def test_a_watt_meter_that_misses_a_package_says_nothing() -> None:
    windows = [
        Window(working=each.working, seconds=4.0, power_w={0: each.power_w[0]})
        for each in windows_of([0, 1], {"idle": 20.0, "parked": 20.5, "awake": 48.0, "core": 3.0})
    ]
    assert judge_active(windows, [0, 1]) == ()


# Watching alone: made-up busy intervals of processors, and the residency that they leave.

Spans = list[tuple[float, float]]
spans = st.lists(
    st.tuples(st.floats(0, LENGTH_S), st.floats(0, LENGTH_S)).map(lambda pair: (min(pair), max(pair))),
    max_size=4,
)
hosts = st.integers(2, 4).flatmap(
    lambda packages: st.lists(st.lists(spans, min_size=1, max_size=3), min_size=packages, max_size=packages)
)


def union(parts: Spans) -> float:
    """Of the time in which any of them holds."""
    total, end = 0.0, 0.0
    for start, stop in sorted(parts):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def seen_of(
    host: list[list[Spans]], share: Sequence[float], at_s: float, *, cpuidle: bool, stretch: float = 1.0
) -> Observation:
    """After `at_s` (0 or the length) of that host; `share` of the time each package was in pc6."""
    numbers = [(package, spans) for package, cpus in enumerate(host) for spans in cpus]
    whole = at_s / LENGTH_S
    busy = np.array([union(spans) * whole for _, spans in numbers])
    packages = np.array([package for package, _ in numbers], np.int32)
    count = len(numbers)
    return Observation(
        now_s=100.0 + at_s,
        cpus=Cpus(
            number=np.arange(count, dtype=np.int32),
            package=packages,
            die=np.zeros(count, np.int32),
            core=np.arange(count, dtype=np.int32),
            node=packages,
            busy_s=busy,
            idle_s=at_s - busy,
            asleep_s=at_s - busy if cpuidle else np.full(count, np.nan),
        ),
        groups=Groups(
            name=(),
            life=(),
            kind=(),
            used_s=np.zeros(0),
            threads=np.zeros(0, np.int32),
            realtime=np.zeros(0, np.int32),
            pinned=np.zeros(0, np.int32),
            place=np.zeros(0, np.int32),
            memory_bytes=np.zeros(0),
        ),
        packages=tuple(
            Package(
                number=package,
                residency_s={"pc6": each * at_s * stretch},
                read_s=100.0 + at_s,
                source="perf",
            )
            for package, each in enumerate(share)
        ),
    )


def proofs(host: list[list[Spans]], share: Sequence[float], *, cpuidle: bool) -> tuple[Finding, ...]:
    first = seen_of(host, share, 0.0, cpuidle=cpuidle)
    second = seen_of(host, share, LENGTH_S, cpuidle=cpuidle)
    between = rates(look(first), second)
    assert between is not None
    return passive(between, second)


@given(host=hosts, depth=st.floats(0, 1), cpuidle=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_coordinated_host_is_never_proved_independent(
    host: list[list[Spans]], depth: float, cpuidle: bool
) -> None:
    """A coordinated state is entered only while no processor of any package is busy."""
    everybody = [span for cpus in host for spans in cpus for span in spans]
    all_idle = 1 - union(everybody) / LENGTH_S
    assert proofs(host, [depth * all_idle] * len(host), cpuidle=cpuidle) == ()


@given(host=hosts, cpuidle=st.booleans())
@settings(max_examples=80, deadline=None)
def test_an_independent_host_is_proved_so_when_it_shows(host: list[list[Spans]], cpuidle: bool) -> None:
    """Each package is in it as long as it idles. That shows where one is in it for longer than all idle could be: the
    proof is given exactly then, by the busiest processor of another package."""
    share = [1 - union([span for spans in cpus for span in spans]) / LENGTH_S for cpus in host]
    awake = [max(union(spans) for spans in cpus) / LENGTH_S for cpus in host]
    found = {each.package for each in proofs(host, share, cpuidle=cpuidle)}
    for package, own in enumerate(share):
        bound = 1 - max(each for other, each in enumerate(awake) if other != package)
        if own > bound + 0.03:
            assert package in found
        if own < bound + 0.01:
            assert package not in found


def test_the_property_sees_a_host_that_breaks_it() -> None:
    """The checker, shown a state that is entered while another package works."""
    host: list[list[Spans]] = [[[]], [[(0.0, LENGTH_S)]]]
    (finding,) = proofs(host, [0.9, 0.0], cpuidle=True)
    assert (finding.package, finding.independence, finding.how) == (0, "independent", "passive")


def test_idle_states_of_processors_prove_nothing_of_their_package() -> None:
    host: list[list[Spans]] = [[[]], [[(0.0, LENGTH_S)]]]
    first, second = (seen_of(host, [0.9, 0.0], at_s, cpuidle=True) for at_s in (0.0, LENGTH_S))
    renamed = [_of_cores(each) for each in (first, second)]
    between = rates(look(renamed[0]), renamed[1])
    assert between is not None
    assert passive(between, renamed[1]) == ()


def _of_cores(seen: Observation) -> Observation:
    packages = tuple(
        Package(number=each.number, residency_s={"core-c2": each.residency_s["pc6"]}, read_s=each.read_s)
        for each in seen.packages
    )
    return Observation(
        **{name: getattr(seen, name) for name in seen.__struct_fields__} | {"packages": packages}
    )


def test_what_watching_makes_likely_is_said_and_is_no_proof() -> None:
    seen: dict[tuple[int, str], Watched] = {}
    for _ in range(25):
        seen = watched(seen, {0: 0.02, 1: 0.9}, {0: {"pc6": 0.01}, 1: {"pc6": 0.0}})
    assert likely(seen[0, "pc6"]) == "", "it was never seen with all idle: it may be disabled"
    seen = watched(seen, {0: 0.01, 1: 0.02}, {0: {"pc6": 0.9}, 1: {"pc6": 0.9}})
    assert "looks coordinated" in likely(seen[0, "pc6"])
    assert "no proof" in likely(seen[0, "pc6"])
    assert likely(seen[1, "pc6"]) == ""
    seen = watched(seen, {0: 0.01, 1: 0.9}, {0: {"pc6": 0.8, "core-c6": 1.0}})
    assert likely(seen[0, "pc6"]) == "", "it was entered while another package worked"
    assert (0, "core-c6") not in seen
    assert not math.isnan(seen[0, "pc6"].reached)
