"""The memory of this host's guests: what it is used for, what the scheduler would do or does, and why.

status   what each guest has, uses and should have
plan     the actions that would be taken now, or were, with their reasons
explain  where every figure of one guest comes from
admit    whether one more guest fits: now, after reclaiming from whom, or not
run      schedule, in the foreground, until Ctrl-C; then put everything back

Asks the agent when one runs (what it says then is its last plan). Otherwise looks at the guests for a while, plans and
changes nothing. Without --config and /etc/sustain/agent.toml: all guests that are found, with the default policy."""

import argparse
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from sustain.cli.agent import add_config, tell
from sustain.cli.output import (
    UNKNOWN,
    add_json,
    duration_argument,
    emit,
    fields,
    or_unknown,
    progress,
    size_argument,
    table,
)
from sustain.units import format_duration, format_size

HELP = "show, explain and schedule the memory of guests; ask whether one more fits"

_NOBODY = (
    "no guest was found: QEMU needs a QMP socket (-qmp unix:PATH,server=on,wait=off); libvirt's guests and cgroups are "
    "named in the configuration (docs/operating/guest-memory.md)"
)
_DEFAULT_CONFIG = "/etc/sustain/agent.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="status|plan|explain|admit|run", dest="what", required=True)
    for name, said in (
        ("status", "what each guest has, uses and should have"),
        ("plan", "what would be done now, and why"),
        ("explain", "where every figure of one guest comes from"),
        ("admit", "whether one more guest fits"),
        ("run", "schedule until Ctrl-C, then put everything back"),
    ):
        verb = verbs.add_parser(name, help=said, description=f"{name}: {said}")
        if name == "explain":
            verb.add_argument("guest")
        if name == "admit":
            verb.add_argument(
                "--size", type=size_argument, required=True, help="of the guest that is to come: 4GiB"
            )
            verb.add_argument("--shares", type=float, help="that it is to have (those of the default)")
        add_config(verb)
        if name == "run":
            verb.add_argument("--dry-run", action="store_true", help="make plans, and change nothing")
            continue
        verb.add_argument("--here", action="store_true", help="look from here, also when an agent runs")
        verb.add_argument(
            "--for",
            dest="span",
            type=duration_argument,
            default=4.0,
            metavar="TIME",
            help="how long to look when no agent is asked (4s); rates need two looks",
        )
        add_json(verb)


def run(args: argparse.Namespace) -> int:
    if args.what == "run":
        return _schedule(args)
    words = {"guest": getattr(args, "guest", None), "size": getattr(args, "size", None)}
    words["shares"] = getattr(args, "shares", None)
    question = "plan" if args.what == "status" else args.what
    data = _ask(args, question, {name: str(word) for name, word in words.items() if word is not None})
    show = {"status": _status, "plan": _plan, "explain": lambda data: str(data["text"]), "admit": _admission}
    emit(args, data, lambda: show[args.what](data))
    return 1 if args.what == "admit" and data["admission"]["verdict"] in ("no", "unknown") else 0


def _config(args: argparse.Namespace) -> Any:
    from sustain.agent.config import AgentConfig, GuestMemorySection, load
    from sustain.errors import ConfigError

    if args.config == _DEFAULT_CONFIG and not os.path.exists(args.config):
        return AgentConfig(guest_memory=GuestMemorySection(discover=True))
    config = load(args.config)
    if config.guest_memory is None:
        raise ConfigError(f"{args.config}: no [guest_memory]", hint="add that section; it may be empty")
    return config


def _schedule(args: argparse.Namespace) -> int:
    from sustain.agent.agent import Agent
    from sustain.agent.build import schedulers
    from sustain.clock import SystemClock

    config, clock = _config(args), SystemClock()
    Agent(config.agent, schedulers(config, clock), clock, act=not args.dry_run, tell=tell).run()
    return 0


