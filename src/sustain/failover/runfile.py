"""`PATH.run.json`: what the supervisor of a store is doing, for `sustain status` and for its own successor.

Written by `supervise`, whole, at each change. It also names the processes that the supervisor
has started, by pid *and* start time, so that the next supervisor on this host can end what a killed one
left behind. Boot id and identities make sure that nobody else is ever hit.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain._native import Control
from sustain.errors import StoreBusy, StoreError
from sustain.host.processes import Identity, alive, group_of, kill, wait_gone

_GONE_WITHIN_S = 5.0


def path_of(store: str) -> Path:
    return Path(f"{store}.run.json")


def write(store: str, data: dict[str, Any]) -> None:
    """Replace the file. Raises OSError."""
    wholefile.replace(path_of(store), json.dumps(data).encode() + b"\n", durable=False)


def read(store: str) -> dict[str, Any] | None:
    try:
        held = json.loads(path_of(store).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def end_leftovers(store: str, boot_id: str, tell: Callable[[str], None]) -> None:
    """End what an earlier supervisor of this store has left: its command, shipper and receiver.

    Only processes that it noted, and a writer that belongs to the noted command's session. They cannot
    commit under a lease any more; but they hold the store. Raises StoreBusy when somebody else has it.
    """
    held = read(store)
    noted: dict[str, Identity] = {}
    if held is not None and held.get("boot_id") == boot_id:
        for role in ("command", "shipper", "receiver", "fetcher"):
            entry = held.get(f"{role}_process")
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, int) for part in entry):
                noted[role] = Identity(*entry)
    writer = _writer(store)
    command = noted.get("command")
    for role, who in noted.items():
        _end(role, who, group=True, tell=tell)
    if writer is None or not alive(writer):
        return
    if command is not None and group_of(writer.pid) == command.pid:
        _end("writer", writer, group=False, tell=tell)
        return
    raise StoreBusy(
        f"{store} is open in process {writer.pid}, which this supervisor did not start",
        hint=f"end process {writer.pid}, then start again",
    )


def _end(role: str, who: Identity, *, group: bool, tell: Callable[[str], None]) -> None:
    if not alive(who):
        return
    tell(f"ending the {role} that an earlier supervisor left behind (pid {who.pid})")
    kill(who, signal.SIGCONT, group=group)
    kill(who, signal.SIGKILL, group=group)
    if not wait_gone(who, _GONE_WITHIN_S):
        raise StoreBusy(
            f"process {who.pid}, a {role} left behind by an earlier supervisor, does not end",
            hint="a disk that hangs? see `ps -o stat,wchan -p PID`",
        )


def _writer(store: str) -> Identity | None:
    if not os.path.exists(store):
        return None
    try:
        control = Control(store)
    except StoreError:
        return None  # what is wrong with it will be said when it is needed
    try:
        words = control.words()
        if words is None or not control.writer_locked():
            return None
        return Identity(words["writer_pid"], words["writer_start_ticks"])
    finally:
        control.close()
