"""Run a workload on this host, or stand by for another host that does.

Started alike on every host of the workload. Whoever has the lease runs the command; the others receive its
store, and one of them takes over when the lease runs out. The command finds its store in SUSTAIN_STORE.
"""

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from sustain.cli._credentials import add_credentials, files_of
from sustain.cli.output import duration_argument, size_argument
from sustain.units import parse_size

if TYPE_CHECKING:
    from sustain.clock import Clock
    from sustain.failover.custodian import Custodian
    from sustain.failover.power import Watching
    from sustain.powerfail.budget import BudgetPolicy
    from sustain.powerfail.sources import PowerSource

HELP = "run a command here, or stand by to take it over"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    state = parser.add_mutually_exclusive_group(required=True)
    state.add_argument("--store", metavar="PATH", help="the store; or")
    state.add_argument(
        "--region", metavar="PATH", help="a file or device that an unmodified program maps (a VM's NVDIMM)"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="of this host, unlike the others'")
    parser.add_argument(
        "--lease",
        required=True,
        metavar="URL",
        help="etcd://HOST:2379,HOST:2379,…/NAME, an etcd cluster, or file:///dir, a directory that all hosts share",
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to receive the store while standing by")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="URL",
        help="tcp://HOST:PORT; once for each other host (of a region also file:///DIR, s3://BUCKET)",
    )
    parser.add_argument(
        "--fetch-from",
        action="append",
        default=[],
        metavar="URL",
        help="tcp://HOST:PORT; a host without a copy takes over at once, and fetches pages from there when used",
    )
    parser.add_argument(
        "--ttl", type=duration_argument, default=3.0, metavar="TIME", help="the lease's length (3s)"
    )
    parser.add_argument(
        "--lease-wait",
        type=duration_argument,
        default=60.0,
        metavar="TIME",
        help="at the start, for an etcd that does not answer yet (60s)",
    )
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="N", help="of a failed command here, before others try (3)"
    )
    parser.add_argument(
        "--restart-window",
        type=duration_argument,
        default=60.0,
        metavar="TIME",
        help="count restarts within this time (60s)",
    )
    parser.add_argument(
        "--on-success",
        choices=("stop", "restart"),
        default="stop",
        help="when the command exits with 0: the work is finished, or start it again (stop)",
    )
    parser.add_argument(
        "--stop-timeout",
        type=duration_argument,
        default=10.0,
        metavar="TIME",
        help="for the command to end, from SIGTERM to SIGKILL (10s)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=duration_argument,
        default=10.0,
        metavar="TIME",
        help="for other hosts to catch up when the command has ended (10s)",
    )
    first = parser.add_argument_group("the first start")
    first.add_argument("--create", action="store_true", help="make the store, if the workload has none yet")
    first.add_argument("--size", type=size_argument, help="of that store (256MiB), or of the region's file")
    first.add_argument("--log-size", type=size_argument, help="of its log (64MiB)")
    first.add_argument(
        "--durability",
        choices=("auto", "pmem", "disk", "memory"),
        default="auto",
        help="of that store (auto)",
    )
    unusual = parser.add_argument_group("after an accident")
    unusual.add_argument(
        "--new-lease", action="store_true", help="the lease was lost for good: begin anew with this store"
    )
    unusual.add_argument(
        "--accept-loss", action="store_true", help="take over although the last primary held more"
    )
    unusual.add_argument("--rerun", action="store_true", help="start again a work that was finished")
    add_credentials(parser)
    _add_region(parser)
    _add_power(parser)
    parser.add_argument(
        "--report-dir", metavar="DIR", help="for reports of takeovers and outages (beside the store)"
    )
    parser.add_argument("--event-log", metavar="FILE", help="append every event as a JSON line")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def _add_region(parser: argparse.ArgumentParser) -> None:
    region = parser.add_argument_group("regions (docs/operating/regions.md)")
    region.add_argument("--region-name", metavar="NAME", help="of the workload's region (its file's name)")
    region.add_argument(
        "--region-dir", metavar="DIR", help="where it is received while standing by (PATH.saved)"
    )
    region.add_argument(
        "--state-dir",
        metavar="DIR",
        help="for Sustain's own small files (beside the region; not for devices)",
    )
    region.add_argument(
        "--track",
        choices=("auto", "content", "soft-dirty", "write-protect"),
        default="auto",
        help="how changed pages are found (auto)",
    )
    region.add_argument(
        "--freeze",
        default="signal",
        metavar="HOW",
        help="signal, cgroup:DIR or qmp:SOCKET: how the program is held still (signal)",
    )
    region.add_argument(
        "--precopy-rate", type=size_argument, metavar="BYTES", help="a second, at most (a default of its own)"
    )


