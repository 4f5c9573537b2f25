"""Receive a store from its primary and keep it as a standby, until asked to stop.

The store is created here if there is none. While it runs, `sustain status PATH` shows how far it is.
"""

import argparse
import signal
import sys
import threading

from sustain.cli.output import add_json, duration_argument, emit, size_argument

HELP = "keep a standby of a store that another host ships"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", required=True, metavar="PATH", help="the standby's file, created if absent"
    )
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where the shipper connects to")
    parser.add_argument(
        "--key-file", metavar="FILE", help="the key that both sides share (without: loopback only)"
    )
    parser.add_argument("--name", default="", metavar="NAME", help="of this host, for people")
    parser.add_argument("--size-limit", type=size_argument, metavar="SIZE", help="refuse stores above it")
    parser.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="of a store that is created here (auto: the best that the medium offers)",
    )
    parser.add_argument("--port-file", metavar="FILE", help="write the port there once it listens")
    parser.add_argument(
        "--heartbeat", type=duration_argument, default=1.0, metavar="TIME", help="when idle (1s)"
    )
    parser.add_argument(
        "--timeout", type=duration_argument, default=10.0, metavar="TIME", help="peer is gone (10s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.errors import ConfigError
    from sustain.replication.auth import NO_KEY, load_key
    from sustain.replication.orphan import write_durably
    from sustain.replication.receive import Receiver, ReceiverConfig
    from sustain.replication.urls import join, parse_listen

    if not 0 < args.heartbeat < args.timeout:
        raise ConfigError("--heartbeat must be shorter than --timeout", hint="a third of it, or less")
    if len(args.name.encode()) > 64:
        raise ConfigError("--name is longer than 64 bytes", hint="give a short name")
    receiver = Receiver(
        ReceiverConfig(
            store=args.store,
            listen=parse_listen(args.listen),
            key=load_key(args.key_file) if args.key_file else NO_KEY,
            name=args.name,
            size_limit=args.size_limit,
            durability=args.durability,
            heartbeat_s=args.heartbeat,
            timeout_s=args.timeout,
            report=_say,
        )
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    receiver.start()
    address = join(*receiver.address)
    if args.port_file:
        write_durably(args.port_file, lambda fd: _write(fd, f"{receiver.address[1]}\n"))
    _say(f"listening on {address}")
    while not stop.wait(0.1):
        if receiver.wait(0):
            break
    status = receiver.status()
    receiver.stop()
    if receiver.failure is not None:
        raise receiver.failure
    emit(args, status, lambda: f"{args.store} ends at position {status['end']}, epoch {status['epoch']}")
    return 0


def _write(fd: int, text: str) -> None:
    import os

    os.write(fd, text.encode())


def _say(text: str) -> None:
    print(f"sustain receive: {text}", file=sys.stderr, flush=True)
