"""`sustain restore` of a store: what `restore` does when the peer keeps a store.

A store that is restored in full is made under another name and gets its own when it is whole. On demand it has its
own name from the beginning, and a new epoch: the application that opens it is the store's writer from then on, and
the peer refuses the former one.
"""

import argparse
import os
import signal
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sustain.cli.output import duration_argument, emit, printable, progress
from sustain.signal_event import SignalEvent
from sustain.units import format_size

if TYPE_CHECKING:
    from sustain.replication.credentials import Credentials


def add_arguments(whole: argparse.ArgumentParser) -> None:
    parser = whole.add_argument_group("stores")
    parser.add_argument(
        "--on-demand",
        action="store_true",
        help="PATH can be opened at once, its pages come when used",
    )
    parser.add_argument(
        "--limit", type=duration_argument, default=30.0, metavar="TIME", help="an access waits at most (30s)"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="URL",
        help="another peer, or another archive, with the same store; repeatable",
    )
    parser.add_argument(
        "--open-epoch", type=int, metavar="N", help="on demand: the epoch to open (the next one)"
    )
    parser.add_argument(
        "--at-least",
        type=int,
        default=0,
        metavar="LSN",
        help="wait until the peer's copy reaches this position",
    )
    parser.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="of the store here (auto: the best that the medium offers)",
    )
    parser.add_argument("--ready-file", metavar="FILE", help="written once PATH can be opened")


def is_meant(args: argparse.Namespace, credentials: "Credentials") -> bool:
    """Whether the URL is of a peer that keeps a store. Raises ReplicationError, ConfigError."""
    from sustain.replication.fetch import keeps_store

    if args.on_demand:
        return True
    return str(args.url).startswith("tcp://") and args.name is None and keeps_store(args.url, credentials)


def run(args: argparse.Namespace, credentials: "Credentials") -> int:
    from sustain.replication.fetch import Fetch

    stop = SignalEvent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    path = args.path if args.on_demand else f"{args.path}.part"
    base = _prepare(args, path, credentials)
    fetch = Fetch(path, [args.url, *args.also], credentials, limit_s=args.limit, report=say)
    if args.on_demand:
        say(f"{path} can be opened; its pages are coming")
        _ready(args.ready_file)
    shown = threading.Thread(target=_show, args=(fetch, stop), daemon=True)
    shown.start()
    try:
        done = fetch.run(stop)
    finally:
        stopped = stop.is_set()
        stop.set()
        shown.join()
        progress("")
    if not args.on_demand and not stopped:
        _give_name(path, args.path)
        _ready(args.ready_file)
    data: dict[str, Any] = {"path": args.path, "on_demand": args.on_demand, "base": base, **asdict(done)}
    emit(args, data, lambda: _text(data))
    return 0


def _prepare(args: argparse.Namespace, path: str, credentials: "Credentials") -> int:
    """See that there is an arriving store at `path`; the position that it begins at."""
    from sustain._native import arrival_of
    from sustain.errors import ConfigError
    from sustain.replication.fetch import begin

    if path != args.path and os.path.lexists(args.path):
        raise ConfigError(f"{args.path} is there already", hint="name another path, or move that file away")
    if os.path.lexists(path):
        arrival = arrival_of(path)
        if arrival is not None:
            say(f"{path}: going on, {arrival['here']} of {arrival['pages']} pages are here")
            return arrival["base"]
        if path == args.path:
            raise ConfigError(f"{path} is a whole store", hint="name another path, or move that file away")
        os.unlink(
            path
        )  # it came here completely and did not get its name: it may be older than is asked for now
    begun = begin(
        args.url,
        path,
        credentials,
        epoch=args.open_epoch,
        new_epoch=args.on_demand,
        at_least=args.at_least,
        durability=args.durability,
        limit_s=args.limit,
        report=say,
    )
    if begun.behind_bytes:
        say(
            f"the peer has heard of {begun.behind_bytes} bytes of commits that it does not have: they are missing"
        )
    return begun.base


def _give_name(path: str, name: str) -> None:
    from sustain.errors import StoreIOError
    from sustain.replication.orphan import sync_directory

    try:
        os.link(path, name)  # unlike a rename, never over a file that came there meanwhile
    except OSError as error:
        raise StoreIOError(
            f"{name}: {error.strerror}", hint=f"the restored store is {path}", errno=error.errno
        ) from None
    os.unlink(path)
    sync_directory(name)


def _ready(name: str | None) -> None:
    from sustain.replication.orphan import write_durably

    if name:
        write_durably(name, _write_pid)


def _write_pid(fd: int) -> None:
    os.write(fd, f"{os.getpid()}\n".encode())


def _show(fetch: Any, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        status = fetch.status()
        progress(f"{format_size(status['here'] * 4096)} of {format_size(status['pages'] * 4096)} are here")


def _text(data: dict[str, Any]) -> str:
    return (
        f"{data['path']}: all {data['pages']} pages are here ({data['asked']} were asked for by accesses), "
        f"in {data['seconds']:.1f} s"
    )


def say(text: str) -> None:
    """A line for the operator."""
    print(f"sustain restore: {printable(text)}", file=sys.stderr, flush=True)
