"""What there is to watch of packages, as figures. Pure.

Used by `scheduler`, for the agent's metrics. An unknown is not there, rather than zero.
"""

from collections.abc import Iterator

from sustain.schedulers.measure import Measure
from sustain.schedulers.packages.model import Observation
from sustain.schedulers.packages.plan import PackagePlan, Plan

_TOTALS = {
    "demand": ("demand_processors", "processors in use, on average"),
    "needed": ("needed_processors", "processors' work that room is kept for"),
    "capacity": ("awake_processors", "processors' work that packages take that are not kept empty"),
    "room": ("room_processors", "of it, that may be planned for, less what is needed; negative: too little"),
    "power_w": ("power_watts", "of all packages, where each one's is measured"),
    "groups": ("groups", "groups of threads that are seen"),
    "placed": ("groups_placed", "of them, those that may use fewer packages by us"),
    "outside": ("outside_processors", "processors used by what belongs to no group"),
    "saved_j": ("saved_joules", "that trials measured as saved, times how long it was so, since the start"),
    "saved_s": ("saved_seconds", "time with a measured saving, since the start"),
}
_PACKAGE = {
    "load": ("load_ratio", "share of its capacity in use, on average"),
    "capacity": ("capacity_processors", "processors' work that it takes"),
    "independent": ("independent_ratio", "share of time in states that it enters whatever others do"),
    "power_w": ("power_watts", "of the package and its memory, as far as both are measured"),
    "parked": ("parked", "1: it is kept empty"),
}


def measures(seen: Observation, plan: Plan) -> Iterator[Measure]:
    """Of the host and of each package."""
    for field, (name, said) in _TOTALS.items():
        value = getattr(plan.totals, field)
        if value is not None:
            yield Measure(f"sustain_packages_{name}", said, float(value))
    if seen.pressure is not None:
        yield Measure(
            "sustain_packages_pressure_ratio", "share of time that a task waited for one", seen.pressure
        )
    for left in plan.left:
        yield Measure(
            "sustain_packages_groups_left", "groups that are not moved", left.count, (("why", left.why),)
        )
    if plan.trial is not None:
        labels = (("package", str(plan.trial.package)), ("step", plan.trial.step))
        yield Measure(
            "sustain_packages_trial_seconds", "that this step has been under way", plan.trial.for_s, labels
        )
    for package in plan.packages:
        yield from _package(package)
    for each in seen.packages:
        yield Measure(
            "sustain_package_problems",
            "things that are not measurable",
            len(each.problems),
            (("package", str(each.number)),),
        )


def _package(package: PackagePlan) -> Iterator[Measure]:
    labels = (("package", str(package.number)),)
    for field, (name, said) in _PACKAGE.items():
        value = getattr(package, field)
        if value is not None:
            yield Measure(f"sustain_package_{name}", said, float(value), labels)
    yield Measure("sustain_package_class", "1: it is of that class", 1.0, (*labels, ("class", package.kind)))
    for state, share in package.residency.items():
        yield Measure(
            "sustain_package_residency_ratio",
            "share of time in that idle state",
            share,
            (*labels, ("state", state)),
        )
    for state, found in package.independence.items():
        yield Measure(
            "sustain_package_independence",
            "1: that is known of its idle state",
            1.0,
            (*labels, ("state", state), ("found", found)),
        )
