"""Every figure of a package and of a group is told with where it comes from, and why nothing moves."""

import msgspec
import numpy as np
import pytest

from sustain.errors import UnknownTarget
from sustain.schedulers.packages.explain import of_group, of_package, ranges
from sustain.schedulers.packages.measures import _PACKAGE, _TOTALS, measures
from sustain.schedulers.packages.model import Finding, Package
from sustain.schedulers.packages.plan import PackagePlan, Plan, Totals
from sustain.schedulers.packages.policy import GroupPolicy, Policy
from sustain.schedulers.packages.state import State
from tests.schedulers.packages.machine import Group, Machine

_HALF = tuple(range(8))


def machine(**fields: object) -> Machine:
    groups = {
        "web": Group(use=0.5),
        "vms.db": Group(use=1.0, bytes=(3 << 30, 1 << 30)),
        "bound": Group(use=0.2, cpus=_HALF),
        "rt": Group(use=0.1, realtime=1),
    }
    return Machine(groups=groups, **fields)  # type: ignore[arg-type]


def after(made: Machine, seconds: float = 100.0) -> tuple[Plan, State]:
    plan = made.ticks(seconds)[-1]
    assert made.state is not None
    return plan, made.state


def test_every_figure_of_a_package_is_there() -> None:
    made = machine(parked_w=25.0)
    plan, _ = after(made)
    one = plan.packages[1]
    text = of_package(plan, 1, made.policy)
    assert one.load is not None
    assert one.power_w is not None
    assert one.independent is not None
    for said in (
        "processors 8-15, 8 cores",
        "8 processors' work",
        one.kind,
        f"{one.load:.1%}",
        f"pc6 {one.residency['pc6']:.1%}",
        f"{one.independent:.1%}",
        f"{one.power_w:.1f} W",
        "pc6 is independent (active test); parking it saves 25.0 W",
        *one.reasons,
        plan.verdict,
    ):
        assert said in text


def test_what_is_not_measurable_is_said_with_the_reason() -> None:
    made = machine(counters=False, watts=False, independence=None)
    made.tick()
    seen = made.look()
    packages = tuple(
        Package(number=each.number, problems=("the kernel has no cstate_pkg",)) for each in seen.packages
    )
    fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
    plan, _ = after(made)
    plan = Plan(**{**vars(plan), "seen": type(seen)(**{**fields, "packages": packages})})
    text = of_package(plan, 0, made.policy)
    assert "residency     not measurable here, for the problems below" in text
    assert "nothing is known of what they depend on: `sustain packages test` finds out" in text
    assert "problem       the kernel has no cstate_pkg" in text


def test_a_coordinated_state_is_the_reason_not_to_move() -> None:
    made = machine(independence="coordinated", coordinated=True)
    plan, _ = after(made)
    text = of_package(plan, 0, made.policy)
    assert "coordinated here" in text
    assert "parking one saves nothing by itself" in text
    assert "not saving because" in text


def test_a_trial_is_told_with_its_steps() -> None:
    made = machine(policy=Policy(pack_after_s=30.0, spread_after_s=10.0))
    for _ in range(200):
        plan = made.tick()
        if plan.trial is not None and plan.trial.step == "on":
            break
    assert plan.trial is not None
    text = of_package(plan, plan.trial.package, made.policy)
    assert "measured while it is empty" in text
    assert f"{plan.trial.samples} samples" in text


def test_each_group_says_why_it_is_not_moved() -> None:
    made = machine(policy=Policy(groups={"web": GroupPolicy(movable=False, priority=3)}))
    plan, state = after(made)
    reasons = {
        "web": "the operator says so (movable = false)",
        "vms.db": "it is where it is to be",
        "bound": "somebody else limits them to some processors",
        "rt": "they have real-time threads",
    }
    for name, why in reasons.items():
        assert f"not moved     {why}" in of_group(plan, name, state, made.policy)
    text = of_group(plan, "vms.db", state, made.policy)
    assert "1.00 processors, on average" in text
    assert "node 0: 3 GiB, node 1: 1 GiB" in text
    assert "all 16 processors that are online" in text
    assert "priority 3" in of_group(plan, "web", state, made.policy)
    assert "processors 0-7, of packages 0" in of_group(plan, "bound", state, made.policy)


def test_a_group_that_is_moved_says_why() -> None:
    made = machine(policy=Policy(pack_after_s=30.0, spread_after_s=10.0))
    made.groups.pop("bound")
    moved = None
    for _ in range(200):
        plan = made.tick()
        if any(each.group == "web" for each in plan.actions):
            moved = plan
            break
    assert moved is not None
    assert made.state is not None
    assert "now           place (pack): package" in of_group(moved, "web", made.state, made.policy)
    plan = made.tick()
    assert made.state is not None
    assert "placed by us  on processors" in of_group(plan, "web", made.state, made.policy)


def test_what_is_not_there_is_an_error_that_names_what_is() -> None:
    made = machine()
    plan, state = after(made)
    with pytest.raises(UnknownTarget, match="package 7") as error:
        of_package(plan, 7, made.policy)
    assert "0, 1" in error.value.hint
    with pytest.raises(UnknownTarget, match="other: no such") as error:
        of_group(plan, "other", state, made.policy)
    assert "web" in error.value.hint


def test_a_former_finding_keeps_its_date() -> None:
    made = machine()
    plan, _ = after(made)
    found = Finding(package=0, state="pc2", independence="disabled", how="active test", at="2026-01-01T10:00")
    fields = {name: getattr(plan.seen, name) for name in plan.seen.__struct_fields__}
    seen = type(plan.seen)(**{**fields, "findings": (found,)})
    text = of_package(Plan(**{**vars(plan), "seen": seen}), 0, made.policy)
    assert "pc2 is disabled (active test, 2026-01-01T10:00)" in text


def test_ranges_are_as_people_write_them() -> None:
    assert ranges([]) == "none"
    assert ranges([3, 1, 0, 2, 7, 9, 8]) == "0-3,7-9"


def test_what_is_known_is_measured_and_nothing_else() -> None:
    made = machine(watts=False, pressure=0.25)
    plan, _ = after(made)
    found = {(each.name, each.labels): each.value for each in measures(plan.seen, plan)}
    assert not [name for name, _ in found if "power" in name]
    for package in plan.packages:
        labels = (("package", str(package.number)),)
        assert found["sustain_package_load_ratio", labels] == package.load
        assert (
            found["sustain_package_residency_ratio", (*labels, ("state", "pc6"))] == package.residency["pc6"]
        )
        assert found["sustain_package_class", (*labels, ("class", package.kind))] == 1
        independence = (*labels, ("state", "pc6"), ("found", "independent"))
        assert found["sustain_package_independence", independence] == 1
    assert found["sustain_packages_demand_processors", ()] == plan.totals.demand
    assert found["sustain_packages_groups", ()] == 4
    assert found["sustain_packages_pressure_ratio", ()] == 0.25
    left = {dict(labels)["why"]: value for (name, labels), value in found.items() if name.endswith("_left")}
    assert left == {each.why: each.count for each in plan.left}
    assert len(left) == 2


def test_measures_are_figures_that_there_are() -> None:
    assert set(_TOTALS) == set(Totals.__struct_fields__)
    assert set(_PACKAGE) <= set(PackagePlan.__struct_fields__)


def test_a_plan_has_a_form_in_json() -> None:
    plan, _ = after(machine())
    found = msgspec.json.decode(msgspec.json.encode(plan.as_dict()))
    assert found["verdict"] == plan.verdict
    assert np.isclose(found["packages"][0]["load"], plan.packages[0].load)
