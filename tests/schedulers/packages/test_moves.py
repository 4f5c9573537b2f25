"""How few groups are moved, on a made-up host: each that is moved is told why."""

from sustain.schedulers.packages.model import Place, Release
from sustain.schedulers.packages.plan import Plan
from tests.schedulers.packages.machine import Group, Machine
from tests.schedulers.packages.test_decide import LIGHT, parked, places


def mixed(heavy: int = 6, light: int = 20, use: float = 1.0) -> dict[str, Group]:
    """Some that work, and many that hardly do."""
    works = {f"vm{number}": Group(use) for number in range(heavy)}
    return works | {f"idle{number}": Group(0.01) for number in range(light)}


def moved(plans: list[Plan]) -> list[str]:
    return [each.group for plan in plans for each in plan.actions if isinstance(each, Place | Release)]


def test_who_hardly_works_goes_to_one_package_and_is_not_moved_again() -> None:
    machine = Machine(packages=4, groups=mixed())
    first: list[Plan] = []
    while not first or not parked(first[-1]):
        first.append(machine.tick())
    first += machine.ticks(20.0)
    assert sorted(moved(first)) == sorted(machine.groups)
    assert {machine.groups[f"idle{number}"].cpus for number in range(20)} == {machine.cpus_of(3)}
    assert machine.groups["vm0"].cpus == (*machine.cpus_of(1), *machine.cpus_of(2), *machine.cpus_of(3))
    rest = machine.ticks(8000.0)
    assert len(parked(rest[-1])) == 2
    assert not [each for each in moved(rest) if each.startswith("idle")]


def test_who_hardly_works_alone_is_many_together() -> None:
    """A twentieth of a package all together; the others may run on all that are awake."""
    machine = Machine(packages=4, groups=mixed(light=80))
    while machine.state is None or not machine.state.parked:
        machine.tick()
    machine.ticks(20.0)
    bound = [name for name, group in machine.groups.items() if group.cpus == machine.cpus_of(3)]
    assert len(bound) == 40  # × 0.01 = 0.05 × 8 processors
    assert all(name.startswith("idle") for name in bound)


def test_a_full_package_is_relieved_of_its_heaviest_also_when_tasks_wait() -> None:
    machine = Machine(groups=mixed(heavy=4, use=0.5))
    machine.ticks(LIGHT)
    assert machine.state is not None
    assert machine.state.parked == (0,)
    machine.groups["vm2"].use = 6.0
    machine.pressure = 0.6
    plans = machine.ticks(40.0)
    assert moved(plans) == ["vm2"]
    assert parked(plans[-1]) == []


def test_who_is_relieved_may_use_what_is_woken_beside_what_it_had() -> None:
    """The kernel then balances it, so it is not moved again when others need room."""
    machine = Machine(packages=4, groups=mixed())
    machine.ticks(8000.0)
    assert machine.state is not None
    assert machine.state.parked == (0, 1)
    two_and_three = (*machine.cpus_of(2), *machine.cpus_of(3))
    machine.groups["vm0"].use = 9.0
    plans = machine.ticks(60.0)
    assert parked(plans[-1]) == [0]
    assert moved(plans) == ["vm0"]
    assert machine.groups["vm0"].cpus == (*machine.cpus_of(1), *two_and_three)
    assert machine.groups["vm1"].cpus == two_and_three
    machine.groups["vm1"].use = 5.0  # of 24 processors 18 are in use, of 16 they would be too many
    assert moved(machine.ticks(60.0)) == []


def test_when_it_is_not_known_who_waits_those_that_work_may_use_all() -> None:
    machine = Machine(groups=mixed(heavy=4, use=0.5))
    machine.ticks(LIGHT)
    machine.pressure = 0.6
    plans = machine.ticks(40.0)
    assert sorted(moved(plans)) == [f"vm{number}" for number in range(4)]
    assert parked(plans[-1]) == []


def test_a_comparison_moves_no_more_than_a_share_of_the_work() -> None:
    machine = Machine(groups=mixed(heavy=4, use=0.5))
    plans: list[Plan] = []
    while machine.state is None or machine.state.trial is None or machine.state.trial.steps[0] != "unpack":
        plans = [machine.tick()]
    plans += machine.ticks(10.0)
    assert sorted(moved(plans)) == ["vm0", "vm1"]
    assert machine.use().round(2).tolist() == [1.0, 1.2]


def test_a_workloads_metric_is_compared_with_what_was_before_anything_moved() -> None:
    machine = Machine(groups=mixed(heavy=4, use=0.5), metrics={"requests": 100.0})
    while machine.state is None or machine.state.trial is None or machine.state.trial.steps[0] != "unpack":
        machine.tick()
    machine.ticks(10.0)
    assert places(machine) == dict.fromkeys(machine.groups)


def test_a_trial_that_shows_nothing_leaves_what_another_one_has_found() -> None:
    machine = Machine(packages=3, groups=mixed(heavy=3, use=0.5))
    while machine.state is None or machine.state.trial is not None or not machine.state.parked:
        machine.tick()
    (kept,) = machine.state.parked
    # From now on nothing that is emptied saves anything.
    machine.asleep_w = machine.awake_w
    before = places(machine)
    plans: list[Plan] = []
    while not any(plan.judged for plan in plans):
        plans.append(machine.tick())
    assert not plans[-1].judged[0].kept
    after = machine.ticks(60.0)
    assert parked(after[-1]) == [kept]
    idle = [name for name in machine.groups if name.startswith("idle")]
    assert {name: places(machine)[name] for name in idle} == {name: before[name] for name in idle}
    assert all(not set(group.cpus or ()) & set(machine.cpus_of(kept)) for group in machine.groups.values())
