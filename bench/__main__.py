"""`python -m bench`: list the questions; `python -m bench NAME… [--json] [--quick]`: answer them.

Exit status: 0 the questions were answered (whether or not the reach is met: a noisy machine must not break a
build; `--check` turns an unmet reach into 1), 1 a question could not be answered, 2 wrong usage.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from types import ModuleType

from bench.harness import Answer, say
from bench.report import render

# The order of the table in bench/README.md; each is a file of this package.
QUESTIONS = (
    "commit_memory",
    "commit_disk_1",
    "commit_disk_16",
    "commit_array",
    "sqlite_on_store",
    "ship_throughput",
    "ship_tls",
    "commit_with_shipper",
    "ship_two",
    "recovery",
    "takeover",
    "handover",
    "restore_on_demand",
    "replication_peers",
    "archive_upload",
    "archive_restore",
    "region_scan",
    "region_save",
    "region_restore",
    "region_save_tcp",
    "region_restore_tcp",
    "region_tracking_cost",
    "region_outage",
    "drain",
    "agent_idle",
    "guest_census",
    "guest_sampling",
    "guest_memory_plan",
    "guest_memory_policies",
    "guest_memory_guests",
    "large_pages_plan",
    "large_pages_policies",
    "large_pages_speed",
    "large_pages_counting",
    "packages_policies",
    "packages_plan",
    "packages_sensing",
)


def load(name: str) -> ModuleType:
    """The file that answers `name`."""
    return import_module(f"bench.{name}")


def main(argv: list[str] | None = None) -> int:
    """Parse, answer, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Answers questions about speed.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="questions to answer; none lists them")
    parser.add_argument("--all", action="store_true", help="answer every question")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, judges nothing")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a reach is not met")
    args = parser.parse_args(argv)
    names = list(QUESTIONS) if args.all else args.names
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        parser.error(f"no such question: {', '.join(unknown)} (python -m bench lists them)")
    if not names:
        return list_questions(as_json=args.json)

    answers: list[Answer] = []
    for name in names:
        say(f"{name} …")
        begun = time.monotonic()
        answer: Answer = load(name).answer(quick=args.quick)
        say(f"{name}: {time.monotonic() - begun:.0f} s")
        answers.append(answer)
        if not args.json:
            print(render(name, answer), flush=True)
    if args.json:
        found = {name: answer.as_dict() for name, answer in zip(names, answers, strict=True)}
        print(json.dumps(found if args.all or len(names) > 1 else found[names[0]], indent=2))
    return 1 if args.check and any(answer.met is False for answer in answers) else 0


def list_questions(*, as_json: bool) -> int:
    """Print what can be asked."""
    questions = {name: str(load(name).QUESTION) for name in QUESTIONS}
    if as_json:
        print(json.dumps(questions, indent=2))
    else:
        for name, question in questions.items():
            print(f"{name:22}{question}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
