"""Save a region (a file or a device that a program maps) to one or several places.

The program must stand still: stopped, or frozen. A place that holds an older save of the region gets what
changed. Exit status 0 only when every place holds the complete save; otherwise the report says which do.
"""

import argparse
import sys
import uuid
from typing import Any

from sustain.cli import complain
from sustain.cli._credentials import add_credentials, load
from sustain.cli.output import add_json, emit, printable, progress
from sustain.errors import SustainError
from sustain.units import format_duration, format_size

HELP = "save a region to a directory, a peer or an object store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--region",
        required=True,
        metavar="PATH",
        help="the file, or a device such as /dev/pmem0, /dev/dax0.0",
    )
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="URL",
        help="file:///dir, s3://bucket/prefix or tcp://host:port; once for each",
    )
    parser.add_argument("--name", metavar="NAME", help="what the region is called there (its file's name)")
    parser.add_argument("--reason", default="by hand", metavar="TEXT", help="noted in the save, for people")
    identity = parser.add_argument_group("when PATH.region-id is lost, or to overrule it")
    identity.add_argument("--uuid", type=_uuid, metavar="UUID", help="which region it is")
    identity.add_argument(
        "--epoch", type=natural, metavar="N", help="of the host that saves; places refuse older ones"
    )
    add_credentials(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import socket
    from contextlib import ExitStack

    from sustain.clock import SystemClock
    from sustain.powerfail.regions import identity
    from sustain.powerfail.regions.medium import open_medium
    from sustain.powerfail.regions.save import Request, default_name, save
    from sustain.powerfail.regions.sink import open_sink

    credentials = load(args, _say)
    with open_medium(args.region) as medium:
        size_bytes = medium.size_bytes
    known = identity.load(args.region) or identity.new(args.name or default_name(args.region))
    known = identity.Known(
        str(args.uuid or known.uuid), args.name or known.name, args.epoch or known.epoch, known.number
    )
    region = known.region(size_bytes)
    with ExitStack() as opened:
        sinks = [
            opened.enter_context(open_sink(url, credentials=credentials, name=region.name)) for url in args.to
        ]
        opened.callback(progress, "")
        request = Request(
            args.region,
            region,
            known.epoch,
            known.number + 1,
            socket.gethostname(),
            args.reason,
            SystemClock().realtime_ns(),
        )
        report = save(
            request,
            sinks,
            lambda outcomes: progress(
                "saving: "
                + ", ".join(f"{each.done_pages / region.pages:.0%} to {each.url}" for each in outcomes)
            ),
        )
    data = _report(report, known.uuid)
    emit(args, data, lambda: _text(data))
    for each in data["destinations"]:
        if each["error"]:
            complain(f"{each['url']}: {each['error']}", each["hint"])
    return 0 if report.complete else 1


def _report(report: Any, region_uuid: str) -> dict[str, Any]:
    region = report.request.identity
    return {
        "path": report.request.path,
        "name": region.name,
        "uuid": region_uuid,
        "size_bytes": region.size_bytes,
        "epoch": report.request.epoch,
        "number": report.number,
        "complete": report.complete,
        "duration_s": report.duration_s,
        "note": report.note,
        "destinations": [
            {
                "url": each.url,
                "state": "failed" if each.sealed is None else "sealed",
                "number": each.sealed,
                "written_bytes": each.written_bytes,
                "duration_s": each.duration_s,
                "error": None if each.error is None else str(each.error) or type(each.error).__name__,
                "hint": each.error.hint if isinstance(each.error, SustainError) else "",
            }
            for each in report.outcomes
        ],
    }


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"{each['url']}: sealed as {data['name']}, epoch {data['epoch']}, number {each['number']}: "
        f"{format_size(each['written_bytes'])} of {format_size(data['size_bytes'])} written in "
        f"{format_duration(each['duration_s'])}"
        if each["state"] == "sealed"
        else f"{each['url']}: not saved"
        for each in data["destinations"]
    ]
    return "\n".join(lines + ([f"note: {data['note']}"] if data["note"] else []))


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None


def natural(text: str) -> int:
    """For `add_argument(type=…)`: a number above 0, or wrong usage."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _say(text: str) -> None:
    print(f"sustain save: {printable(text)}", file=sys.stderr, flush=True)
