"""What `sustain packages` says, for people: a plan's dict in, lines out. Used by `packages`."""

from typing import Any

from sustain.cli.output import fields, or_unknown, table
from sustain.units import format_duration

_NOT_HERE = "not measurable"


def status(data: dict[str, Any]) -> str:
    """Each package, and the host in one sentence."""
    plan, host = data["plan"], data["host"]
    read = {each["number"]: each for each in host["packages"]}
    rows: list[tuple[str, ...]] = [
        ("package", "class", "load", "residency", "independence", "watts", "kept empty")
    ]
    rows += [_row(each, read[each["number"]]) for each in plan["packages"]]
    lines = [head(data), fields(_about(data)), "", table(rows), ""]
    lines += [f"package {each['number']}: {each['reasons'][0]}" for each in plan["packages"]]
    lines += [f"package {each['package']}: {each['state']}: {each['text']}" for each in host["likely"]]
    lines += [f"package {each['number']}: {said}" for each in host["packages"] for said in each["problems"]]
    return "\n".join(lines + _left(plan) + list(plan["problems"]))


def plan(data: dict[str, Any]) -> str:
    """What is to be done, with all reasons."""
    found = data["plan"]
    lines = [head(data), found["verdict"]]
    if found["trial"]:
        lines.append(_trial(found["trial"]))
    lines += [_action(each) for each in found["actions"]] or ["nothing is to be moved"]
    for each in data["effects"]:
        if each["outcome"] != "done":
            what = each["action"].get("group", "interrupts")
            lines.append(f"did not come off: {what}: {each['outcome']}: {each['detail']}")
    for each in found["packages"]:
        lines.append(f"package {each['number']}: {each['kind']}" + (", kept empty" if each["parked"] else ""))
        lines += [f"  {reason}" for reason in each["reasons"]]
    return "\n".join(lines + _left(found) + list(found["problems"]))


def explanation(data: dict[str, Any]) -> str:
    """Of a package or a group."""
    return str(data["text"])


def ran(data: dict[str, Any]) -> str:
    """What a run came to."""
    rows = [
        ("ticks", str(data["ticks"])),
        ("actions", f"{data['actions']}, of which {data['refused']} did not come off"),
        ("groups", f"{data['totals']['groups']}, of which {data['totals']['placed']} were placed at the end"),
        ("saved", _saved(data["totals"])),
        ("at the end", data["verdict"]),
    ]
    return "\n".join((fields(rows), *data["left"]))


def head(data: dict[str, Any]) -> str:
    """Who says it, and how old it is."""
    if data["from"] == "here":
        return "from here: nothing is moved"
    mode = "acts" if data["acts"] else "dry run"
    problem = f"; {data['problem']}" if data["problem"] else ""
    return f"from the agent ({mode}), {format_duration(data['age_s'])} ago{problem}"


def _about(data: dict[str, Any]) -> list[tuple[str, str]]:
    plan, host = data["plan"], data["host"]
    totals = plan["totals"]
    rows = [
        ("host", host["title"] or "unknown"),
        ("verdict", plan["verdict"]),
        ("load", _load(totals)),
        ("watts", _NOT_HERE if totals["power_w"] is None else f"{totals['power_w']:.1f} W of all packages"),
        ("saved", _saved(totals)),
        ("waiting", _pressure(host["pressure"])),
        ("groups", f"{totals['groups']}, of which {totals['placed']} are placed by us"),
    ]
    if plan["trial"]:
        rows.append(("trial", _trial(plan["trial"])))
    for each in (*host["verdicts"], *plan["verdicts"])[-3:]:
        ago = format_duration(max(0.0, plan["at_s"] - each["at_s"]))
        kept = "kept empty" if each["kept"] else "undone"
        rows.append(("found", f"package {each['package']} was {kept} {ago} ago: {each['detail']}"))
    return rows


def _row(package: dict[str, Any], read: dict[str, Any]) -> tuple[str, ...]:
    load = or_unknown(package["load"], "{:.0%}".format)
    residency = ", ".join(f"{state} {share:.0%}" for state, share in package["residency"].items())
    if not residency:
        residency = _NOT_HERE if read["source"] == "none" else "unknown yet"
    elif read["source"] in ("hsmp", "cpuidle"):
        residency += f" (estimate by {read['source']})"
    watts = or_unknown(package["power_w"], "{:.1f} W".format)
    if package["power_w"] is None and read["power_source"] == "none":
        watts = _NOT_HERE
    known = ", ".join(f"{state} {found}" for state, found in package["independence"].items())
    return (
        str(package["number"]),
        package["kind"],
        f"{load} of {package['capacity']:g}",
        residency,
        known or "unknown",
        watts,
        "yes" if package["parked"] else "no",
    )


def _load(totals: dict[str, Any]) -> str:
    use = or_unknown(totals["demand"], "{:.2f}".format)
    said = f"{use} processors in use, of {totals['capacity']:g} that are awake"
    if totals["needed"] is not None:
        said += f"; room is kept for {totals['needed']:.2f}"
    if totals["outside"] is not None:
        said += f"; {totals['outside']:.2f} by what is in no group"
    return said


def _saved(totals: dict[str, Any]) -> str:
    if not totals["saved_s"]:
        return "nothing that was measured"
    joules, seconds = totals["saved_j"], totals["saved_s"]
    energy = f"{joules / 3.6e6:.3g} kWh" if joules >= 3.6e5 else f"{joules:.3g} J"
    return f"{energy} in {format_duration(seconds)} ({joules / seconds:.1f} W), by what trials measured"


def _pressure(pressure: float | None) -> str:
    if pressure is None:
        return "unknown: this kernel does not tell how long tasks wait for processors"
    return f"some task waited for a processor in {pressure:.0%} of the time"


def _trial(trial: dict[str, Any]) -> str:
    then = f"; then {', '.join(trial['left'])}" if trial["left"] else ""
    unit = {"W": "watts", "package": "residency", "": "nothing"}[trial["unit"]]
    return (
        f"package {trial['package']} is on trial: {trial['step']} for {format_duration(trial['for_s'])}, "
        f"{trial['samples']} samples of {unit}{then}"
    )


def _left(plan: dict[str, Any]) -> list[str]:
    lines = []
    for each in plan["left"]:
        names = ", ".join(each["names"]) + (", …" if each["count"] > len(each["names"]) else "")
        lines.append(f"{each['count']} groups are not moved: {each['why']} ({names})")
    return lines


def _action(action: dict[str, Any]) -> str:
    what = f"{action.get('group', 'interrupts')}: {action['type']} ({action['purpose']})"
    if action["type"] == "place":
        packages = ", ".join(str(each) for each in action["packages"])
        what += f" on packages {packages}" + (", with its memory" if action["nodes"] is not None else "")
    return f"{what}: {action['reason']}"
