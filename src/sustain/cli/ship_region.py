"""`sustain ship --region`: its options, and how they become a pre-copier. Used by `cli.ship`."""

import argparse
import signal
import sys

from sustain.cli._credentials import load
from sustain.cli.output import printable, size_argument

_WAYS = ("auto", "content", "soft-dirty", "write-protect")


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    region = parser.add_argument_group("regions")
    region.add_argument("--region-name", default="", metavar="NAME", help="the workload's name for it")
    region.add_argument(
        "--region-uuid", default="", metavar="HEX", help="which region it is, wherever it lies"
    )
    region.add_argument("--epoch", type=int, metavar="N", help="of this host's primaryship (PATH.region-id)")
    region.add_argument("--seal-number", type=int, metavar="N", help="of its next seal (PATH.region-id)")
    region.add_argument("--status", metavar="FILE", help="what is going on (PATH.region.json)")
    region.add_argument("--power-file", metavar="FILE", help="what the supervisor says of the battery")
    region.add_argument(
        "--rate", type=size_argument, default=64 << 20, metavar="SIZE", help="per second (64MiB)"
    )
    region.add_argument(
        "--scan-rate",
        type=size_argument,
        default=256 << 20,
        metavar="SIZE",
        help="compared per second (256MiB)",
    )
    region.add_argument("--track", choices=_WAYS, default="auto", help="how changed pages are found (auto)")
    region.add_argument("--pids-of", type=int, metavar="PGID", help="process group of the program")
    region.add_argument(
        "--freeze", default="signal", metavar="HOW", help="signal, cgroup:DIR or qmp:SOCKET (signal)"
    )
    region.add_argument("--evacuate", action="store_true", help="freeze and seal at once")


def ship_region(args: argparse.Namespace) -> int:
    # Whoever started this may already order it to finish: that waits until it can be heard, and does not kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    from sustain.errors import ConfigError
    from sustain.host.freezer import open_freezer
    from sustain.powerfail.regions import identity
    from sustain.powerfail.regions.manifest import check_name
    from sustain.powerfail.regions.pace import PacePolicy
    from sustain.powerfail.regions.precopy import Precopier, PrecopyConfig
    from sustain.powerfail.regions.track import Way

    known = identity.load(args.region)
    text = args.region_uuid or (known.uuid if known else "")
    epoch = (known.epoch if known else 1) if args.epoch is None else args.epoch
    seal = (known.number if known else 0) + 1 if args.seal_number is None else args.seal_number
    try:
        uuid = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        uuid = b""
    if len(uuid) != 16:
        raise ConfigError(
            f"{args.region}: which region it is is not known",
            hint="the supervisor gives --region-uuid; `sustain save` writes PATH.region-id",
        )
    if epoch < 1 or seal < 1:
        raise ConfigError("--epoch and --seal-number begin at 1", hint="the supervisor knows them")
    if not 0 < args.budget_first <= args.budget_second <= 1:
        raise ConfigError(
            f"--budget-first {args.budget_first:g} and --budget-second {args.budget_second:g} do not go together",
            hint="two shares of the budget above 0 and at most 1, the first not above the second",
        )
    if args.rate <= 0 or args.scan_rate <= 0:
        raise ConfigError("a rate is more than nothing", hint="64MiB is the default")
    config = PrecopyConfig(
        region=args.region,
        name=check_name(args.region_name),
        uuid=uuid,
        epoch=epoch,
        seal_number=seal,
        owner=args.name,
        urls=tuple(_destination(text) for text in args.peer),
        status_file=args.status or f"{args.region}.region.json",
        power_file=args.power_file,
        credentials=load(args, _say),
        freezer=open_freezer(args.freeze, args.pids_of),
        track=Way(args.track),
        rate=float(args.rate),
        scan_rate=float(args.scan_rate),
        policy=PacePolicy(first_threshold=args.budget_first, second_threshold=args.budget_second),
        evacuate=args.evacuate,
    )
    Precopier(config).run()
    return 0


def _destination(text: str) -> tuple[str, bool]:
    """A URL, and whether it is required; wrong ones are said now and not after the first attempt."""
    from sustain.powerfail.regions.sink import open_sink
    from sustain.replication.credentials import NO_CREDENTIALS
    from sustain.replication.urls import parse_peer

    open_sink(text.partition("?")[0], credentials=NO_CREDENTIALS, name="check").close()
    return text, text.startswith("tcp://") and parse_peer(text).required


def _say(text: str) -> None:
    print(f"sustain ship: {printable(text)}", file=sys.stderr, flush=True)
