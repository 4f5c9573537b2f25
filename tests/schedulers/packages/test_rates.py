"""Figures of two looks: unknown stays unknown, whatever went back, came or went meanwhile."""

import msgspec
import numpy as np
import pytest

from sustain.schedulers.packages.model import Groups, Observation, Package
from sustain.schedulers.packages.rates import look, power_between, rates, residency_between
from tests.schedulers.packages.machine import Group, Machine


def two(machine: Machine, seconds: float = 10.0) -> tuple[Observation, Observation]:
    first = machine.look()
    machine.run(seconds)
    return first, machine.look()


def test_use_residency_and_watts() -> None:
    machine = Machine(groups={"a": Group(2.0, cpus=(0, 1)), "b": Group(1.0, cpus=(8, 9))})
    first, second = two(machine)
    found = rates(look(first), second)
    assert found is not None
    assert found.busy == pytest.approx({0: 2.0, 1: 1.0})
    assert found.awake[0] == pytest.approx(0.25)
    assert found.residency[1]["pc6"] == pytest.approx(0.1 * (1 - 1 / 8))
    assert found.power_w[0] == pytest.approx(machine.awake_w - 25 * 0.1 * 0.75 + 3 * 2.0)
    assert found.used.tolist() == pytest.approx([2.0, 1.0])


def test_groups_are_told_by_name_and_life() -> None:
    machine = Machine(groups={"a": Group(2.0), "b": Group(1.0)})
    first = machine.look()
    machine.groups = {"c": Group(0.5), "b": machine.groups["b"], "a": Group(2.0, life="2")}
    machine.run(10.0)
    found = rates(look(first), machine.look())
    assert found is not None
    assert np.isnan(found.used[[0, 2]]).all()
    assert found.used[1] == pytest.approx(1.0)


def test_a_counter_that_went_back_is_unknown() -> None:
    machine = Machine(groups={"a": Group(2.0)})
    machine.run(100.0)
    first = machine.look()
    machine.used_s["a"] = 0.0
    machine.pc6_s[0] = 0.0
    machine.energy_j[1] = 0.0
    machine.busy_s[3] = 0.0
    machine.run(1.0)
    found = rates(look(first), machine.look())
    assert found is not None
    assert np.isnan(found.used[0])
    assert set(found.residency) == {1}
    assert set(found.power_w) == {0}
    assert set(found.busy) == {1}


def test_processors_that_came_make_their_package_unknown_once() -> None:
    machine = Machine(offline=frozenset({9, 10}))
    first = machine.look()
    machine.run(5.0)
    machine.offline = frozenset({1})
    found = rates(look(first), machine.look())
    assert found is not None
    assert set(found.busy) == {0}


def test_a_package_that_was_not_read_anew_has_no_figures() -> None:
    read = Package(
        number=0, residency_s={"pc6": 5.0}, read_s=10.0, source="perf", energy_j=1.0, energy_read_s=10.0,
        power_source="powercap",
    )  # fmt: skip
    assert residency_between(read, read) is None
    assert power_between(read, read) is None
    later = msgspec.structs.replace(read, read_s=20.0, residency_s={"pc6": 9.0, "pc2": 1.0})
    assert residency_between(read, later) is None  # pc2 was not there before
    later = msgspec.structs.replace(read, read_s=20.0, residency_s={"pc6": 9.0})
    assert residency_between(read, later) == {"pc6": 0.4}
    other = msgspec.structs.replace(later, source="msr")
    assert residency_between(read, other) is None
    # Energy that stands still while time goes on is no power of nothing: it is not measurable.
    still = msgspec.structs.replace(read, energy_read_s=20.0)
    assert power_between(read, still) is None


def test_too_soon_says_nothing() -> None:
    first, second = two(Machine(), 0.01)
    assert rates(look(first), second) is None


def test_columns_of_one_length() -> None:
    groups = Machine(groups={"a": Group(1.0)}).look().groups
    with pytest.raises(ValueError, match="differ in length"):
        msgspec.structs.replace(groups, used_s=np.zeros(2))
    with pytest.raises(ValueError, match="row of nodes"):
        Groups(
            **{
                **{name: getattr(two_groups(), name) for name in groups.__struct_fields__},
                "memory_bytes": np.zeros(3),
            }
        )
    seen = Machine(groups={"a": Group(1.0)}).look()
    with pytest.raises(ValueError, match="not there"):
        msgspec.structs.replace(seen, places=())


def two_groups() -> Groups:
    return Machine(groups={"a": Group(1.0), "b": Group(1.0)}).look().groups