def _ask(args: argparse.Namespace, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """The agent's answer, or what is found out here."""
    from sustain.agent.config import address
    from sustain.agent.http import get
    from sustain.errors import AgentError, SustainError

    config = _config(args)
    where = address(config.agent.listen)
    if where is not None and not args.here:
        try:
            page = get(where, f"/schedulers/guest-memory/{question}?{urllib.parse.urlencode(words)}")
        except AgentError:
            return _look(args, config, question, words)  # none runs
        import msgspec

        found: dict[str, Any] = msgspec.json.decode(page.body)
        if "error" in found:
            raise SustainError(found["error"], hint=found["hint"])
        return {"from": "agent", **found}
    return _look(args, config, question, words)


def _look(args: argparse.Namespace, config: Any, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Two ticks of a scheduler that cannot act, with the time to look at in between."""
    import time

    from sustain.agent.build import guest_memory
    from sustain.clock import SystemClock
    from sustain.errors import SustainError
    from sustain.schedulers.loop import Loop

    clock = SystemClock()
    scheduler = guest_memory(config, clock)
    try:
        loop: Any = Loop(scheduler, clock, act=False)
        for number in range(2):
            if number:
                progress(f"looking at the guests for {format_duration(args.span)}")
                time.sleep(args.span)
            tick = loop.tick()
            if tick.problem:
                raise SustainError(tick.problem, hint=tick.hint or "see `sustain agent check`")
        progress("")
        about = {"from": "here", "scheduler": scheduler.name, "age_s": 0.0, "acts": False, "problem": None}
        return about | scheduler.ask(question, words, tick)
    finally:
        scheduler.close()


def _status(data: dict[str, Any]) -> str:
    host, plan = data["observation"]["host"], {each["name"]: each for each in data["plan"]["guests"]}
    rows = [("guest", "kind", "classes by", "size", "has", "working set", "target", "in host swap", "can")]
    for guest in data["observation"]["guests"]:
        figures, row = guest["figures"], plan.get(guest["name"], {})
        age_s = row.get("age_s")
        rows.append(
            (
                guest["name"],
                guest["kind"],
                guest["source"] + ("" if age_s is None else f", {format_duration(age_s)} ago"),
                _size(figures["size_bytes"]),
                _size(figures["resident_bytes"]),
                _size(row.get("working_set_bytes")),
                _size(row.get("target_bytes")),
                _size(figures["host_swapped_bytes"]),
                ", ".join(guest["can"]) or "nothing",
            )
        )
    if len(rows) == 1:
        return "\n".join([_head(data), *_host(data["plan"]["host"], host), "", _NOBODY])
    lines = [_head(data), *_host(data["plan"]["host"], host), "", table(rows)]
    for guest in data["observation"]["guests"]:
        lines += [f"{guest['name']}: {problem}" for problem in guest["problems"]]
    return "\n".join(lines)


def _plan(data: dict[str, Any]) -> str:
    lines = [_head(data), *_host(data["plan"]["host"], data["observation"]["host"]), ""]
    lines += [_action(each) for each in data["plan"]["actions"]] or ["nothing is to be done"]
    lines += [
        f"did not come off: {each['action']['guest']}: {each['problem']}"
        for each in data["effects"]
        if not each["done"]
    ]
    return "\n".join(lines)


def _admission(data: dict[str, Any]) -> str:
    found = data["admission"]
    said = {
        "now": "fits now",
        "after reclaim": f"fits after about {or_unknown(found['seconds'], format_duration)} of reclaim",
        "no": f"does not fit: {_size(found['short_bytes'])} are missing",
        "unknown": "cannot be told",
    }[found["verdict"]]
    lines = [f"a guest of {_size(found['size_bytes'])} {said}"]
    lines.append(f"available beyond the host's goal: {_size(found['available_bytes'])}")
    rows = [
        (each["guest"], _size(each["amount_bytes"]), each["mechanism"], f"in {format_duration(each['seconds'])}",
         f"costs {or_unknown(each['cost_s'], format_duration)} of later waiting")
        for each in found["sources"]
    ]  # fmt: skip
    lines += [table(rows)] if rows else []
    return "\n".join(lines + [f"risk: {each}" for each in found["risk"]])


def _head(data: dict[str, Any]) -> str:
    if data["from"] == "here":
        return "from here: nothing is changed"
    mode = "acts" if data["acts"] else "dry run"
    problem = f"; {data['problem']}" if data["problem"] else ""
    return f"from the agent ({mode}), {format_duration(data['age_s'])} ago{problem}"


def _host(plan: dict[str, Any], host: dict[str, Any]) -> list[str]:
    swap = host["swap_total_bytes"]
    rows = [
        (
            "host",
            f"{plan['state']}: {_size(plan['available_bytes'])} available of {_size(host['total_bytes'])}",
        ),
        ("goal", _size(plan["goal_bytes"])),
        (
            "swap",
            UNKNOWN
            if swap is None
            else "none"
            if not swap
            else f"{_size(host['swap_free_bytes'])} free of {_size(swap)}",
        ),
    ]
    return [fields(rows), *(f"host: {each}" for each in [*host["problems"], *plan["problems"]])]


def _action(action: dict[str, Any]) -> str:
    if action["type"] == "balloon":
        what = f"{_size(action['from_bytes'])} -> {_size(action['to_bytes'])}"
    else:
        what = _size(action["amount_bytes"])
    return f"{action['guest']}: {action['type']} {what}: {action['reason']}"


def _size(size_bytes: float | None) -> str:
    return UNKNOWN if size_bytes is None else format_size(int(size_bytes))
