"""Processor packages of this host: how idle each is, what emptying one would save, and which groups run where.

doctor   which sources this host has for residency and watts, and how to enable the rest
status   each package: class, load, residency, independence, watts, and why it is emptied or not
plan     what would be done now, or was, with reasons; nothing is moved
explain  where every figure of a package or a group comes from
test     find out which idle states are independent of the other packages, by loading and idling them: two minutes
run      place groups, in the foreground, until Ctrl-C or for a time; then put everything back

Groups are those of the configuration, or what --cgroup, --guest, --command and --pid name. Asks the agent when one runs
with [packages]; otherwise looks twice and moves nothing."""

import argparse
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from sustain.cli import packages_test
from sustain.cli.agent import add_config
from sustain.cli.output import add_json, duration_argument, emit, progress
from sustain.units import format_duration

HELP = "show what packages save or could, test their idle states, place groups of threads"

_DEFAULT_CONFIG = "/etc/sustain/agent.toml"
_VERBS = {
    "doctor": "which sources there are for residency and watts, and how to enable the rest",
    "status": "what each package is, and why it is emptied or not",
    "plan": "what would be done now, and why",
    "explain": "where every figure of a package or a group comes from",
    "test": "find out which idle states are independent, by loading and idling packages",
    "run": "place groups until Ctrl-C, then put everything back",
}
_WAYS = {
    "cgroup": ("PATH", "a cgroup below the mount, as a group; with * each that matches"),
    "guest": ("NAME", "a QEMU guest, as a group; * for all"),
    "command": ("NAME", "all processes of that command, each as a group"),
    "pid": ("PID", "a process, as a group"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="|".join(_VERBS), dest="what", required=True)
    for name, said in _VERBS.items():
        verb = verbs.add_parser(name, help=said, description=f"{name}: {said}")
        add_json(verb)
        if name == "doctor":
            continue
        add_config(verb)
        if name == "test":
            packages_test.add_arguments(verb)
            continue
        if name == "explain":
            verb.add_argument("name", help="a package's number, or a group's name")
        for way, (metavar, help_) in _WAYS.items():
            kind = int if way == "pid" else str
            verb.add_argument(f"--{way}", type=kind, action="append", default=[], metavar=metavar, help=help_)
        if name == "run":
            _add_run(verb)
            continue
        verb.add_argument("--here", action="store_true", help="look from here, also when an agent runs")
        verb.add_argument(
            "--interval",
            type=duration_argument,
            default=5.0,
            metavar="TIME",
            help="between the two looks when no agent is asked (5s)",
        )


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="make plans, and move nothing")
    verb.add_argument(
        "--for", dest="span", type=duration_argument, metavar="TIME", help="how long (until Ctrl-C)"
    )
    verb.add_argument("--period", type=duration_argument, metavar="TIME", help="between two looks (10s)")


def run(args: argparse.Namespace) -> int:
    if args.what == "doctor":
        from sustain.cli import doctor_packages

        return doctor_packages.run(args)
    if args.what == "test":
        return packages_test.run(args, config_of(args))
    if args.what == "run":
        return _run(args)
    from sustain.cli import packages_text

    question = "plan" if args.what == "status" else args.what
    data = _ask(args, question, {"name": args.name} if args.what == "explain" else {})
    show = {
        "status": packages_text.status,
        "plan": packages_text.plan,
        "explain": packages_text.explanation,
    }
    emit(args, data, lambda: show[args.what](data))
    return 0


