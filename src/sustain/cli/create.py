"""Create a store: a file (or a device) that holds the objects of one application."""

import argparse

from sustain.cli.output import add_json, emit, size_argument

HELP = "create a store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="file to create; never one that exists")
    parser.add_argument("--size", type=size_argument, default="256MiB", help="room for objects (256MiB)")
    parser.add_argument(
        "--log-size",
        type=size_argument,
        default="64MiB",
        help="log: bounds one commit and what waits (64MiB)",
    )
    parser.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="what a commit that returned survives; auto: the best that the medium offers",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain._native import Control, Engine
    from sustain.cli.info import describe, facts
    from sustain.store.store import room

    Engine.format(args.path, room(args.size, "size"), room(args.log_size, "log size"), args.durability)
    control = Control(args.path)
    try:
        data = facts(args.path, control)
    finally:
        control.close()
    emit(args, data, lambda: f"created {args.path}\n" + describe(data))
    return 0
