"""Our decision on the simulated host: what it sees there, and that it packs only where that saves."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim.packages.groups import Load, steady, varying
from sim.packages.hardware import HOSTS
from sim.packages.machine import Interval, Machine
from sim.packages.ours import LOOK_S, Ours, findings
from sim.packages.policies import POLICIES, Seen
from sim.packages.residency import Floats
from sim.packages.run import Peer, drive
from sim.packages.traces import recorded

from sustain.errors import RecordingError
from sustain.schedulers.packages.rates import look, rates
from sustain.schedulers.recording import Header, Recorder

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


def drive_once(ours: Ours) -> Interval:
    shares = ours.place(seen_by(ours), None)
    assert np.allclose(shares, 0.25)
    machine = Machine(ours.host, ours.load.threads, ours.load.memory_bytes)
    return machine.step(ours.load.demand[0], shares, LOOK_S)


@pytest.mark.parametrize("name", ["rome-2", "gold-6130-2", "8180-2", "x5670-2"])
def test_on_coordinated_hosts_nothing_stays_packed(name: str) -> None:
    host = HOSTS[name]
    load = steady(2, groups=20, hours=3.0, cores=0.3 * host.packages * host.cores)
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
    load = steady(3, groups=20, hours=8.0, cores=LIGHT)
    first, whole = Ours(load, host), Ours(load, host)
    moved = drive(load.first(3 * 3600.0), host, first).moves
    assert moved > 0
    assert drive(load, host, whole).moves == moved


def test_the_same_seed_makes_the_same_with_noise() -> None:
    host, load = HOSTS["independent-4"], light(hours=4.0)
    came = [drive(load, host, Ours(load, host, noise_w=2.0, seed=seed)) for seed in (7, 7)]
    assert came[0] == came[1]


def test_a_recording_of_ours_is_a_load(tmp_path: Path) -> None:
    """What one simulated host used, recorded as a real one is, and read again."""
    host, load = HOSTS["independent-4"], light(hours=2.0)
    path = tmp_path / "recording"
    header = Header(scheduler="packages", sustain="0", host="h", kernel="k", started="", period_s=60.0)
    with Recorder(path, header) as recorder:
        drive(load, host, Recording(Ours(load, host), recorder))
    found = recorded(path)
    assert found.names == load.names
    assert found.demand.shape == (23, 20)  # the last look is before the last step's end
    assert np.allclose(found.demand, load.demand[:23], rtol=0.05)  # memory that moves costs some work
    assert found.memory_bytes.tolist() == pytest.approx(load.memory_bytes.tolist())
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(RecordingError, match="no group is in it twice"):
        recorded(path)


@dataclass
class Recording:
    """Ours, and what it sees is recorded."""

    ours: Ours
    recorder: Recorder

    @property
    def tick_s(self) -> float:
        return self.ours.tick_s

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        found = self.ours.place(seen, last)
        self.recorder.write(self.ours.observe())
        return found


@pytest.mark.parametrize(("cores", "seed"), [(26.0, 1), (40.0, 2)])
def test_no_ping_pong_on_varying_load_and_hardly_ever_above_the_headroom(cores: float, seed: int) -> None:
    """No package is emptied and woken in turns. Load that grows beyond all that was seen is above the peers' head-room
    for as long as it takes to wake one, and never longer: of twelve hours, that is minutes at most."""
    host = HOSTS["independent-4"]
    load = varying(seed, groups=20, hours=12.0, cores=cores)
    watched = Watching(Ours(load, host))
    came = drive(load, host, watched)
    assert came.above <= 0.005
    parked = watched.parked
    assert len(parked) >= 2
    woken = [earlier for earlier, later in itertools.pairwise(parked) if earlier != later[: len(earlier)]]
    assert len(woken) <= 1


@dataclass
class Watching:
    """Ours, and which packages are parked while no trial is under way, each time that changed."""

    ours: Ours
    parked: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def tick_s(self) -> float:
        return self.ours.tick_s

    def place(self, seen: Seen, last: Interval | None) -> Floats:
        found = self.ours.place(seen, last)
        state = self.ours.state
        assert state is not None
        if state.trial is None and (not self.parked or self.parked[-1] != state.parked):
            self.parked.append(state.parked)
        return found
