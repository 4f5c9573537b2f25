"""Where every figure of a package or a group comes from, in words, and why it is moved or is not. Pure.

Used by `scheduler` for `sustain packages explain`, and by `sustain replay`.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from sustain.errors import UnknownTarget
from sustain.schedulers.packages.model import MIXED, Finding, Groups, Observation, Package
from sustain.schedulers.packages.placing import standing
from sustain.schedulers.packages.plan import PackagePlan, Plan
from sustain.schedulers.packages.policy import Policy
from sustain.schedulers.packages.state import NOT_PLACED, State
from sustain.units import format_duration, format_size

_SOURCE = {
    "perf": "the kernel's perf counters",
    "msr": "the processor's registers (MSR)",
    "hsmp": "AMD's HSMP: time that its cores are not in C0, an estimate",
    "cpuidle": "the kernel's cpuidle: time that its processors are in their deepest state, an estimate",
    "none": "nothing",
}
_POWER = {
    "powercap": "RAPL, by powercap",
    "perf": "RAPL, by perf",
    "hsmp": "AMD's HSMP",
    "none": "nothing",
}
_STEPS = {
    "off": "measured while it is used",
    "pack": "groups move away from it",
    "settle": "settling",
    "on": "measured while it is empty",
    "unpack": "groups may use it again, to compare",
}


def of_name(plan: Plan, name: str, state: State, policy: Policy) -> str:
    """The package of that number, or the group of that name. Raises UnknownTarget."""
    if name.isdecimal() and name not in plan.seen.groups.name:
        return of_package(plan, int(name), policy)
    return of_group(plan, name, state, policy)


def of_package(plan: Plan, number: int, policy: Policy) -> str:
    """One package, line by line. Raises UnknownTarget."""
    one = next((each for each in plan.packages if each.number == number), None)
    seen = next((each for each in plan.seen.packages if each.number == number), None)
    if one is None or seen is None:
        known = ", ".join(str(each.number) for each in plan.packages)
        raise UnknownTarget(
            f"package {number}: there is none with processors online", hint=f"there is: {known}"
        )
    rows = plan.seen.cpus.package == number
    cpus = plan.seen.cpus.number[rows].tolist()
    cores = len(set(zip(plan.seen.cpus.die[rows].tolist(), plan.seen.cpus.core[rows].tolist(), strict=True)))
    lines = [
        f"package         {number}: processors {ranges(cpus)}, {cores} cores",
        f"  capacity      {one.capacity:g} processors' work, "
        + ("one thread for each core" if policy.smt == "avoid" else "with second threads of cores"),
        f"  class         {one.kind}" + (f", for {format_duration(one.since_s)}" if one.since_s else ""),
        f"  load          {_load(one, policy)}",
        f"  residency     {_residency(one, seen, plan.at_s)}",
        *_independence(plan, number),
        f"  independent   {_independent(one, policy)}",
        f"  power         {_power(one, seen, plan.at_s)}",
        f"  kept empty    {'yes, by us' if one.parked else 'no'}",
        *_trial(plan, number),
        *_verdicts(plan, number),
    ]
    lines += [f"  why           {each}" for each in one.reasons]
    lines += [f"  problem       {each}" for each in seen.problems]
    return "\n".join([*lines, f"host            {plan.verdict}"])


def of_group(plan: Plan, name: str, state: State, policy: Policy) -> str:
    """One group, line by line; `state`: what the plan's decision remembers. Raises UnknownTarget."""
    groups = plan.seen.groups
    if name not in groups.name:
        known = ", ".join(groups.name[:10]) + (", …" if len(groups) > 10 else "")
        raise UnknownTarget(
            f"{name}: no such package or group",
            hint=f"there is: {known}"
            if known
            else "no group is named in the configuration, or none was found",
        )
    row, wanted = groups.name.index(name), policy.of(name)
    mean = float(state.groups.mean[row])
    placed = int(state.groups.placed[row])
    lines = [
        f"group           {name}: a {groups.kind[row]}, {groups.threads[row]} threads",
        f"  use           {'unknown yet' if np.isnan(mean) else f'{mean:.2f} processors, on average'}",
        f"  may use       {_where(plan.seen, row)}",
        f"  memory        {_memory(plan.seen, row)}",
        f"  real-time     {_number(int(groups.realtime[row]))}",
        f"  bound         {_number(int(groups.pinned[row]))} by a user's setting of their own",
        f"  placed by us  {'no' if placed == NOT_PLACED else f'on processors {ranges(state.sets[placed])}'}",
        f"  its policy    priority {wanted.priority}; "
        + (f"apart from others of {wanted.apart!r}; " if wanted.apart else "")
        + ("its memory follows" if wanted.memory else "its memory stays"),
    ]
    actions = [each for each in plan.actions if each.group == name]
    lines += [f"  now           {_action(each)}" for each in actions]
    if not actions:
        lines.append(f"  not moved     {_not_moved(plan, row, state)}")
    return "\n".join([*lines, f"host            {plan.verdict}"])


def ranges(numbers: Iterable[int]) -> str:
    """Processors' numbers as people write them: "0-7,16"; "none"."""
    parts: list[list[int]] = []
    for each in sorted(set(numbers)):
        if parts and parts[-1][1] == each - 1:
            parts[-1][1] = each
        else:
            parts.append([each, each])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def _load(one: PackagePlan, policy: Policy) -> str:
    if one.load is None:
        return "unknown yet: it takes two looks"
    return (
        f"{one.load:.1%} of that in use, averaged over {format_duration(policy.average_s)}; high from "
        f"{policy.high:.0%} until {policy.high_leave:.0%}, medium from {policy.medium:.0%} until "
        f"{policy.medium_leave:.0%}, else light"
    )