def _add_power(parser: argparse.ArgumentParser) -> None:
    power = parser.add_argument_group("when the power fails (docs/operating/power.md)")

    def time(name: str, default: float, text: str) -> None:
        power.add_argument(
            name, type=duration_argument, default=default, metavar="TIME", help=f"{text} ({default:g}s)"
        )

    power.add_argument("--power", metavar="URL", help="nut://HOST[:PORT]/UPS, acpi: or file:///PATH")
    power.add_argument("--power-user", metavar="USER", help="of upsd, which then waits for this host")
    power.add_argument("--power-password-file", metavar="FILE", help="that user's password")
    time("--power-poll", 1.0, "between two questions to the source")
    time("--power-debounce", 5.0, "on battery for so long is an outage")
    time("--power-settle", 10.0, "on AC for so long is its end")
    time("--power-margin", 10.0, "battery time held back for the unforeseen")
    time("--power-reserve", 0.0, "battery time held back for others")
    power.add_argument(
        "--assumed-runtime",
        type=duration_argument,
        metavar="TIME",
        help="of the battery, where the source says none (without: no budget)",
    )
    power.add_argument(
        "--budget-first", type=float, default=0.5, metavar="SHARE", help="of the budget: delays begin (0.5)"
    )
    power.add_argument(
        "--budget-second", type=float, default=0.9, metavar="SHARE", help="of the budget: commits wait (0.9)"
    )
    time("--delay-limit", 0.05, "of one commit, just below the second")
    time("--outage-hold", 0.0, "sit out an outage that is shorter, as long as the battery allows")
    time("--outage-stop-timeout", 10.0, "for the command to end in an outage, at most")
    power.add_argument(
        "--shed", action="append", default=[], metavar="CMD", help="shell command at an outage, in order"
    )
    power.add_argument(
        "--signal",
        choices=("completing", "initiating"),
        default="completing",
        help="other hosts may take over when all has been saved, or wait for the rest themselves (completing)",
    )
    time("--arrival-timeout", 60.0, "wait so long for what an early signal has promised")


def run(args: argparse.Namespace) -> int:
    import uuid

    from sustain.clock import SystemClock
    from sustain.failover.lease import open_lease
    from sustain.failover.supervise import Supervisor, Workload
    from sustain.failover.types import Policy
    from sustain.units import to_ns

    command = _check(args)
    clock, instance = SystemClock(), uuid.uuid4().hex[:12]
    power = _power(args, clock)
    policy = Policy(
        name=args.name,
        instance=instance,
        ttl_ns=to_ns(args.ttl),
        create=args.create,
        new_lease=args.new_lease,
        accept_loss=args.accept_loss,
        rerun=args.rerun,
        peers=len(args.peer),
        listens=args.listen is not None,
        restarts=args.restarts,
        restart_window_ns=to_ns(args.restart_window),
        on_success=args.on_success,
        stop_timeout_ns=to_ns(args.stop_timeout),
        drain_timeout_ns=to_ns(args.drain_timeout),
        outage_hold_ns=to_ns(args.outage_hold),
        outage_stop_ns=to_ns(args.outage_stop_timeout),
        signal_early=args.signal == "initiating",
        sheds=bool(args.shed),
        freezes=args.region is not None,
        fetches=bool(args.fetch_from),
        arrival_limit_ns=to_ns(args.arrival_timeout),
    )
    custodian = _custodian(args, clock, None if power is None else power[1].budget)
    workload = Workload(
        command=tuple(command),
        lease_url=args.lease,
        listen=args.listen,
        peers=tuple(args.peer),
        files=files_of(args),
        report_dir=args.report_dir or "",
        event_log=args.event_log,
        lease_wait_s=args.lease_wait,
        sheds=tuple(args.shed),
    )
    lease = open_lease(args.lease, instance, clock, args.ttl)
    return Supervisor(workload, policy, custodian, lease, clock, power).run()


