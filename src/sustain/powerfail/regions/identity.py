"""Which region a file or device holds: a small file beside it, `PATH.region-id`.

Used by `save`, `restore` and the pre-copier. The region itself has no room for an identity: every byte of it
belongs to the program. The UUID is made when it is saved for the first time and goes along when it is restored
elsewhere, so that two regions that happen to have the same name never overwrite each other's saves. Epoch and
number are the newest that this host knows of.

Where the file is lost (devtmpfs forgets /dev/pmem0.region-id at a reboot), a destination that holds the region
refuses a new UUID, and says which one it has: `sustain save --uuid`.
"""

import os
import uuid as uuids
from pathlib import Path

import msgspec

from sustain import wholefile
from sustain.errors import RegionCorrupt
from sustain.powerfail.regions.durable import os_errors
from sustain.powerfail.regions.manifest import RegionIdentity, Seal


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What `PATH.region-id` says. `number` is that of the newest seal known here, 0: never one."""

    uuid: str
    name: str
    epoch: int = 1
    number: int = 0

    def region(self, size_bytes: int) -> RegionIdentity:
        """The identity that a place is asked for. Raises ConfigError."""
        return RegionIdentity(uuids.UUID(self.uuid).bytes, size_bytes, self.name)


def _path(region: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(region)}.region-id")


def load(region: str | os.PathLike[str]) -> Known | None:
    """What is known of the region at that path; None: nothing yet. Raises RegionCorrupt, RegionIOError."""
    path = _path(region)
    with os_errors(path, "cannot be read"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        known = msgspec.json.decode(data, type=Known)
        uuids.UUID(known.uuid)
    except (msgspec.DecodeError, ValueError) as error:
        raise RegionCorrupt(
            f"{path}: cannot be understood: {error}",
            hint="put it right by hand, or remove it and give --uuid",
        ) from None
    return known


def store(region: str | os.PathLike[str], known: Known) -> None:
    """Note it, durably. Raises RegionIOError, RegionFull."""
    path = _path(region)
    with os_errors(path, "cannot be written"):
        wholefile.replace(path, msgspec.json.encode(known) + b"\n", durable=True, mode=0o600)


def new(name: str) -> Known:
    """The identity of a region that is saved for the first time."""
    return Known(str(uuids.uuid4()), name)


def of(region: RegionIdentity, seal: Seal) -> Known:
    """What a region is that was saved or restored with that seal."""
    return Known(str(uuids.UUID(bytes=region.uuid)), region.name, seal.epoch, seal.number)
