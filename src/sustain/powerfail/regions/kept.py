"""The regions that a directory holds: kept for others, and shown.

Used by `sustain receive --region-dir`. Which names there are is read from the directory each time: what lies
there is the truth, and a keeper that was killed has no memory of it.
"""

import os
from pathlib import Path
from typing import Any

from sustain.errors import SustainError
from sustain.powerfail.regions import manifest as manifests
from sustain.powerfail.regions.directory import DirectorySink, DirectorySource
from sustain.powerfail.regions.durable import os_errors
from sustain.powerfail.regions.serve import Keeper, KeeperConfig


def keeper_of(root: str, config: KeeperConfig) -> Keeper:
    """A keeper that keeps regions in `root`, which is made when it is not there. Raises RegionIOError.

    What came over the network is compared with its digests as it arrives, and not read back: reading from the same
    memory, or from a cache above a disk, says nothing of the medium, and on battery it costs a third of the time.
    """
    with os_errors(Path(root), "cannot be made", "name a directory that can be written to"):
        os.makedirs(root, mode=0o700, exist_ok=True)
    return Keeper(
        config,
        lambda name: DirectorySink(root, name, read_back=False),
        lambda name: DirectorySource(root, name),
    )


def room(root: str) -> int:
    """Bytes of the file system that holds `root`, used or not: no region above that can be kept there. Raises
    RegionIOError."""
    with os_errors(Path(root), "cannot be looked at"):
        found = os.statvfs(root)
    return found.f_blocks * found.f_frsize


def regions_in(root: str) -> list[dict[str, Any]]:
    """What is kept in `root`, by name. A region that cannot be understood has a `problem`."""
    return [_shown(path) for path in sorted(Path(root).glob("*/manifest")) if _is_name(path.parent.name)]


def _shown(path: Path) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": path.parent.name, "problem": None}
    try:
        with os_errors(path, "cannot be read"):
            data = path.read_bytes()
        found = manifests.decode(data, str(path))
    except SustainError as error:
        return {**shown, "problem": str(error)}
    seal = found.seal
    return {
        **shown,
        "uuid": found.identity.uuid.hex(),
        "size_bytes": found.identity.size_bytes,
        "epoch": found.epoch,
        "last_number": found.last_number,
        "seal": seal
        and {
            "epoch": seal.epoch,
            "number": seal.number,
            "owner": seal.owner,
            "table_digest": seal.table_digest.hex(),
            "realtime_ns": seal.realtime_ns,
            "reason": seal.reason,
        },
    }


def _is_name(name: str) -> bool:
    try:
        manifests.check_name(name)
    except SustainError:
        return False
    return True
