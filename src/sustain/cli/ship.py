"""Ship a store's log, or the changed pages of a region, to other hosts, until asked to stop.

Beside the application, as a process of its own. Destinations are tcp://HOST:PORT of a `sustain receive`
(or `sustain run`) there, and archives: file:///DIR and s3://BUCKET/PREFIX, which `sustain restore` reads; with
?required=1 the log is kept until the destination holds it durably. An archive takes ?segment=SIZE, ?every=TIME,
?snapshot=TIME, ?keep=TIME and ?verify=TIME as well (docs/operating/archives.md). A region goes to
file:///DIR and s3://BUCKET/PREFIX as well; SIGUSR1 freezes its program and seals there, SIGUSR2 lets it go on.
"""

import argparse
import signal
import sys
from typing import Any

from sustain.cli._credentials import add_credentials, load
from sustain.cli.output import add_json, duration_argument, emit, printable, size_argument
from sustain.signal_event import SignalEvent

HELP = "ship a store's log, or a region's pages, to standbys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shipped = parser.add_mutually_exclusive_group(required=True)
    shipped.add_argument("--store", metavar="PATH", help="the store")
    shipped.add_argument("path", nargs="?", metavar="STORE", help="the same")
    shipped.add_argument("--region", metavar="PATH", help="a file or device that a program maps")
    parser.add_argument(
        "--peer",
        "--to",
        action="append",
        default=[],
        metavar="URL",
        help="tcp://HOST:PORT[?required=1], file:///DIR or s3://BUCKET/PREFIX; once for each",
    )
    parser.add_argument("--name", default="", metavar="NAME", help="of this host, for people")
    parser.add_argument(
        "--budget-first",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of what the battery allows to be unshipped: from here on commits are delayed (0.5)",
    )
    parser.add_argument(
        "--budget-second", type=float, default=0.9, metavar="SHARE", help="the same: here they wait (0.9)"
    )
    parser.add_argument(
        "--delay-limit",
        type=duration_argument,
        default=0.05,
        metavar="TIME",
        help="the delay just before they wait (50ms)",
    )
    parser.add_argument(
        "--until-drained", "--once", action="store_true", help="end when all committed now has arrived"
    )
    parser.add_argument(
        "--drain-timeout",
        type=duration_argument,
        metavar="TIME",
        help="with --until-drained: give up after; otherwise: go on that long after SIGTERM",
    )
    add_credentials(parser)
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--chunk", type=size_argument, default=1 << 20, metavar="SIZE", help="most sent at once (1MiB)"
    )
    tuning.add_argument(
        "--linger", type=duration_argument, default=0.0003, metavar="TIME", help="gather for (300us)"
    )
    tuning.add_argument(
        "--heartbeat", type=duration_argument, default=1.0, metavar="TIME", help="when idle (1s)"
    )
    tuning.add_argument(
        "--timeout", type=duration_argument, default=10.0, metavar="TIME", help="peer is gone (10s)"
    )
    tuning.add_argument(
        "--pin-limit",
        type=float,
        default=0.75,
        metavar="SHARE",
        help="of the log held for a dead peer (0.75)",
    )
    tuning.add_argument(
        "--stall",
        type=duration_argument,
        default=10.0,
        metavar="TIME",
        help="no progress means dead after (10s)",
    )
    from sustain.cli.ship_region import add_region_arguments

    add_region_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.region:
        from sustain.cli.ship_region import ship_region

        return ship_region(args)
    from sustain.errors import ConfigError
    from sustain.powerfail.budget import BudgetPolicy
    from sustain.replication.outlet import LinkConfig
    from sustain.replication.ship import End, Shipper, ShipperConfig
    from sustain.replication.urls import parse_destination
    from sustain.replication.wire import CHUNK_LIMIT

    args.store = args.store or args.path
    if not 4096 <= args.chunk <= CHUNK_LIMIT:
        raise ConfigError(
            f"--chunk {args.chunk} is not within 4KiB and 4MiB", hint="1MiB serves most networks"
        )
    if not 0 < args.pin_limit <= 1:
        raise ConfigError(
            f"--pin-limit {args.pin_limit} is not a share", hint="write a number above 0, at most 1"
        )
    if not 0 < args.heartbeat < args.timeout:
        raise ConfigError("--heartbeat must be shorter than --timeout", hint="a third of it, or less")
    if not 0 < args.budget_first <= args.budget_second <= 1:
        raise ConfigError(
            f"--budget-first {args.budget_first:g} and --budget-second {args.budget_second:g} do not go together",
            hint="two shares of the budget above 0 and at most 1, the first not above the second",
        )
    if args.delay_limit > 10:
        raise ConfigError("--delay-limit is longer than 10 s", hint="50ms is enough to slow a writer down")
    if len(args.name.encode()) > 64:
        raise ConfigError("--name is longer than 64 bytes", hint="give a short name")
    config = ShipperConfig(
        store=args.store,
        peers=[parse_destination(text) for text in args.peer],
        link=LinkConfig(
            credentials=load(args, _say),
            name=args.name,
            chunk_bytes=args.chunk,
            linger_s=args.linger,
            heartbeat_s=args.heartbeat,
            timeout_s=args.timeout,
            report=_say,
        ),
        pin_limit=args.pin_limit,
        stall_s=args.stall,
        budget=BudgetPolicy(
            first_threshold=args.budget_first,
            second_threshold=args.budget_second,
            delay_limit_s=args.delay_limit,
        ),
        until_drained=args.until_drained,
        drain_timeout_s=args.drain_timeout,
    )
    stop = SignalEvent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reason = Shipper(config).run(stop)
    if reason.error is not None:
        raise reason.error
    data: dict[str, Any] = {
        "store": args.store,
        "end": str(reason.end),
        "target": reason.target,
        "destinations": [{"url": url, "acked": acked} for url, acked in reason.acked.items()],
    }
    if args.json or reason.end is End.DRAINED:
        emit(args, data, lambda: "\n".join(_line(url, acked) for url, acked in reason.acked.items()))
    return 0


def _line(url: str, acked: int | None) -> str:
    return f"{url} holds everything up to position {acked}" if acked is not None else f"{url}: unknown"


def _say(text: str) -> None:
    print(f"sustain ship: {printable(text)}", file=sys.stderr, flush=True)
