"""See a real application survive the loss of its host: index this machine's documentation on two hosts.

Two hosts, played by two directories on this machine, run examples/index_docs.py. In mid-work every
process of the first is killed; the second takes over and finishes; then every word is counted again in
plain Python and compared. The exit status is 0 only if all of it is right. With --how outage the first
host is told that its power fails, and has to bring everything away before it is killed.
"""

import argparse
import random
import shutil
import tempfile
from pathlib import Path

from sustain.cli.output import add_json, duration_argument, emit, size_argument

HELP = "see an application survive the loss of its host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="of the kill point (random, and printed)")
    parser.add_argument(
        "--how",
        choices=("kill", "outage"),
        default="kill",
        help="what happens to the first host: killed at once, or its power fails (a file stands for the UPS)",
    )
    parser.add_argument("--keep", metavar="DIR", help="leave both hosts' files in this new directory")
    parser.add_argument("--max-files", type=int, default=2000, metavar="N", help="files to index (2000)")
    parser.add_argument(
        "--max-bytes", type=size_argument, default=32 << 20, metavar="SIZE", help="of them, on disk (32MiB)"
    )
    parser.add_argument(
        "--ttl", type=duration_argument, default=2.0, metavar="TIME", help="of the lease (2s)"
    )
    parser.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="of the stores (auto)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.demo import show
    from sustain.demo.play import Options, play
    from sustain.errors import ConfigError

    if args.max_files < 4:
        raise ConfigError("--max-files is too small to be killed in the middle", hint="4 or more")
    directory = Path(args.keep).absolute() if args.keep else Path(tempfile.mkdtemp(prefix="sustain-demo-"))
    if args.keep:
        if directory.exists():
            raise ConfigError(
                f"--keep {args.keep} exists already", hint="name a directory that is not there yet"
            )
        directory.mkdir(parents=True)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    options = Options(directory, seed, args.max_files, args.max_bytes, args.ttl, args.durability, args.how)
    try:
        with show.stage() as stage:
            stage.say(f"seed {seed}")
            outcome = play(options, stage)
        emit(args, outcome.as_dict(), lambda: "") if args.json else show.report(outcome)
    finally:
        if not args.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if outcome.good else 1
