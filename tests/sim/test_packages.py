"""The simulated host of packages: what is true of it by its construction, and of the peers on it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.packages.groups import LOADS, Load
from sim.packages.hardware import HOSTS, Host
from sim.packages.machine import Machine, settle
from sim.packages.optimum import Optimum
from sim.packages.policies import POLICIES, Seen
from sim.packages.power import host_w
from sim.packages.residency import residency
from sim.packages.run import Peer, drive
from sim.packages.traces import recorded

from sustain.errors import RecordingError


def watts(host: Host, load: list[float]) -> float:
    _, _, states = settle(host, np.array(load))
    return host_w(host, states)


def load_of(demand: list[list[float]], step_s: float = 300.0) -> Load:
    wanted = np.array(demand)
    threads = np.ceil(wanted.max(axis=0))
    names = tuple(f"g{number}" for number in range(len(threads)))
    return Load("given", names, wanted, threads, np.full(len(threads), 2.0**30), step_s)


@pytest.mark.parametrize("name", HOSTS)
def test_more_load_never_draws_less(name: str) -> None:
    host = HOSTS[name]
    rows = [watts(host, [share * host.cores] * host.packages) for share in np.linspace(0, 1, 41)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(rows))


def test_shares_of_time_make_one_at_most_and_deeper_needs_longer() -> None:
    host = HOSTS["independent-4"]
    for wakeups in (0.0, 1.0, 50.0, 1e4):
        found = residency(host, np.full((4, 28), 0.01), np.full((4, 28), wakeups))
        assert np.all(found.pc2 + found.pc6 <= 0.99**28 + 1e-12)
        assert np.allclose(found.c1 + found.deep, 0.99)
    rare = residency(host, np.zeros((4, 28)), np.full((4, 28), 1.0))
    often = residency(host, np.zeros((4, 28)), np.full((4, 28), 1000.0))
    assert rare.pc6.min() > 0.9
    assert often.pc6.max() < 1e-6


def test_residency_is_that_of_intervals_drawn_at_random() -> None:
    """The closed form beside a million idle intervals of one core."""
    host = HOSTS["gold-6130-2"]
    use, wakeups = 0.3, 400.0
    found = residency(host, np.full((2, 16), use), np.full((2, 16), wakeups)).deep[0, 0]
    lasting = np.random.default_rng(5).exponential((1 - use) / wakeups, 1_000_000)
    reached = lasting[lasting >= host.deep.target_s]
    drawn = (reached - host.deep.exit_s).sum() / lasting.sum() * (1 - use)
    assert found == pytest.approx(drawn, rel=0.01)


def test_one_busy_core_keeps_all_packages_awake_where_states_are_coordinated() -> None:
    use = np.zeros((2, 16))
    use[0, 0] = 1.0
    found = residency(HOSTS["gold-6130-2"], use, np.full((2, 16), 1.0))
    assert found.pc6.tolist() == [0.0, 0.0]
    assert found.pc2[0] == 0.0
    assert found.pc2[1] > 0.9


def test_aligned_wakeups_leave_longer_intervals() -> None:
    host = HOSTS["gold-6130-2"]
    use, wakeups = np.full((2, 16), 0.02), np.full((2, 16), 100.0)
    apart, together = (residency(host, use, wakeups, aligned).pc6[0] for aligned in (0.0, 1.0))
    assert apart < 0.1
    assert together > 0.8


def test_packing_saves_where_states_are_independent_and_costs_where_they_are_not() -> None:
    alone, packed = [10.0, 10.0, 10.0, 10.0], [20.0, 20.0, 0.0, 0.0]
    independent, coordinated = HOSTS["independent-4"], HOSTS["8180-2"].with_packages(4)
    assert watts(independent, packed) < 0.95 * watts(independent, alone)
    assert watts(coordinated, packed) > watts(coordinated, alone)
    parks = HOSTS["gold-6130-2"]  # PC2 is each package's own, and saves almost nothing
    assert watts(parks, [8.0, 0.0]) > 0.95 * watts(parks, [4.0, 4.0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 2.0))
def test_work_is_done_or_waits(seed: int, scale: float) -> None:
    host = HOSTS["independent-4"]
    rng = np.random.default_rng(seed)
    threads = rng.integers(1, 20, 12).astype(float)
    machine = Machine(host, threads, np.full(12, 2.0**30))
    wanted = done = 0.0
    for _ in range(10):
        demand = scale * threads * rng.random(12)
        shares = np.eye(4)[rng.integers(0, 4, 12)]
        last = machine.step(demand, shares, 60.0)
        wanted += demand.sum() * 60
        done += last.done.sum()
        assert np.all(last.served <= 1.25 * host.cores + 1e-9)
        assert np.all(last.busy >= last.done - 1e-6)
        assert last.simulated
    assert done + last.waiting.sum() == pytest.approx(wanted)


def test_what_is_too_much_waits_and_is_done_later() -> None:
    host = HOSTS["8180-2"]
    machine = Machine(host, np.array([56.0]), np.array([0.0]))
    here = np.array([[1.0, 0.0]])
    first = machine.step(np.array([45.0]), here, 100.0)
    assert first.done.sum() == pytest.approx(35 * 100)  # 28 cores with both threads busy
    assert first.waiting.sum() == pytest.approx(10 * 100)
    second = machine.step(np.array([10.0]), here, 100.0)
    assert second.waiting.sum() == 0.0
    assert second.done.sum() == pytest.approx(20 * 100)


def test_memory_that_is_elsewhere_slows_until_it_has_followed() -> None:
    machine = Machine(HOSTS["8180-2"], np.array([4.0]), np.array([0.0]))
    machine.step(np.array([4.0]), np.array([[1.0, 0.0]]), 300.0)
    took = [
        float(machine.step(np.array([4.0]), np.array([[0.0, 1.0]]), 300.0).busy.sum()) / 1200
        for _ in range(9)
    ]
    assert took[0] == pytest.approx(1 + 0.12 * np.exp(-0.5))
    assert took == sorted(took, reverse=True)
    assert took[-1] < 1.002
    assert machine.moved == 2  # the first placement, and this one


def test_a_first_placement_is_a_move_and_no_placement_is_none() -> None:
    machine = Machine(HOSTS["8180-2"], np.array([4.0, 4.0]), np.array([0.0, 0.0]))
    machine.step(np.array([4.0, 4.0]), np.array([[0.5, 0.5], [1.0, 0.0]]), 300.0)
    assert machine.moved == 1


@pytest.mark.parametrize("name", LOADS)
def test_the_same_seed_makes_the_same(name: str) -> None:
    host = HOSTS["independent-4"]
    again = [drive(LOADS[name](3).first(3600 * 6), host, Peer(POLICIES["threshold"])) for _ in range(2)]
    other = drive(LOADS[name](4).first(3600 * 6), host, Peer(POLICIES["threshold"]))
    assert again[0] == again[1] != other


@pytest.mark.parametrize("name", POLICIES)
def test_every_peer_places_all_of_every_group(name: str) -> None:
    load = LOADS["bursts"](2).first(3600 * 8)
    shares = None
    for step, use in enumerate(load.demand):
        seen = Seen(step, use, shares, 4, 28, load.demand.mean(axis=0), load.demand.max(axis=0))
        before = None if shares is None else shares.copy()
        shares = POLICIES[name](seen)
        assert np.allclose(shares.sum(axis=1), 1.0)
        assert before is None or np.array_equal(seen.shares, before)  # what was seen is not changed
        assert np.array_equal(shares, POLICIES[name](seen))


def test_the_threshold_rule_relieves_what_is_above_and_empties_what_is_below() -> None:
    shares = np.eye(2)[[0, 0, 0, 1]]
    use = np.array([10.0, 8.0, 6.0, 1.0])
    seen = Seen(1, use, shares, 2, 28, use, use)
    assert POLICIES["threshold"](seen).argmax(axis=1).tolist() == [0, 0, 1, 1]  # the smallest that suffices
    use = np.array([10.0, 3.0, 1.0, 1.0])
    seen = Seen(1, use, shares, 2, 28, use, use)
    assert POLICIES["threshold"](seen).argmax(axis=1).tolist() == [0, 0, 0, 0]


def test_power_save_of_irqbalance_ends_for_all_at_once() -> None:
    use = np.array([6.0, 5.0, 5.0, 1.0])
    shares = np.eye(4)[[0, 1, 2, 3]]
    saved = POLICIES["irqbalance"](Seen(1, use, shares, 4, 28, use, use))
    assert saved.argmax(axis=1).tolist() == [0, 1, 2, 1]
    use = np.array([20.0, 5.0, 5.0, 1.0])
    cleared = POLICIES["irqbalance"](Seen(2, use, saved, 4, 28, use, use))
    assert sorted(cleared.argmax(axis=1).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["independent-4", "independent-8", "8180-2"])
def test_nobody_needs_less_than_the_optimum_within_the_headroom(name: str) -> None:
    host = HOSTS[name]
    load = LOADS["varying"](5).first(3600 * 8).scaled(host.packages * host.cores / 112)
    optimum = Optimum(load, host)
    best = drive(load, host, optimum, free_moves=True)
    assert best.above == 0.0
    assert 0 <= optimum.gap < 0.03
    for policy in POLICIES.values():
        came = drive(load, host, Peer(policy))
        if came.above == 0.0:
            assert came.energy_j >= best.energy_j * (1 - optimum.gap) - 1e-6


def test_the_optimum_is_the_best_of_all_placements_where_all_can_be_tried() -> None:
    host = HOSTS["independent-4"].with_packages(3)
    sizes = [9.0, 7.0, 6.0, 5.0, 2.0]
    load = load_of([sizes])
    best = drive(load, host, Optimum(load, host), free_moves=True)
    least = np.inf
    for number in range(3**5):
        at = [number // 3**group % 3 for group in range(5)]
        if np.bincount(at, sizes, 3).max() <= 0.8 * host.cores:
            fixed = np.eye(3)[at]
            least = min(least, drive(load, host, Peer(lambda _, fixed=fixed: fixed)).energy_j)  # type: ignore[misc]
    assert best.energy_j == pytest.approx(least, rel=0.001)


def test_a_recorded_load_is_in_cores(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("seconds,guest,demand\n0,a,2600\n300,a,5200\n600,a,1300\n0,b,260\n600,b,0\n")
    load = recorded(path)
    assert load.names == ("a", "b")
    assert load.demand.tolist() == [[1.0, 0.1], [2.0, 0.1], [0.5, 0.0]]
    assert load.threads.tolist() == [2.0, 1.0]
    with pytest.raises(RecordingError):
        recorded(tmp_path / "none")
