"""Orphan tails: commits that a former primary made and that nobody else ever had, kept beside its store.

list     the tails beside a store, or in a directory: positions, bytes, commits, times, whether they are whole
show     one of them, and what its first commits changed
export   copy its log bytes to a file (--raw), write what each commit changed as JSON lines (--lines; - is stdout)
discard  remove it for good: --yes, or an answer on the terminal

PATH is a store, a directory, or a tail's own file. Only the application knows whether what is in a tail matters; the
takeover's report of the host that took over says how much of it there was."""

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sustain.cli.output import add_json, emit, fields, or_unknown, printable, table
from sustain.units import format_duration, format_size

if TYPE_CHECKING:
    from sustain.replication.tails import Tail

HELP = "list, export and discard commits that only a former primary has"

_VERBS = {
    "list": "the tails beside a store, or in a directory",
    "show": "one tail, and what its first commits changed",
    "export": "its log bytes to a file, or what its commits changed as JSON lines",
    "discard": "remove tails for good",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="|".join(_VERBS), dest="what", required=True)
    for name, said in _VERBS.items():
        verb = verbs.add_parser(name, help=said, description=f"{name}: {said}")
        verb.add_argument("path", metavar="PATH", help="a store, a directory, or a tail")
        add_json(verb)
        if name == "show":
            verb.add_argument("--commits", type=int, default=20, metavar="N", help="at most (%(default)s)")
        elif name == "export":
            verb.add_argument("--raw", metavar="FILE", help="a new file for the log bytes")
            verb.add_argument("--lines", metavar="FILE", help="a new file for JSON lines, or -")
            verb.add_argument(
                "--no-data", action="store_true", help="lines without the bytes, only where they went"
            )
            verb.add_argument("--damaged", action="store_true", help="what can be read of a damaged one")
        elif name == "discard":
            verb.add_argument("--all", action="store_true", help="all that PATH has, where it has several")
            verb.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    from sustain.replication.tails import find

    found = find(args.path)
    if args.what == "list":
        return _list(args, found)
    if args.what == "discard":
        return _discard(args, found if args.all else [_one(args.path, found)])
    tail = _one(args.path, found)
    return _show(args, tail) if args.what == "show" else _export(args, tail)


def _one(path: str, found: list["Tail"]) -> "Tail":
    from sustain.errors import ConfigError, StoreError

    if not found:
        raise StoreError(
            f"{path} has no orphan tail", hint="none was ever left behind there, or it was discarded"
        )
    if len(found) > 1:
        names = ", ".join(each.path.name for each in found)
        raise ConfigError(f"{path} has {len(found)} tails: {names}", hint="name one of these files")
    return found[0]


def _list(args: argparse.Namespace, found: list["Tail"]) -> int:
    data = {"path": args.path, "tails": [each.as_dict() for each in found]}
    emit(args, data, lambda: _list_text(args.path, data["tails"]))
    return 1 if any(each.problems for each in found) else 0


def _list_text(path: str, tails: list[dict[str, Any]]) -> str:
    if not tails:
        return f"{path} has no orphan tail"
    rows = [("TAIL", "EPOCH", "FROM", "TO", "SIZE", "COMMITS", "LAST COMMIT", "WHOLE")]
    for each in tails:
        rows.append(
            (
                each["file"],
                str(each["epoch"]),
                str(each["common"]),
                str(each["end"]),
                format_size(each["bytes"]),
                str(each["commits"]),
                _when(each["last_commit_time_ns"]),
                _whole(each),
            )
        )
    wrong = [f"{each['file']}: {printable(text)}" for each in tails for text in each["problems"]]
    return "\n".join([table(rows), *wrong])


def _whole(tail: dict[str, Any]) -> str:
    if tail["problems"]:
        return "damaged"
    return "yes" if tail["whole"] else f"its last {format_size(tail['kept_bytes'] or 0)}"


def _show(args: argparse.Namespace, tail: "Tail") -> int:
    from itertools import islice

    from sustain.replication.tails import commits

    data = tail.as_dict() | {"changed": list(islice(commits(tail, with_data=False), max(0, args.commits)))}
    emit(args, data, lambda: _show_text(data))
    return 1 if tail.problems else 0


