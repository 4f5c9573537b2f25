"""Watching alone proves independence where it is, and never where it is not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sustain.schedulers.packages.model import Cpus, Observation, Package
from sustain.schedulers.packages.passive import passive
from sustain.schedulers.packages.rates import look, rates
from tests.schedulers.packages.machine import Group, Machine

STEP_S = 0.01
LENGTH = 1000  # steps in an interval


def test_an_independent_package_is_found_out() -> None:
    machine = Machine(groups={"a": Group(8.0, cpus=tuple(range(8, 16)))}, independence=None)
    first = machine.look()
    machine.run(10.0)
    second = machine.look()
    between = rates(look(first), second)
    assert between is not None
    (found,) = passive(between, second)
    assert (found.package, found.state, found.independence, found.how) == (0, "pc6", "independent", "passive")
    assert "in it for 99% of 10 s, while another package was awake for at least 100%" in found.detail


def test_counters_read_at_other_times_prove_less() -> None:
    machine = Machine(groups={"a": Group(0.8, cpus=tuple(range(8, 16)))}, independence=None)
    first = machine.look()
    machine.run(10.0)
    second = machine.look()
    between = rates(look(first), second)
    assert between is not None
    assert passive(between, second)  # 99 % against 90 % and the margin
    between.read_for_s[0] = (8.8, 0.0)
    assert not passive(between, second)


@st.composite
def intervals(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """When each processor of a host was awake, at random: rows of steps; and processors to a package."""
    packages, cores = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = np.array([draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0])) for _ in range(packages * cores)])
    run = draw(st.sampled_from([1, 7, 50]))  # steps that it stays so
    awake = random.random((packages * cores, -(-LENGTH // run))) < share[:, None]
    return np.repeat(awake, run, axis=1)[:, :LENGTH], cores


def seen(awake: np.ndarray, cores: int, coordinated: bool) -> tuple[Observation, Observation]:
    """Two looks at such a host, whose packages are in pc6 while all their processors sleep, or all of all packages."""
    count = len(awake)
    by_package = awake.reshape(count // cores, cores, -1).any(axis=1)
    rests = ~by_package.any(axis=0)[None, :] & ~by_package if coordinated else ~by_package
    found = []
    for done in (0, LENGTH):
        busy_s = awake[:, :done].sum(axis=1) * STEP_S
        number = np.arange(count, dtype=np.int32)
        cpus = Cpus(
            number=number,
            package=number // cores,
            die=number * 0,
            core=number % cores,
            node=number // cores,
            busy_s=busy_s,
            idle_s=done * STEP_S - busy_s,
            asleep_s=done * STEP_S - busy_s,
        )
        packages = tuple(
            Package(
                number=each,
                residency_s={"pc6": float(rests[each, :done].sum() * STEP_S)},
                read_s=done * STEP_S,
                source="perf",
            )
            for each in range(count // cores)
        )
        found.append(
            Observation(now_s=done * STEP_S, cpus=cpus, packages=packages, groups=Machine().look().groups)
        )
    return found[0], found[1]


@given(intervals())
def test_a_coordinated_state_is_never_called_independent(drawn: tuple[np.ndarray, int]) -> None:
    first, second = seen(*drawn, coordinated=True)
    between = rates(look(first), second)
    assert between is not None
    assert passive(between, second) == ()


@given(intervals())
def test_an_independent_one_is_found_when_one_package_rests_and_another_works(
    drawn: tuple[np.ndarray, int],
) -> None:
    awake, cores = drawn
    awake[:cores] = False
    awake[cores] = True
    first, second = seen(awake, cores, coordinated=False)
    between = rates(look(first), second)
    assert between is not None
    assert 0 in {each.package for each in passive(between, second)}
