"""Large pages for processes of this host: which of their blocks of 2 MiB are used, which are large, what is next.

doctor   what this host offers for that, and how to enable the rest
status   each target: how it is counted, blocks, large ones, coverage, bloat
plan     the actions that would be taken now, or were, with their reasons
explain  where every figure of a target, or of one block, comes from
map      a target's blocks as a picture: accessed pages, what is large, what is next
run      schedule, in the foreground, until Ctrl-C or for a time; then put everything back

Targets are those of the configuration, or the processes that --pid and --command name. Asks the agent when one runs
with [large_pages]; otherwise looks for a while, plans, and maps nothing."""

import argparse
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

from sustain.cli.agent import add_config
from sustain.cli.output import add_json, duration_argument, emit, fields, or_unknown, progress, table
from sustain.units import format_duration, format_size

HELP = "count used pages, show and schedule which blocks are mapped large"

_DEFAULT_CONFIG = "/etc/sustain/agent.toml"
_VERBS = {
    "doctor": "what this host offers, and how to enable the rest",
    "status": "what each target has, and what of it is used",
    "plan": "what would be done now, and why",
    "explain": "where every figure of a target or a block comes from",
    "map": "a target's blocks as a picture",
    "run": "schedule until Ctrl-C, then put everything back",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="|".join(_VERBS), dest="what", required=True)
    for name, said in _VERBS.items():
        verb = verbs.add_parser(name, help=said, description=f"{name}: {said}")
        if name == "doctor":
            add_json(verb)
            continue
        if name in ("explain", "map"):
            verb.add_argument("target")
        if name == "explain":
            verb.add_argument("address", nargs="?", help="of a block, or in it (the target as a whole)")
        if name == "map":
            kind = verb.add_mutually_exclusive_group()
            kind.add_argument("--svg", metavar="FILE", help="write it as SVG, in place of text")
            kind.add_argument(
                "--png", metavar="FILE", help="write it as PNG, which has no words in the picture"
            )
        add_config(verb)
        verb.add_argument("--pid", type=int, action="append", default=[], help="a process, as a target")
        verb.add_argument("--command", action="append", default=[], help="all processes of that command")
        verb.add_argument(
            "--period", type=duration_argument, metavar="TIME", help="of a look and of a count (10s)"
        )
        if name == "run":
            _add_run(verb)
            continue
        verb.add_argument("--here", action="store_true", help="look from here, also when an agent runs")
        verb.add_argument(
            "--for",
            dest="span",
            type=duration_argument,
            metavar="TIME",
            help="how long to look when no agent is asked (three periods)",
        )
        add_json(verb)


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="make plans, and map nothing")
    verb.add_argument(
        "--for", dest="span", type=duration_argument, metavar="TIME", help="how long (until Ctrl-C)"
    )
    verb.add_argument(
        "--metric",
        metavar="COMMAND",
        help="a command that prints one number, of the workload: run before and after, with both shown",
    )
    add_json(verb)


def run(args: argparse.Namespace) -> int:
    if args.what == "doctor":
        from sustain.cli import pages_doctor

        return pages_doctor.run(args)
    if args.what == "run":
        from sustain.cli import pages_run

        return pages_run.run(args, config_of(args))
    words = {name: getattr(args, name, None) for name in ("target", "address")}
    question = "plan" if args.what == "status" else args.what
    data = _ask(args, question, {name: str(word) for name, word in words.items() if word is not None})
    if args.what == "map" and (args.svg or args.png):
        return _picture(args, data)
    show = {"status": status, "plan": _plan, "explain": lambda data: str(data["text"]), "map": _map}
    emit(args, data, lambda: show[args.what](data))
    return 0


def config_of(args: argparse.Namespace) -> Any:
    """The configuration, with what the command line says beside it. Where that names processes, the file counts for all
    else: a run has its journal where the agent has its own, and `sustain agent restore` finds it."""
    import msgspec

    from sustain.agent.config import AgentConfig, LargePagesSection, load
    from sustain.errors import ConfigError
    from sustain.schedulers.large_pages.config import check
    from sustain.schedulers.large_pages.find import Wanted, may_be_called

    named = tuple(Wanted(name=str(pid), pid=pid) for pid in args.pid)
    named += tuple(Wanted(name=command, command=command) for command in args.command)
    if args.config == _DEFAULT_CONFIG and not os.path.exists(args.config):
        config = AgentConfig(large_pages=LargePagesSection())
    else:
        config = load(args.config)
    section = config.large_pages or LargePagesSection()
    if named:
        own = {
            name: each for name, each in section.policy.targets.items() if may_be_called(named, name)
        }  # the others' targets are not looked at now
        policy = msgspec.structs.replace(section.policy, targets=own)
        section = msgspec.structs.replace(section, targets=named, policy=policy)
    if args.period is not None:
        section = msgspec.structs.replace(section, period_s=args.period, count_period_s=args.period)
    if not section.targets:
        raise ConfigError(
            "no process is named",
            hint="give --pid or --command, or [[large_pages.targets]] in the configuration",
        )
    check(section.whole)
    return msgspec.structs.replace(config, guest_memory=None, large_pages=section)


