"""Receive what another host ships, and keep it, until asked to stop: a store, as a standby, or saved regions.

--store PATH: the store is created here if there is none. While it runs, `sustain status PATH` shows how far it
is. --region-dir DIR: regions that `sustain save` or a pre-copier sends to tcp://HOST:PORT are kept in DIR/NAME
(in memory, where DIR lies on tmpfs), and given back to `sustain restore`.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from sustain.cli._credentials import add_credentials, load
from sustain.cli.output import add_json, duration_argument, emit, printable, size_argument
from sustain.signal_event import SignalEvent

HELP = "keep a standby of a store, or regions, that another host ships"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--store", metavar="PATH", help="the standby's file, created if absent")
    kept.add_argument("--region-dir", metavar="DIR", help="keep regions there, one folder each")
    parser.add_argument("--region-name", default="", metavar="NAME", help="keep only that region (any)")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where the shipper connects to")
    parser.add_argument("--name", default="", metavar="NAME", help="of this host, for people")
    parser.add_argument("--size-limit", type=size_argument, metavar="SIZE", help="refuse what is above it")
    parser.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="of a store that is created here (auto: the best that the medium offers)",
    )
    parser.add_argument("--status", metavar="FILE", help="write what is going on there (regions)")
    parser.add_argument("--port-file", metavar="FILE", help="write the port there once it listens")
    parser.add_argument(
        "--heartbeat", type=duration_argument, default=1.0, metavar="TIME", help="when idle (1s)"
    )
    parser.add_argument(
        "--timeout", type=duration_argument, default=10.0, metavar="TIME", help="peer is gone (10s)"
    )
    add_credentials(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.errors import ConfigError

    if not 0 < args.heartbeat < args.timeout:
        raise ConfigError("--heartbeat must be shorter than --timeout", hint="a third of it, or less")
    if len(args.name.encode()) > 64:
        raise ConfigError("--name is longer than 64 bytes", hint="give a short name")
    if args.store and (args.region_name or args.status):
        raise ConfigError("--region-name and --status go with --region-dir", hint="see `sustain status`")
    stop = SignalEvent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return _receive_store(args, stop) if args.store else _keep_regions(args, stop)


def _receive_store(args: argparse.Namespace, stop: SignalEvent) -> int:
    from sustain.replication.receive import Receiver, ReceiverConfig
    from sustain.replication.urls import parse_listen

    receiver = Receiver(
        ReceiverConfig(
            store=args.store,
            listen=parse_listen(args.listen),
            credentials=load(args, _say),
            name=args.name,
            size_limit=args.size_limit,
            durability=args.durability,
            heartbeat_s=args.heartbeat,
            timeout_s=args.timeout,
            report=_say,
        )
    )
    receiver.start()
    _announce(args, receiver.address)
    while not stop.wait(0.1):
        if receiver.wait(0):
            break
    status = receiver.status()
    receiver.stop()
    if receiver.failure is not None:
        raise receiver.failure
    emit(args, status, lambda: f"{args.store} ends at position {status['end']}, epoch {status['epoch']}")
    return 0


def _keep_regions(args: argparse.Namespace, stop: SignalEvent) -> int:
    from sustain.powerfail.regions.kept import keeper_of, regions_in, room
    from sustain.powerfail.regions.manifest import check_name
    from sustain.powerfail.regions.serve import KeeperConfig
    from sustain.replication.urls import parse_listen

    root = args.region_dir
    limit = args.size_limit
    keeper = keeper_of(
        root,
        KeeperConfig(
            listen=parse_listen(args.listen),
            credentials=load(args, _say),
            only=check_name(args.region_name) if args.region_name else "",
            size_limit=(lambda: room(root)) if limit is None else (lambda: limit),
            heartbeat_s=args.heartbeat,
            timeout_s=args.timeout,
            report=_say,
        ),
    )

    def status() -> dict[str, Any]:
        return {"region_dir": root, **keeper.status(), "regions": regions_in(root)}

    keeper.start()
    shown = _Shown(args.status, status)
    _announce(args, keeper.address)
    while not stop.wait(0.25):
        shown.refresh()
    keeper.stop()
    shown.refresh()
    found = status()
    emit(args, found, lambda: _summary(found))
    return 0


class _Shown:
    """A file that says what goes on; written when that changes, whole or not at all. Not durable: it is of now."""

    def __init__(self, path: str | None, status: Callable[[], dict[str, Any]]) -> None:
        self._path, self._status = path, status
        self._last = ""
        self.refresh()

    def refresh(self) -> None:
        import json
        from pathlib import Path

        from sustain import wholefile

        if self._path is None:
            return
        text = json.dumps(self._status()) + "\n"
        if text != self._last:
            wholefile.replace(Path(self._path), text.encode(), durable=False)
            self._last = text


def _summary(status: dict[str, Any]) -> str:
    lines = []
    for each in status["regions"]:
        if each["problem"]:
            state = each["problem"]
        elif each["seal"]:
            state = f"sealed as number {each['seal']['number']} of epoch {each['seal']['epoch']}"
        else:
            state = f"not complete (epoch {each['epoch']}, last seal {each['last_number'] or 'never'})"
        lines.append(f"{each['name']}: {state}")
    return "\n".join(lines) or f"{status['region_dir']} holds no region"


def _announce(args: argparse.Namespace, address: tuple[str, int]) -> None:
    from sustain.replication.orphan import write_durably
    from sustain.replication.urls import join

    if args.port_file:
        write_durably(args.port_file, lambda fd: _write(fd, f"{address[1]}\n"))
    _say(f"listening on {join(*address)}")


def _write(fd: int, text: str) -> None:
    import os

    os.write(fd, text.encode())


def _say(text: str) -> None:
    print(f"sustain receive: {printable(text)}", file=sys.stderr, flush=True)