def _residency(one: PackagePlan, seen: Package, at_s: float) -> str:
    if not one.residency:
        if seen.source != "none":
            return f"unknown yet, by {_SOURCE[seen.source]}: it takes two looks"
        return "not measurable here" + (", for the problems below" if seen.problems else "")
    shares = ", ".join(f"{state} {share:.1%}" for state, share in one.residency.items())
    read = "" if seen.read_s is None else f", read {format_duration(max(0.0, at_s - seen.read_s))} ago"
    return f"{shares} of all time, by {_SOURCE[seen.source]}{read}"


def _independence(plan: Plan, number: int) -> list[str]:
    mine = [each for each in plan.seen.findings if each.package == number]
    if not mine:
        return ["  states        nothing is known of what they depend on: `sustain packages test` finds out"]
    return [f"  states        {_finding(each)}" for each in mine]


def _finding(found: Finding) -> str:
    said = f"{found.state} is {found.independence} ({found.how}{', ' + found.at if found.at else ''})"
    if found.parked_w is not None:
        error = "" if found.parked_error_w is None else f" ± {found.parked_error_w:.1f}"
        said += f"; parking it saves {found.parked_w:.1f}{error} W"
    return said + (f": {found.detail}" if found.detail else "")


def _independent(one: PackagePlan, policy: Policy) -> str:
    if one.independent is None:
        return "no state of it is known to be independent, or none is measurable"
    idle = max(1e-9, 1 - min(one.load or 0.0, 1.0))
    return (
        f"{one.independent:.1%} of all time in independent states, {min(1.0, one.independent / idle):.1%} of what is "
        f"idle; power-efficient from {policy.efficient:.0%} until {policy.efficient_leave:.0%} of it"
    )


def _power(one: PackagePlan, seen: Package, at_s: float) -> str:
    if one.power_w is None:
        if seen.power_source != "none":
            return f"unknown yet, by {_POWER[seen.power_source]}: it takes two looks"
        return "not measurable here"
    read = (
        ""
        if seen.energy_read_s is None
        else f", read {format_duration(max(0.0, at_s - seen.energy_read_s))} ago"
    )
    return f"{one.power_w:.1f} W on average, by {_POWER[seen.power_source]}{read}"


def _trial(plan: Plan, number: int) -> list[str]:
    trial = plan.trial
    if trial is None or trial.package != number:
        return []
    unit = {"W": "watts", "package": "time in independent states"}.get(trial.unit, "nothing")
    return [
        f"  trial         {_STEPS.get(trial.step, trial.step)}, for {format_duration(trial.for_s)}; of {unit} "
        f"{trial.samples} samples so far; then {', '.join(trial.left) or 'it is judged'}"
    ]


def _verdicts(plan: Plan, number: int) -> list[str]:
    mine = [each for each in (*plan.seen.verdicts, *plan.judged) if each.package == number]
    return [
        f"  verdict       {'kept' if each.kept else 'undone'}, {format_duration(max(0.0, plan.at_s - each.at_s))} ago: "
        f"{each.detail}"
        for each in mine[-1:]
    ]


def _where(seen: Observation, row: int) -> str:
    place = int(seen.groups.place[row])
    if place == MIXED:
        return "its threads may not all use the same processors"
    cpus = set(seen.places[place])
    online = set(seen.cpus.number.tolist())
    if online <= cpus:
        return f"all {len(online)} processors that are online"
    packages = sorted(
        {
            package
            for cpu, package in zip(seen.cpus.number.tolist(), seen.cpus.package.tolist(), strict=True)
            if cpu in cpus
        }
    )
    return f"processors {ranges(cpus & online)}, of packages {ranges(packages)}"


def _memory(seen: Observation, row: int) -> str:
    if not seen.nodes:
        return "this kernel tells of no nodes"
    table = seen.groups.memory_bytes.reshape(len(seen.groups), -1)[row]
    if np.isnan(table).all():
        return "unknown"
    return ", ".join(
        f"node {node.number}: {'unknown' if np.isnan(size) else format_size(int(size))}"
        for node, size in zip(seen.nodes, table.tolist(), strict=True)
    )


def _action(action: object) -> str:
    kind = action.__struct_config__.tag  # type: ignore[attr-defined]
    return f"{kind} ({action.purpose}): {action.reason}"  # type: ignore[attr-defined]


def _not_moved(plan: Plan, row: int, state: State) -> str:
    """By the same rules as for all, of this group alone."""
    seen, memory = plan.seen, state.groups
    fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
    groups = seen.groups
    columns = {
        name: getattr(groups, name)[row : row + 1]
        for name in groups.__struct_fields__
        if name != "memory_bytes"
    }
    nodes = len(groups.memory_bytes) // len(groups)
    alone = Groups(**columns, memory_bytes=groups.memory_bytes[row * nodes : (row + 1) * nodes])
    mine = replace(
        memory, **{name: getattr(memory, name)[row : row + 1] for name in memory.__dataclass_fields__}
    )
    left = standing(Observation(**(fields | {"groups": alone})), mine, state.sets).left
    if left:
        return left[0].why
    return "it is where it is to be"


def _number(value: int) -> str:
    return "an unknown number of threads" if value < 0 else f"{value} threads"
