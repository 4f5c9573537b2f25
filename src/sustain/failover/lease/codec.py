"""How the record of a lease, and a member's note, are written down. Pure.

Used by the lease stores (a directory, etcd). A record is one line of JSON and a line with its CRC-32: nothing that
was cut off or changed passes for another record, and people can read it. A note is JSON alone: it is only a hint.
"""

import json
import zlib
from dataclasses import asdict
from typing import Any

from sustain.errors import LeaseError
from sustain.failover.lease.record import Candidate, LeaseRecord, LeaseState, Rank

FORMAT = 1


def render(record: LeaseRecord) -> bytes:
    """The same bytes for the same record, always: a swap may compare them."""
    held = asdict(record)
    if not record.successor:
        del held["successor"]  # versions without handovers read it, too
    body = json.dumps({"format": FORMAT, **held}, sort_keys=True)
    return f"{body}\n{zlib.crc32(body.encode()):08x}\n".encode()


def parse(text: bytes, where: str, mend: str) -> LeaseRecord:
    """The record that was rendered. Raises LeaseError, which names `where` and says to `mend` it."""
    try:
        body, checksum, rest = text.decode().split("\n")
        if rest or int(checksum, 16) != zlib.crc32(body.encode()):
            raise ValueError("checksum")
        held: dict[str, Any] = json.loads(body)
        if held.pop("format") != FORMAT:
            raise LeaseError(
                f"{where}: a lease of another version of Sustain", hint="run one version on all hosts"
            )
        return LeaseRecord(**{**held, "state": LeaseState(held["state"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        hint = (
            "nobody takes a lease that cannot be understood; when every host of this workload is stopped, "
            f"{mend}"
        )
        raise LeaseError(f"{where}: the lease record is damaged", hint=hint) from error


def render_note(note: Candidate) -> bytes:
    return json.dumps(asdict(note)).encode()


def parse_note(text: bytes) -> Candidate | None:
    """None for what is no note, or one of another version."""
    try:
        held = json.loads(text)
        return Candidate(**{**held, "rank": Rank(**held["rank"])})
    except (ValueError, TypeError, KeyError):
        return None