def _ask(args: argparse.Namespace, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """The agent's answer, or what is found out here."""
    import msgspec

    from sustain.agent.config import address
    from sustain.agent.http import get
    from sustain.errors import AgentError, SustainError

    config = config_of(args)
    where = address(config.agent.listen)
    if where is None or args.here or args.pid or args.command:
        return _look(args, config, question, words)
    try:
        page = get(where, f"/schedulers/large-pages/{question}?{urllib.parse.urlencode(words)}")
        found: dict[str, Any] = msgspec.json.decode(page.body)
    except (AgentError, msgspec.DecodeError):
        return _look(args, config, question, words)  # none runs, or it has no such scheduler
    if "error" in found:
        raise SustainError(found["error"], hint=found["hint"])
    return {"from": "agent", **found}


def _look(args: argparse.Namespace, config: Any, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Some ticks of a scheduler that cannot act."""
    import time

    from sustain.agent.build import large_pages
    from sustain.clock import SystemClock
    from sustain.errors import SustainError
    from sustain.schedulers.large_pages.counting import expected_period_s
    from sustain.schedulers.loop import Loop

    clock = SystemClock()
    period_s = expected_period_s(config.large_pages.counting, config.large_pages.count_period_s)
    span_s = 3 * period_s if args.span is None else args.span
    scheduler = large_pages(config, clock)
    try:
        loop: Any = Loop(scheduler, clock, act=False)
        end_s = clock.boottime_ns() / 1e9 + span_s
        while True:
            tick = loop.tick()
            if tick.problem:
                raise SustainError(tick.problem, hint=tick.hint)
            left_s = end_s - clock.boottime_ns() / 1e9
            if left_s <= 0:
                break
            progress(f"counting for {format_duration(left_s)} more")
            time.sleep(min(period_s, left_s))
        progress("")
        about = {"from": "here", "scheduler": scheduler.name, "age_s": 0.0, "acts": False, "problem": None}
        return about | scheduler.ask(question, words, tick)
    finally:
        scheduler.close()


def status(data: dict[str, Any]) -> str:
    """Each target, and what is in the way."""
    plan, host = data["plan"], data["host"]
    totals = plan["totals"]
    rows = [("target", "process", "counted", "phase", "blocks", "large", "wants", "coverage", "bloat")]
    for each in plan["targets"]:
        rows.append(
            (
                each["name"],
                str(each["pid"]),
                f"{each['counting']}, {each['counts']} times",
                "1: counts" if each["phase"] == 1 else "2: maps",
                str(each["blocks"]),
                str(each["large"]),
                str(each["wanted"]),
                or_unknown(each["coverage"], "{:.1%}".format),
                format_size(int(each["bloat_bytes"])),
            )
        )
    budget = "no budget" if totals["budget"] is None else f"a budget of {totals['budget']}"
    about = [
        ("large pages", f"{totals['large']} of {totals['blocks']} blocks, {budget}"),
        ("coverage", f"{or_unknown(totals['coverage'], '{:.1%}'.format)} of accessed pages, by estimate"),
        ("bloat", format_size(int(totals["bloat_bytes"]))),
        ("free large", or_unknown(host["free_large_pages"])),
        ("memory", "scarce: blocks are mapped small" if totals["scarce"] else "enough"),
    ]
    lines = [_head(data), fields(about)]
    lines += ["", table(rows)] if len(rows) > 1 else ["", "no target is there"]
    lines += [f"{each['name']}: {problem}" for each in plan["targets"] for problem in each["problems"]]
    return "\n".join(lines + list(plan["problems"]))


def _plan(data: dict[str, Any]) -> str:
    plan = data["plan"]
    lines = [_head(data)]
    lines += [_action(each) for each in plan["actions"]] or ["nothing is to be done"]
    for each in data["effects"]:
        if each["outcome"] != "done":
            where = f"{each['action']['target']} {each['action']['address']:#x}"
            lines.append(f"did not come off: {where}: {each['outcome']}: {each['detail']}")
    lines += [
        f"{number:>8} blocks {kind.replace('_', ' ')}" for kind, number in plan["findings"].items() if number
    ]
    return "\n".join(lines + list(plan["problems"]))


def _map(data: dict[str, Any]) -> str:
    from sustain.schedulers.large_pages import heat

    return "\n".join((_head(data), *heat.text(data["columns"]), heat.LEGEND))


def _picture(args: argparse.Namespace, data: dict[str, Any]) -> int:
    from pathlib import Path

    from sustain.schedulers.large_pages import heat, heat_png

    file = args.svg or args.png
    columns = data["columns"]
    drawn = heat.svg(args.target, columns).encode() if args.svg else heat_png.png(args.target, columns)
    Path(file).write_bytes(drawn)
    found = {"file": file, "target": args.target, "blocks": len(columns["address"])}
    emit(args, found, lambda: f"{file}: {found['blocks']} blocks")
    return 0


def _head(data: dict[str, Any]) -> str:
    if data["from"] == "here":
        return "from here: nothing is mapped"
    mode = "acts" if data["acts"] else "dry run"
    problem = f"; {data['problem']}" if data["problem"] else ""
    return f"from the agent ({mode}), {format_duration(data['age_s'])} ago{problem}"


def _action(action: dict[str, Any]) -> str:
    return f"{action['target']} {action['address']:#x}: {action['type']} ({action['purpose']}): {action['reason']}"
