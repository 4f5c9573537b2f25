"""What a store holds: its maps, arrays and files, and the room left. Works beside a running writer."""

import argparse

from sustain.cli.output import add_json, emit, table
from sustain.units import format_size

HELP = "list the objects in a store and the room left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the store")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.store import open as open_store

    with open_store(args.path, readonly=True) as store:
        objects = sorted(store.objects())
        usage = store.usage()
        position = store.position
    data = {
        "path": args.path,
        "position": position,
        "objects": [{"name": name, "kind": kind, "bytes": held} for name, kind, held in objects],
        "image_bytes": usage["image_bytes"],
        "used_bytes": usage["used_bytes"],
        "free_bytes": usage["free_bytes"],
    }

    def text() -> str:
        rows = [("NAME", "KIND", "SIZE"), *((name, kind, format_size(held)) for name, kind, held in objects)]
        room = f"{format_size(usage['used_bytes'])} used, {format_size(usage['free_bytes'])} free"
        return (table(rows) if objects else "no objects") + f"\nat position {position}: {room}"

    emit(args, data, text)
    return 0
