"""Our decision on the simulated host: what it sees there, and that it packs only where that saves."""

import numpy as np
import pytest
from sim.packages.groups import Load, steady, varying
from sim.packages.hardware import HOSTS
from sim.packages.ours import LOOK_S, Ours, findings
from sim.packages.policies import POLICIES, Seen
from sim.packages.run import Peer, drive

from sustain.schedulers.packages.rates import look, rates

LIGHT = 26.0  # cores: two packages of four are enough


def light(seed: int = 1, hours: float = 8.0) -> Load:
    return varying(seed, groups=20, hours=hours, cores=LIGHT)


def seen_by(ours: Ours) -> Seen:
    use = ours.load.demand[0]
    return Seen(0, use, None, ours.host.packages, ours.host.cores, use, use)


def test_the_active_test_tells_independent_from_coordinated() -> None:
    independent = {each.state: each for each in findings(HOSTS["independent-4"]) if each.package == 1}
    assert {state: each.independence for state, each in independent.items()} == {
        "pc2": "independent",
        "pc6": "independent",
    }
    assert independent["pc6"].parked_w == pytest.approx(44, abs=8)
    xeon = {each.state: each for each in findings(HOSTS["gold-6130-2"]) if each.package == 1}
    assert (xeon["pc2"].independence, xeon["pc6"].independence) == ("independent", "coordinated")
    assert xeon["pc2"].parked_w == pytest.approx(47.6 - 44.8 + 16 * 0.091, abs=0.5)  # next to nothing
    assert {each.independence for each in findings(HOSTS["rome-2"])} == {"coordinated"}
    assert findings(HOSTS["x3470-1"]) == ()


def test_counters_are_those_of_the_model() -> None:
    """Rates of two looks are what the interval between them was."""
    host = HOSTS["independent-4"]
    ours = Ours(light(), host)
    before = look(ours.observe())
    last = drive_once(ours)
    ours.place(seen_by(ours), last)
    found = rates(before, ours.observe())
    assert found is not None
    assert found.passed_s == LOOK_S
    assert list(found.busy.values()) == pytest.approx(last.cpu_use.sum(axis=(1, 2)).tolist())
    assert list(found.power_w.values()) == pytest.approx(last.watts.tolist())
    assert [each["pc6"] for each in found.residency.values()] == pytest.approx(last.states.pc6.tolist())
    assert found.used == pytest.approx(last.busy / LOOK_S)


def drive_once(ours: Ours):  # type: ignore[no-untyped-def]
    from sim.packages.machine import Machine

    shares = ours.place(seen_by(ours), None)
    assert np.allclose(shares, 0.25)
    machine = Machine(ours.host, ours.load.threads, ours.load.memory_bytes)
    return machine.step(ours.load.demand[0], shares, LOOK_S)


@pytest.mark.parametrize("name", ["rome-2", "gold-6130-2", "8180-2", "x5670-2"])
def test_on_coordinated_hosts_nothing_stays_packed(name: str) -> None:
    host = HOSTS[name]
    load = steady(2, groups=20, hours=6.0, cores=0.3 * host.packages * host.cores)
    ours = Ours(load, host)
    came = drive(load, host, ours)
    spread = drive(load, host, Peer(POLICIES["spread"]))
    assert ours.kept == 0
    assert ours.state is not None
    assert ours.state.parked == ()
    assert came.saving(spread) > -0.01
    assert ours.plan is not None
    assert ours.plan.verdict.startswith("not saving because")


def test_on_an_independent_host_packages_are_parked_and_that_saves() -> None:
    host, load = HOSTS["independent-4"], light()
    ours = Ours(load, host)
    came = drive(load, host, ours)
    spread = drive(load, host, Peer(POLICIES["spread"]))
    assert ours.kept >= 1
    assert came.saving(spread) > 0.08
    assert came.slower(spread) < 0.01
    assert came.above == 0.0
    assert came.done + came.left == pytest.approx(came.wanted)


def test_an_untested_host_is_left_alone_where_the_operator_wants_that() -> None:
    host, load = HOSTS["independent-4"], light(hours=3.0)
    ours = Ours(load, host, tested=False)
    assert drive(load, host, ours).moves == 0
    assert ours.trials == 0


def test_no_ping_pong_on_steady_load() -> None:
    """After the first hours, in which packages are tried, nothing is written."""
    host = HOSTS["independent-4"]
    load = steady(3, groups=20, hours=12.0, cores=LIGHT)
    first, whole = Ours(load, host), Ours(load, host)
    moved = drive(load.first(6 * 3600.0), host, first).moves
    assert moved > 0
    assert drive(load, host, whole).moves == moved


def test_the_same_seed_makes_the_same_with_noise() -> None:
    host, load = HOSTS["independent-4"], light(hours=4.0)
    came = [drive(load, host, Ours(load, host, noise_w=2.0, seed=seed)) for seed in (7, 7)]
    assert came[0] == came[1]
