"""`PATH.proofs.json`: when a restore from each archive of a store was last tried, for `sustain status`.

Written by whoever ships, which sees the proof in the archive; so that a look at a store needs no network, and no key of
an object store.
"""

import json
import threading
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain.replication.archive.documents import Proof

_lock = threading.Lock()  # one process ships, to several archives


def path_of(store: str) -> Path:
    return Path(f"{store}.proofs.json")


def note(store: str, url: str, proof: Proof) -> None:
    """Replace what is said of `url`. Raises OSError."""
    said = {
        "at_ns": proof.at_ns,
        "worked": proof.worked and not proof.why,
        "position": proof.position,
        "why": proof.why or None,
    }
    with _lock:
        known = read(store)
        if known.get(url) != said:
            data = json.dumps(known | {url: said}, indent=1).encode() + b"\n"
            wholefile.replace(path_of(store), data, durable=False)


def read(store: str) -> dict[str, dict[str, Any]]:
    """By URL; empty where nothing was ever tried, or the file is no such file."""
    try:
        held = json.loads(path_of(store).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(held, dict):
        return {}
    return {url: each for url, each in held.items() if isinstance(each, dict) and "at_ns" in each}
