"""`sustain restore` of a store from an archive: what `restore` does when the URL is one that `sustain ship` filled."""

import argparse
import contextlib
import glob
import os
import secrets
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sustain.cli.output import emit, progress
from sustain.units import format_duration, format_size


def add_arguments(whole: argparse.ArgumentParser) -> None:
    parser = whole.add_argument_group("stores, from archives")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--position", type=int, metavar="N", help="the last commit at or before this position (the newest)"
    )
    which.add_argument(
        "--at",
        type=_time_argument,
        metavar="TIME",
        help="the last commit before the first one that is later: 2026-01-31T12:00:00[Z], or @SECONDS",
    )
    parser.add_argument(
        "--new-epoch",
        action="store_true",
        help="open the next epoch: to go on from here, without `sustain run`, and ship to the same archive",
    )


def is_meant(args: argparse.Namespace) -> bool:
    """Whether the URL is of an archive of a store. Raises ArchiveIOError, ConfigError."""
    from sustain.errors import ConfigError
    from sustain.replication.archive.place import open_place
    from sustain.replication.urls import parse_archive

    asked = args.position is not None or args.at is not None or args.new_epoch
    if not args.url.startswith(("file:", "s3:")):
        if asked:
            raise ConfigError(
                f"--position, --at and --new-epoch are for archives, {args.url} is none",
                hint="name file:///DIR or s3://BUCKET/PREFIX",
            )
        return False
    if args.name is not None or args.epoch is not None or args.number is not None:
        return False  # a region's
    return asked or bool(open_place(parse_archive(args.url)).epochs())


def run(args: argparse.Namespace) -> int:
    from sustain.errors import ConfigError
    from sustain.replication.archive.place import open_place
    from sustain.replication.archive.restore import Restore, Wish
    from sustain.replication.urls import parse_archive

    if args.no_verify:
        raise ConfigError(
            "what comes from an archive is always verified", hint="leave --no-verify out: it costs little"
        )
    if os.path.lexists(args.path):
        raise ConfigError(f"{args.path} is there already", hint="name another path, or move that file away")
    if args.position is not None and args.position < 0:
        raise ConfigError(f"--position {args.position} is negative", hint="see `sustain archive list`")
    places = [open_place(parse_archive(url)) for url in (args.url, *args.also)]
    _sweep(args.path)
    part = f"{args.path}.part-{secrets.token_hex(8)}"
    try:
        restored = Restore(places, _say, _progress).run(part, Wish(args.position, args.at), args.durability)
        epoch = _open_epoch(part, restored.epoch + 1) if args.new_epoch else None
        _give_name(part, args.path)
    finally:
        progress("")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    data: dict[str, Any] = {**asdict(restored), "path": args.path, "opened_epoch": epoch, "verified": True}
    emit(args, data, lambda: _text(data))
    return 0


def _sweep(path: str) -> None:
    """Remove what interrupted restores to `path` left."""
    from sustain._native import Control
    from sustain.errors import StoreError

    for found in glob.glob(f"{glob.escape(path)}.part-*"):
        try:
            control = Control(found)
        except StoreError:
            locked = False  # it never came to be a store
        else:
            locked = control.writer_locked()
            control.close()
        if not locked:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(found)


def _open_epoch(path: str, epoch: int) -> int:
    from sustain._native import Replica

    replica = Replica(path)
    try:
        replica.promote(epoch)
    finally:
        replica.close()
    return epoch


def _give_name(part: str, path: str) -> None:
    from sustain.errors import StoreIOError
    from sustain.replication.orphan import sync_directory

    try:
        os.link(part, path)  # unlike a rename, never over a file that came there meanwhile
        os.unlink(part)
        sync_directory(path)
    except OSError as error:
        raise StoreIOError(
            f"{path}: {error.strerror}", hint="name a path that is free", errno=error.errno
        ) from None


def _time_argument(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 time (local, without a zone) or of @SECONDS."""
    try:
        if text.startswith("@"):
            whole, _, fraction = text[1:].partition(".")
            return int(whole) * 10**9 + int(fraction[:9].ljust(9, "0"))
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: write 2026-01-31T12:00:00Z, or @SECONDS since 1970"
        ) from None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def _progress(done: int, total: int) -> None:
    progress(f"restoring: {format_size(done)} of {format_size(total)}")


def _text(data: dict[str, Any]) -> str:
    time_ns = data["time_ns"]
    when = "" if time_ns is None else f" of {datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%dT%H:%M:%SZ}"
    behind = data["newest"] - data["position"]
    text = (
        f"{data['path']}: restored to position {data['position']}{when}, "
        f"{format_size(data['read_bytes'])} in {format_duration(data['duration_s'])}, verified"
    )
    if behind:
        text += f"; {format_size(behind)} of later log are archived"
    if data["opened_epoch"] is not None:
        text += f"; epoch {data['opened_epoch']} is open"
    return text


def _say(text: str) -> None:
    print(f"sustain restore: {text}", file=sys.stderr, flush=True)
