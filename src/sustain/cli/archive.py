"""Archives of a store: directories and object stores that `sustain ship` fills and `sustain restore` reads.

list     what can be restored from one: positions, times, snapshots, and when that was last proved
verify   restore the newest position to a scratch directory, check all of it, and remove it again; what came of it is
         kept in the archive. --all reads and checks every other object, too.

URL is file:///DIR or s3://BUCKET/PREFIX. Exit status 1 when anything is damaged or missing, even if a restore works."""

import argparse
import tempfile
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sustain.cli.output import add_json, emit, fields, or_unknown, progress, table
from sustain.units import format_duration, format_size

if TYPE_CHECKING:
    from sustain.replication.archive.contents import Contents
    from sustain.replication.archive.documents import Proof

HELP = "list what an archive of a store holds, prove that a restore would work"

_VERBS = {
    "list": "what can be restored, and when that was last proved",
    "verify": "prove that a restore would work, by doing one",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="|".join(_VERBS), dest="what", required=True)
    for name, said in _VERBS.items():
        verb = verbs.add_parser(name, help=said, description=f"{name}: {said}")
        verb.add_argument("url", metavar="URL", help="file:///DIR or s3://BUCKET/PREFIX")
        add_json(verb)
        if name == "verify":
            verb.add_argument("--all", action="store_true", help="read every other object, too")
            verb.add_argument(
                "--scratch", metavar="DIR", default=tempfile.gettempdir(), help="for the copy (%(default)s)"
            )


def run(args: argparse.Namespace) -> int:
    from sustain.replication.archive.place import open_place
    from sustain.replication.urls import parse_archive

    place = open_place(parse_archive(args.url))
    if args.what == "list":
        data = describe(place)
        emit(args, data, lambda: _list_text(data))
        return 0
    return _verify(args, place)


def describe(place: Any) -> dict[str, Any]:
    """What `list` says of the archive at `place`."""
    from sustain.replication.archive import plan
    from sustain.replication.archive.contents import read_contents, read_proof, read_snapshot

    contents: Contents = read_contents(place)
    newest = contents.newest
    held = plan.counted(0, newest, contents.manifests, contents.segments())
    snapshots = []
    for name in plan.usable_snapshots(newest, contents.manifests, contents.snapshots(), newest.floor):
        found = read_snapshot(place, name, contents.store)
        snapshots.append(
            {
                "epoch": name.epoch,
                "start": name.start,
                "usable": name.usable,
                "until": plan.reach(held, name.start),
                "bytes": found.size,
                "time_ns": found.time_high_ns,
                "written_ns": found.written_ns,
            }
        )
    ranges = _ranges(snapshots)
    until = max((each["until"] for each in snapshots), default=0)
    missing = [{"first": until, "last": newest.acked}] if until < newest.acked else []
    return {
        "url": place.url,
        "store_uuid": newest.store,
        "name": newest.name,
        "epoch": newest.epoch,
        "acked": newest.acked,
        "time_ns": newest.time_ns or None,
        "written_ns": newest.written_ns,
        "ranges": ranges,
        "missing": missing,
        "snapshots": snapshots,
        "segments": len(held),
        "bytes": sum(each.size for each in contents.objects.values()),
        "damaged": contents.damaged,
        "proof": _proof(read_proof(place)),
    }


def _ranges(snapshots: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Positions that can be restored, without those in between that cannot."""
    found: list[dict[str, int]] = []
    for each in sorted(snapshots, key=lambda one: int(one["usable"])):
        if found and each["usable"] <= found[-1]["last"]:
            found[-1]["last"] = max(found[-1]["last"], each["until"])
        elif each["until"] >= each["usable"]:
            found.append({"first": each["usable"], "last": each["until"]})
    return found


def _proof(proof: "Proof | None") -> dict[str, Any] | None:
    if proof is None:
        return None
    return {
        "at_ns": proof.at_ns,
        "worked": proof.worked,
        "position": proof.position,
        "time_ns": proof.time_ns,
        "duration_s": proof.duration_s,
        "restored_bytes": proof.restored_bytes,
        "objects": proof.objects,
        "everything": proof.everything,
        "why": proof.why or None,
        "host": proof.host,
    }


def _verify(args: argparse.Namespace, place: Any) -> int:
    import os
    import sys

    from sustain.errors import ConfigError
    from sustain.replication.archive.proof import prove

    if not os.path.isdir(args.scratch):
        raise ConfigError(f"--scratch {args.scratch} is not a directory", hint="name one that has room")

    def say(text: str) -> None:
        print(f"sustain archive: {text}", file=sys.stderr, flush=True)

    try:
        proof, damaged = prove(place, args.scratch, args.all, say, _progress)
    finally:
        progress("")
    data = {"url": place.url, "proof": _proof(proof), "damaged": damaged}
    emit(args, data, lambda: _verify_text(place.url, proof, damaged))
    return 0 if proof.worked and not damaged else 1


def _progress(done: int, total: int) -> None:
    progress(f"restoring: {format_size(done)} of {format_size(total)}")


def _verify_text(url: str, proof: "Proof", damaged: list[str]) -> str:
    if not proof.worked:
        return f"{url}: a restore does NOT work: {proof.why}"
    text = (
        f"{url}: a restore works: position {proof.position} ({_when(proof.time_ns)}), "
        f"{format_size(proof.restored_bytes)} in {format_duration(proof.duration_s)}, {proof.objects} objects checked"
    )
    return text if not damaged else text + f"; but {len(damaged)} objects are damaged or missing"


def _list_text(data: dict[str, Any]) -> str:
    proof = data["proof"]
    ranges = ", ".join(f"{each['first']} to {each['last']}" for each in data["ranges"])
    lines = fields(
        [
            ("store", data["store_uuid"]),
            ("written by", f"{data['name'] or '(no name)'}, epoch {data['epoch']}"),
            ("position", f"{data['acked']}, {_when(data['time_ns'])}"),
            ("restorable", ranges or "nothing yet: the first snapshot is not complete"),
            ("segments", str(data["segments"])),
            ("size", format_size(data["bytes"])),
            ("last proof", _proof_text(proof)),
        ]
    )
    rows = [("SNAPSHOT", "FROM", "UNTIL", "SIZE", "MADE")]
    for each in data["snapshots"]:
        place = (str(each["start"]), str(each["usable"]), str(each["until"]))
        rows.append((*place, format_size(each["bytes"]), _when(each["written_ns"])))
    wrong = [f"missing: positions {each['first']} to {each['last']}" for each in data["missing"]]
    wrong += [f"damaged: {text}" for text in data["damaged"]]
    return "\n".join([lines, *wrong, *([table(rows)] if data["snapshots"] else [])])


def _proof_text(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "none: `sustain archive verify` makes one"
    ago = format_duration(max(0.0, time.time() - proof["at_ns"] / 1e9))
    if not proof["worked"]:
        return f"FAILED {ago} ago: {proof['why']}"
    return f"{ago} ago, position {proof['position']}" + (f"; but {proof['why']}" if proof["why"] else "")


def _when(time_ns: int | None) -> str:
    return or_unknown(
        time_ns or None, lambda ns: f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%dT%H:%M:%SZ}"
    )