def _custodian(args: argparse.Namespace, clock: "Clock", budget: "BudgetPolicy | None") -> "Custodian":
    """What handles the workload's state."""
    where: dict[str, Any] = {
        "budget": budget,
        "listen": args.listen,
        "peers": tuple(args.peer),
        "files": files_of(args),
    }
    if args.store is not None:
        from sustain.failover.custodian.store import NewStore, StoreCustodian

        new = NewStore(
            parse_size(args.size or "256MiB"), parse_size(args.log_size or "64MiB"), args.durability
        )
        where["sources"] = tuple(args.fetch_from)
        where["fetch_limit_s"] = args.arrival_timeout
        return StoreCustodian(os.path.abspath(args.store), args.name, clock, new=new, **where)
    from sustain.errors import ConfigError
    from sustain.failover.custodian.region import RegionCustodian, RegionOptions, is_device
    from sustain.powerfail.regions.manifest import check_name

    region = os.path.abspath(args.region)
    if args.state_dir is None and is_device(region):
        raise ConfigError(
            f"{region} is a device, and nothing can be kept beside it",
            hint="name a directory that survives a reboot: --state-dir /var/lib/sustain/NAME",
        )
    base = os.path.join(os.path.abspath(args.state_dir or os.path.dirname(region)), os.path.basename(region))
    options = RegionOptions(
        region=region,
        name=check_name(args.region_name or os.path.basename(region)),
        directory=os.path.abspath(args.region_dir or f"{base}.saved"),
        size=args.size,
        track=args.track,
        freeze=args.freeze,
        rate=args.precopy_rate,
    )
    return RegionCustodian(base, args.name, clock, options, **where)


def _power(args: argparse.Namespace, clock: "Clock") -> "tuple[PowerSource, Watching] | None":
    """The power source and how it is watched; None when there is none."""
    from sustain.errors import ConfigError
    from sustain.failover.power import Watching
    from sustain.powerfail.budget import BudgetPolicy
    from sustain.powerfail.decide import PowerPolicy
    from sustain.powerfail.sources import open_source

    if args.power is None:
        for given, option in ((args.power_user, "--power-user"), (args.shed, "--shed")):
            if given:
                raise ConfigError(f"{option} without --power", hint="name the power source: --power URL")
        return None
    if bool(args.power_user) is not bool(args.power_password_file):
        raise ConfigError(
            "--power-user and --power-password-file belong together", hint="give both, or neither"
        )
    if not 0.05 <= args.power_poll <= 30:
        raise ConfigError(f"--power-poll {args.power_poll:g}s is out of range", hint="between 50ms and 30s")
    if not 0 < args.budget_first <= args.budget_second <= 1:
        raise ConfigError(
            f"--budget-first {args.budget_first:g} and --budget-second {args.budget_second:g} do not go together",
            hint="two shares of the budget above 0 and at most 1, the first not above the second",
        )
    login = None
    if args.power_user:
        login = (args.power_user, _password(args.power_password_file))
    source = open_source(args.power, clock, login=login)
    watching = Watching(
        poll_s=args.power_poll,
        power=PowerPolicy(debounce_s=args.power_debounce, settle_s=args.power_settle),
        budget=BudgetPolicy(
            margin_s=args.power_margin,
            reserve_s=args.power_reserve,
            first_threshold=args.budget_first,
            second_threshold=args.budget_second,
            delay_limit_s=args.delay_limit,
            assumed_runtime_s=args.assumed_runtime,
        ),
    )
    return source, watching


def _password(path: str) -> str:
    import stat

    from sustain.errors import ConfigError

    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--power-password-file {path}: {getattr(error, 'strerror', None) or error}",
            hint="a file with the password of that upsd user, as in upsd.users",
        ) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"--power-password-file {path} is open to everybody", hint=f"chmod 600 {path}")
    return text


def _check(args: argparse.Namespace) -> list[str]:
    """The command; ConfigError for what could only fail later, when a takeover needs it."""
    import shutil

    from sustain.errors import ConfigError
    from sustain.powerfail.regions.sink import open_sink
    from sustain.replication.credentials import NO_CREDENTIALS
    from sustain.replication.urls import parse_destination, parse_listen, parse_peer

    command = list(args.command[1:] if args.command[:1] == ["--"] else args.command)
    if not command:
        raise ConfigError("no command to run", hint="put it last: sustain run … -- python app.py")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"command {command[0]!r} is not found", hint="give its path, or add it to PATH")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}", args.name):
        raise ConfigError(
            f"--name {args.name!r} cannot be a name", hint="letters, digits, dot, dash; at most 48 of them"
        )
    if not 0.2 <= args.ttl <= 3600:
        raise ConfigError(f"--ttl {args.ttl:g}s is out of range", hint="between 200ms and 1h; 3s serves most")
    if args.restarts < 0:
        raise ConfigError("--restarts is negative", hint="0: another host tries at the first failure")
    for peer in args.peer:
        if args.region is None or peer.startswith("tcp:"):
            parse_destination(peer)
        else:
            open_sink(peer.partition("?")[0], credentials=NO_CREDENTIALS, name="check").close()
    for source in args.fetch_from:
        parse_peer(source)
    if args.fetch_from and args.region is not None:
        raise ConfigError("--fetch-from is for stores", hint="a region is received, or restored by hand")
    if args.listen is not None:
        parse_listen(args.listen)
    files_of(args).load()
    return command
