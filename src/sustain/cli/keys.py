"""Make a small CA and certificates of it, for hosts that have none; or say what certificates are for.

ca         make DIR/ca.pem and DIR/ca.key. ca.pem goes to all hosts; ca.key signs, and is kept where it is
host NAME  make DIR/NAME.pem and DIR/NAME.key, for the host NAME and no other
show FILE  say whose certificate that is, which addresses are in it and when it ends

Then, on each host: --tls-ca ca.pem --tls-cert NAME.pem --tls-key NAME.key."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sustain.cli.output import add_json, emit, fields

if TYPE_CHECKING:
    from sustain.replication.authority import Shown

HELP = "make a CA and certificates for hosts, or show what certificates say"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("ca", "host", "show"), metavar="ca|host|show")
    parser.add_argument("which", nargs="*", metavar="NAME|FILE", help="host: one name; show: PEM files")
    parser.add_argument("--dir", default=".", metavar="DIR", help="where the CA is, or is made (.)")
    parser.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="HOST",
        help="host: IP address or name that peers connect to; once for each",
    )
    parser.add_argument("--days", type=int, metavar="N", help="how long it is good for (ca: 3650; host: 397)")
    parser.add_argument("--name", metavar="TEXT", help="ca: what it is called (Sustain CA)")
    parser.add_argument(
        "--renew", action="store_true", help="host: replace what is there, for the same addresses"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.errors import ConfigError
    from sustain.replication.authority import CA_DAYS, HOST_DAYS, make_ca, make_host, show

    directory = Path(args.dir)
    wanted = {"ca": 0, "host": 1}.get(args.what)
    if wanted is not None and len(args.which) != wanted:
        raise ConfigError(
            f"`sustain keys {args.what}` takes {'one name' if wanted else 'no name'}",
            hint="see `sustain keys --help`",
        )
    if args.what != "host" and (args.address or args.renew):
        raise ConfigError(
            "--address and --renew go with `sustain keys host`", hint="see `sustain keys --help`"
        )
    if args.what != "ca" and args.name is not None:
        raise ConfigError("--name goes with `sustain keys ca`", hint="a host's name follows `host`")
    if args.what == "show" and not args.which:
        raise ConfigError("nothing to show", hint="name PEM files: sustain keys show FILE")
    if args.what == "ca":
        name = "Sustain CA" if args.name is None else args.name
        if not 0 < len(name) <= 64:
            raise ConfigError("--name is empty or longer than 64 letters", hint="give a short name")
        found = [make_ca(directory, name, CA_DAYS if args.days is None else args.days)]
    elif args.what == "host":
        days = HOST_DAYS if args.days is None else args.days
        found = [make_host(directory, args.which[0], args.address, days, renew=args.renew)]
    else:
        found = [show(Path(each)) for each in args.which]
    data = {"certificates": [_facts(each) for each in found]}
    emit(args, data, lambda: "\n\n".join(_text(each) for each in data["certificates"]))
    return 0


def _facts(shown: "Shown") -> dict[str, Any]:
    return {
        "path": shown.path,
        "name": shown.name,
        "issuer": shown.issuer,
        "is_ca": shown.is_ca,
        "addresses": list(shown.addresses),
        "begins": shown.begins.isoformat(),
        "ends": shown.ends.isoformat(),
        "sha256": shown.fingerprint,
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [
        ("certificate", f"{facts['path']}: {facts['name']}"),
        ("of", "itself: a CA" if facts["is_ca"] else f"the CA {facts['issuer']}"),
    ]
    if not facts["is_ca"]:
        lines.append(
            ("for", ", ".join(facts["addresses"]) or "no address: it can connect, not be connected to")
        )
    lines += [("good", f"from {facts['begins']} to {facts['ends']}"), ("SHA-256", facts["sha256"])]
    return fields(lines)
