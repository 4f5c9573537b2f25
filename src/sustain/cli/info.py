"""What a store is: the facts in its superblock. Needs no lock; works beside a running writer."""

import argparse
import uuid
from datetime import UTC, datetime
from typing import Any

from sustain._native import Control
from sustain.cli.output import add_json, emit, fields
from sustain.units import format_size

HELP = "show what a store is: format, sizes, identity, epochs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the store")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    control = Control(args.path)
    try:
        data = facts(args.path, control)
    finally:
        control.close()
    emit(args, data, lambda: describe(data))
    return 0


def facts(path: str, control: Control) -> dict[str, Any]:
    """The superblock as the JSON shape of `sustain info`."""
    block = control.superblock()
    return {
        "path": path,
        "version": block["version"],
        "store_uuid": str(uuid.UUID(bytes=block["store_uuid"])),
        "replica_uuid": str(uuid.UUID(bytes=block["replica_uuid"])),
        "durability": block["durability"],
        "image_bytes": block["image_size"],
        "log_bytes": block["log_size"],
        "epoch": block["epoch"],
        "history": [{"epoch": epoch, "start": start} for epoch, start in block["history"]],
        "tail": block["tail"],
        "clean": block["clean"],
        "end": block["end"] if block["clean"] else None,
        "incomplete": block["incomplete"],
        "arriving": block["arriving"],
        "same_boot": block["same_boot"],
        "created": datetime.fromtimestamp(block["created_ns"] / 1e9, UTC).isoformat(timespec="seconds"),
    }


def describe(data: dict[str, Any]) -> str:
    """The same facts for a person."""
    return fields(
        [
            ("store", f"{data['store_uuid']}, format {data['version']}"),
            ("replica", data["replica_uuid"]),
            ("created", data["created"]),
            ("durability", data["durability"]),
            ("image", format_size(data["image_bytes"])),
            ("log", format_size(data["log_bytes"])),
            ("epoch", _epochs(data)),
            ("log kept from", f"position {data['tail']}"),
            ("closed", _closed(data)),
        ]
    )


def _epochs(data: dict[str, Any]) -> str:
    history = ", ".join(f"{entry['epoch']} from position {entry['start']}" for entry in data["history"])
    return f"{data['epoch']} ({history})" if history else str(data["epoch"])


def _closed(data: dict[str, Any]) -> str:
    if data["incomplete"]:
        return "no: a snapshot is being received, not usable yet"
    if data["arriving"]:
        return "its pages are still arriving (`sustain restore` brings them)"
    if data["clean"]:
        return f"cleanly, at position {data['end']}"
    if data["same_boot"]:
        return "no: open now, or its process ended without closing it (opening it recovers)"
    return "no: the host went down with it open (opening it recovers)"