def _show_text(data: dict[str, Any]) -> str:
    numbers = (
        "" if data["first_commit"] is None else f", numbers {data['first_commit']} to {data['last_commit']}"
    )
    lines = [
        ("tail", data["file"]),
        ("of", f"{data['store']}, epoch {data['epoch']}, on {data['host'] or 'this host'}"),
        ("given up for", f"epoch {or_unknown(data['newer_epoch'])}"),
        ("positions", f"{data['common']} to {data['end']}: {format_size(data['bytes'])}"),
        (
            "kept",
            f"{or_unknown(data['kept_bytes'], format_size)} from position {or_unknown(data['kept_from'])} on",
        ),
        ("commits", f"{data['commits']}{numbers}"),
        ("first", _when(data["first_commit_time_ns"])),
        ("last", _when(data["last_commit_time_ns"])),
        ("span", f"{or_unknown(data['seconds'], format_duration)} since the last commit that others have"),
        ("whole", _whole(data)),
    ]
    wrong = [f"damaged: {printable(text)}" for text in data["problems"]]
    rows = [("COMMIT", "POSITION", "TIME", "CHANGED")]
    for each in data["changed"]:
        changed = format_size(sum(one["length"] for one in each["changes"]))
        what = f"{changed} in {len(each['changes'])} places"
        if each["opens_epoch"] is not None:
            what = f"opens epoch {each['opens_epoch']}"
        rows.append((str(each["number"]), str(each["position"]), _when(each["time_ns"]), what))
    return "\n".join([fields(lines), *wrong, *([table(rows)] if data["changed"] else [])])


def _export(args: argparse.Namespace, tail: "Tail") -> int:
    from pathlib import Path

    from sustain.errors import ConfigError, StoreCorrupt
    from sustain.replication.tails import export_raw

    if not args.raw and not args.lines:
        raise ConfigError(
            "nothing to export to", hint="--raw FILE for the log bytes, --lines FILE for JSON lines"
        )
    if args.json and args.lines == "-":
        raise ConfigError("--json and --lines - both write to stdout", hint="give --lines a file")
    if tail.problems and not args.damaged:
        raise StoreCorrupt(
            f"{tail.path} is damaged: {'; '.join(tail.problems)}",
            hint="--damaged exports what can be read of it",
        )
    if args.raw:
        export_raw(tail, Path(args.raw))
    written = _export_lines(args, tail) if args.lines else 0
    if args.lines != "-":
        data = {"file": str(tail.path), "raw": args.raw, "lines": args.lines, "commits": written}
        data |= {"bytes": tail.kept_bytes if args.raw else None, "problems": list(tail.problems)}
        emit(args, data, lambda: _exported(data))
    return 1 if tail.problems else 0


def _exported(data: dict[str, Any]) -> str:
    said = []
    if data["raw"]:
        said.append(f"{format_size(data['bytes'])} of log to {data['raw']}")
    if data["lines"]:
        said.append(f"{data['commits']} commits to {data['lines']}")
    return "exported " + ", ".join(said)


def _export_lines(args: argparse.Namespace, tail: "Tail") -> int:
    """How many commits were written."""
    import os
    from pathlib import Path

    from sustain import wholefile
    from sustain.errors import StoreIOError
    from sustain.replication.tails import commits

    count = 0
    lines = (json.dumps(each) + "\n" for each in commits(tail, with_data=not args.no_data))
    if args.lines == "-":
        for line in lines:
            sys.stdout.write(line)
            count += 1
        return count
    try:
        with open(args.lines, "x", encoding="utf-8") as file:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        wholefile.sync_directory(Path(args.lines).parent)
    except FileExistsError:
        raise StoreIOError(f"{args.lines} exists", hint="name a new file") from None
    return count


def _discard(args: argparse.Namespace, tails: list["Tail"]) -> int:
    from sustain.errors import ConfigError
    from sustain.replication.tails import discard

    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("discarding cannot be undone, and nobody can be asked here", hint="say --yes")
        for each in tails:
            print(
                f"{each.path}: {len(each.commits)} commits, {format_size(each.end - each.common)}",
                file=sys.stderr,
            )
        print("discard for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("kept", file=sys.stderr)
            return 1
    removed = [name for each in tails for name in discard(each)]
    data = {"path": args.path, "discarded": removed}
    emit(args, data, lambda: "\n".join(f"discarded {name}" for name in removed) or "nothing to discard")
    return 0


def _when(time_ns: int | None) -> str:
    return or_unknown(
        time_ns, lambda ns: f"{datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec='milliseconds')}"
    )
