"""Check a whole store: superblock, log, every page against its sum, the structure of every object.

Opens it read-only, so it works beside a running writer and changes nothing; it needs memory for the used
pages.
"""

import argparse
from typing import Any

from sustain.cli.output import add_json, emit, progress
from sustain.errors import StoreCorrupt
from sustain.store import Store
from sustain.store import open as open_store

HELP = "check every byte of a store; exit status 1 if it is damaged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the store")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    progress(f"verifying {args.path} …")
    data: dict[str, Any] = {"path": args.path, "ok": False}
    try:
        with open_store(args.path, readonly=True, verify="full") as store:
            data["position"] = store.position
            data["pages"] = store.verify()
            data |= _walk(store)
        data["ok"] = True
    except StoreCorrupt as damage:
        data |= {"error": str(damage), "hint": damage.hint}
        if not args.json:
            raise
    finally:
        progress("")
    emit(args, data, lambda: _text(data))
    return 0 if data["ok"] else 1


def _walk(store: Store) -> dict[str, int]:
    """Read every object through its structure; counts. Raises StoreCorrupt."""
    counts = {"maps": 0, "entries": 0, "arrays": 0, "files": 0}
    for name, kind, _ in store.objects():
        if kind == "map":
            counts["maps"] += 1
            entries = store.map(name)
            found = sum(1 for _ in entries.items())
            if found != len(entries):
                raise StoreCorrupt(
                    f"{store.path}: map {name!r} says {len(entries)} entries and holds {found}",
                    hint="restore it from a replica",
                )
            counts["entries"] += found
        elif kind == "array":
            counts["arrays"] += 1
            store.array(name)
        else:
            counts["files"] += 1
            blob = store.file(name)
            for offset in range(0, blob.size, 1 << 20):
                blob.pread(1 << 20, offset)
    return counts


def _text(data: dict[str, Any]) -> str:
    return (
        f"{data['path']}: sound at position {data['position']}\n"
        f"superblock, log, {data['pages']} pages, {data['maps']} maps with {data['entries']} entries, "
        f"{data['arrays']} arrays, {data['files']} files"
    )