def config_of(args: argparse.Namespace) -> Any:
    """The configuration, with what the command line says beside it. Where that names groups, the file counts for all
    else: a run has its journal where the agent has its own, and `sustain agent restore` finds it."""
    import msgspec

    from sustain.agent.config import AgentConfig, PackagesSection, load
    from sustain.errors import ConfigError
    from sustain.schedulers.packages.config import check
    from sustain.schedulers.packages.find import may_be_called

    absent = args.config == _DEFAULT_CONFIG and not os.path.exists(args.config)
    config = AgentConfig() if absent else load(args.config)
    section = config.packages or PackagesSection()
    named = _named(args)
    if named:
        own = {name: each for name, each in section.policy.groups.items() if may_be_called(named, name)}
        policy = msgspec.structs.replace(section.policy, groups=own)  # the others are not looked at now
        section = msgspec.structs.replace(section, groups=named, policy=policy)
    period_s = getattr(args, "period", None)
    if period_s is not None:
        if period_s < 1:
            raise ConfigError("--period: less than a second", hint="10s is a good period")
        section = msgspec.structs.replace(section, period_s=period_s)
    check(section.whole)
    return msgspec.structs.replace(config, guest_memory=None, large_pages=None, packages=section)


def _named(args: argparse.Namespace) -> tuple[Any, ...]:
    """Groups that the command line names, each by what finds it."""
    from sustain.schedulers.packages.find import Wanted

    found = []
    for way in _WAYS:
        for word in getattr(args, way, ()):
            name = re.sub(r"[^\w-]+", "-", str(word)).strip("-") or f"{way}s"
            found.append(Wanted(**{"name": name, way: word}))
    return tuple(found)


def _run(args: argparse.Namespace) -> int:
    from sustain.agent.build import schedulers
    from sustain.cli import _foreground, packages_text
    from sustain.cli.agent import tell
    from sustain.clock import SystemClock
    from sustain.errors import ConfigError
    from sustain.schedulers.loop import Loop

    config = config_of(args)
    if not config.packages.groups:
        raise ConfigError(
            "no group is named, so there is nothing to place",
            hint="give --cgroup, --guest, --command or --pid, or [[packages.groups]] in the configuration",
        )
    clock = SystemClock()
    (scheduler,) = schedulers(config, clock)
    loop: Any = Loop(scheduler, clock, act=not args.dry_run, tell=tell)
    tick = _foreground.run(loop, args.config, args.span)
    data = {
        "ticks": loop.counts.ticks,
        "actions": loop.counts.actions,
        "refused": loop.counts.refused,
        **{name: scheduler.ask("plan", {}, tick)["plan"][name] for name in ("verdict", "totals")},
        "left": loop.left,
    }
    emit(args, data, lambda: packages_text.ran(data))
    return 1 if loop.left else 0


def _ask(args: argparse.Namespace, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """The agent's answer, or what is found out here."""
    import msgspec

    from sustain.agent.config import address
    from sustain.agent.http import get
    from sustain.errors import AgentError, SustainError

    config = config_of(args)
    where = address(config.agent.listen)
    if where is None or args.here or _named(args):
        return _look(args, config, question, words)
    try:
        page = get(where, f"/schedulers/packages/{question}?{urllib.parse.urlencode(words)}")
        found: dict[str, Any] = msgspec.json.decode(page.body)
    except (AgentError, msgspec.DecodeError):
        return _look(args, config, question, words)  # none runs, or it has no such scheduler
    if "error" in found:
        raise SustainError(found["error"], hint=found["hint"])
    return {"from": "agent", **found}


def _look(args: argparse.Namespace, config: Any, question: str, words: Mapping[str, str]) -> dict[str, Any]:
    """Two ticks of a scheduler that cannot act, with the time to look at in between."""
    import time

    from sustain.agent.build import packages
    from sustain.clock import SystemClock
    from sustain.errors import SustainError
    from sustain.schedulers.loop import Loop

    clock = SystemClock()
    scheduler = packages(config, clock)
    try:
        loop: Any = Loop(scheduler, clock, act=False)
        for number in range(2):
            if number:
                progress(f"looking at the host for {format_duration(args.interval)}")
                time.sleep(args.interval)
            tick = loop.tick()
            if tick.problem:
                raise SustainError(tick.problem, hint=tick.hint or "see `sustain packages doctor`")
        progress("")
        about = {"from": "here", "scheduler": scheduler.name, "age_s": 0.0, "acts": False, "problem": None}
        return about | scheduler.ask(question, words, tick)
    finally:
        scheduler.close()
