"""The agent of this host: runs the schedulers that its configuration enables, until it is told to stop, and puts back
what they changed.

run      (the default) until SIGTERM or Ctrl-C
check    whether the configuration can be meant, and what it enables
restore  put back what a killed agent has left; does nothing when there is nothing"""

import argparse
import os
import sys
from typing import Any

from sustain.cli.output import add_json, emit, fields, table

HELP = "run the schedulers of this host, check their configuration, or put back what they left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", choices=("run", "check", "restore"), default="run", metavar="run|check|restore"
    )
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="run: make plans, and change nothing")
    add_json(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Give a verb its `--config`."""
    parser.add_argument(
        "--config", metavar="FILE", default="/etc/sustain/agent.toml", help="TOML (/etc/sustain/agent.toml)"
    )


def run(args: argparse.Namespace) -> int:
    from sustain.agent.config import DEFAULT_PATH, AgentConfig, load

    if args.what == "restore":
        if args.config == DEFAULT_PATH and not os.path.exists(args.config):
            return _restore(
                args, AgentConfig()
            )  # `sustain pages run` and `sustain packages run` need no file
        return _restore(args, load(args.config))
    config = load(args.config)
    if args.what == "check":
        emit(args, found := _checked(args.config, config), lambda: fields(_lines(found)))
        return 0

    from sustain.agent.agent import Agent
    from sustain.agent.build import schedulers
    from sustain.clock import SystemClock

    clock = SystemClock()
    Agent(config.agent, schedulers(config, clock), clock, act=not args.dry_run, tell=tell).run()
    return 0


def tell(line: str) -> None:
    """For people, and for the service manager's journal."""
    print(line, file=sys.stderr, flush=True)


def _checked(path: str, config: Any) -> dict[str, Any]:
    memory, pages, packages = config.guest_memory, config.large_pages, config.packages
    found: list[dict[str, Any]] = []
    if memory is not None:
        guests = [guest.name for guest in memory.guests]
        found.append(
            {
                "name": "guest-memory",
                "period_s": memory.period_s,
                "guests": guests,
                "discover": memory.discover,
            }
        )
    if pages is not None:
        targets = [target.name for target in pages.targets]
        found.append({"name": "large-pages", "period_s": pages.period_s, "targets": targets})
    if packages is not None:
        groups = [group.name for group in packages.groups]
        found.append({"name": "packages", "period_s": packages.period_s, "groups": groups})
    return {
        "config": path,
        "listen": config.agent.listen or None,
        "state_dir": config.agent.state_dir,
        "schedulers": found,
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("config", f"{found['config']}: good"),
        ("listen", found["listen"] or "nowhere"),
        ("state", found["state_dir"]),
    ]
    for each in found["schedulers"]:
        what = next(word for word in ("guests", "targets", "groups") if word in each)
        who = ", ".join(each[what] + (["those that are found"] if each.get("discover") else []))
        lines.append((each["name"], f"every {each['period_s']:g} s: {who or f'no {what}'}"))
    return lines if found["schedulers"] else [*lines, ("schedulers", "none is enabled")]


def _restore(args: argparse.Namespace, config: Any) -> int:
    from sustain.agent.build import restorers
    from sustain.errors import JournalBusy

    undone: list[Any] = []
    busy: JournalBusy | None = None
    for restorer in restorers(config):
        try:
            scheduler = restorer()
        except (
            JournalBusy
        ) as error:  # what it has changed is its own to put back; others may have left something
            busy = error
            continue
        if scheduler is None:
            continue
        try:
            undone += scheduler.restore().undone
        finally:
            scheduler.close()
    if busy is not None and not undone:
        raise busy
    data = {
        "undone": [
            {
                "key": each.entry.key,
                "prior": each.entry.prior,
                "outcome": each.outcome,
                "problem": each.problem or None,
            }
            for each in undone
        ]
    }
    rows = [(each.entry.key, each.outcome, each.problem) for each in undone]
    emit(args, data, lambda: table(rows) or "nothing to put back")
    if busy is not None:
        raise busy
    return 1 if any(each.outcome == "failed" for each in undone) else 0
