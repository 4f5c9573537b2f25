"""Restore a saved region, or a store that a peer keeps a copy of (`sustain receive --store` there).

A region goes to a file or a device, which may be another or a larger one than it was saved from. Only a
complete save is restored, and every page is compared with its digest. A restore that was interrupted goes on
where it ended; until it is done, PATH.restoring lies beside the target. The program must not run.

A store comes from an archive that `sustain ship` filled, its newest position or an older one (--position, --at), and of
several archives (--also) each object from the first that has it whole. PATH appears when all of it was verified.

A store is brought over tcp://, too. PATH appears when all of it is here and verified; with --on-demand it can be
opened at once: pages come when they are first used while the rest streams in, and this command ends when all
have come. Started again, it goes on where it stopped, from the same peer or from another.
"""

import argparse
from typing import TYPE_CHECKING, Any

from sustain.cli import _restore_archive, _restore_store
from sustain.cli._credentials import add_credentials, load
from sustain.cli.output import add_json, emit, progress
from sustain.cli.save import natural
from sustain.units import format_duration, format_size

if TYPE_CHECKING:
    from sustain.replication.credentials import Credentials

HELP = "restore a saved region, or a store from an archive or a peer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="file:///dir, s3://bucket/prefix or tcp://host:port")
    parser.add_argument("path", metavar="PATH", help="the target: a file, made if need be, or a device")
    parser.add_argument("--name", metavar="NAME", help="what the region is called there (the target's name)")
    parser.add_argument("--epoch", type=natural, metavar="N", help="only a save of that epoch")
    parser.add_argument("--number", type=natural, metavar="N", help="only the save with that number")
    parser.add_argument(
        "--no-verify", action="store_true", help="believe the source and the target: faster, and not advised"
    )
    add_credentials(parser)
    add_json(parser)
    _restore_store.add_arguments(parser)
    _restore_archive.add_arguments(parser)


def run(args: argparse.Namespace) -> int:

    if _restore_archive.is_meant(args):
        return _restore_archive.run(args)
    credentials = load(args, _restore_store.say)
    if _restore_store.is_meant(args, credentials):
        return _restore_store.run(args, credentials)
    return _restore_region(args, credentials)


def _restore_region(args: argparse.Namespace, credentials: "Credentials") -> int:
    from uuid import UUID

    from sustain.powerfail.regions import identity
    from sustain.powerfail.regions.restore import restore
    from sustain.powerfail.regions.save import default_name
    from sustain.powerfail.regions.sink import open_source

    known = identity.load(args.path)
    name = args.name or (known.name if known else default_name(args.path))
    try:
        with open_source(args.url, credentials=credentials, name=name) as source:
            report = restore(
                source,
                args.path,
                epoch=args.epoch,
                number=args.number,
                verify=not args.no_verify,
                progress=lambda done, pages: progress(f"restoring: {done / pages:.0%}"),
            )
    finally:
        progress("")
    data: dict[str, Any] = {
        "url": report.url,
        "path": report.path,
        "name": report.identity.name,
        "uuid": str(UUID(bytes=report.identity.uuid)),
        "size_bytes": report.identity.size_bytes,
        "target_bytes": report.target_bytes,
        "epoch": report.seal.epoch,
        "number": report.seal.number,
        "owner": report.seal.owner,
        "reason": report.seal.reason,
        "saved_ns": report.seal.realtime_ns,
        "copied_bytes": report.copied_bytes,
        "verified": report.verified,
        "duration_s": report.duration_s,
    }
    emit(args, data, lambda: _text(data))
    return 0


def _text(data: dict[str, Any]) -> str:
    return (
        f"{data['path']}: restored from {data['name']}, epoch {data['epoch']}, number {data['number']} "
        f"({data['owner']}: {data['reason']}): {format_size(data['copied_bytes'])} of "
        f"{format_size(data['size_bytes'])} copied in {format_duration(data['duration_s'])}"
        f"{'' if data['verified'] else ', not verified'}"
    )
