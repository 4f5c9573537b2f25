"""`PATH.restoring`: a file beside a region that is only half restored, so that nobody starts or saves it by accident.

Used by `restore`, `save` and whoever starts the program. It is there, durably, before the first page is
written, and goes when every page is durable. A device has it, too, as long as the host stays up.
"""

import os
from pathlib import Path

import msgspec

from sustain import wholefile
from sustain.errors import RegionUnsealed
from sustain.powerfail.regions.durable import os_errors


def path_of(region: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(region)}.restoring")


def put(region: str | os.PathLike[str], url: str, epoch: int, number: int) -> None:
    """Raises RegionIOError, RegionFull."""
    path = path_of(region)
    with os_errors(path, "cannot be written"):
        said = msgspec.json.encode({"from": url, "epoch": epoch, "number": number}) + b"\n"
        wholefile.replace(path, said, durable=True, mode=0o600)


def remove(region: str | os.PathLike[str]) -> None:
    """Raises RegionIOError."""
    path = path_of(region)
    with os_errors(path, "cannot be removed"):
        path.unlink(missing_ok=True)
        wholefile.sync_directory(path.absolute().parent)


def refuse(region: str | os.PathLike[str]) -> None:
    """Raises RegionUnsealed when the region is only half restored."""
    if path_of(region).exists():
        raise RegionUnsealed(
            f"{os.fspath(region)}: is only half restored ({path_of(region).name} lies beside it)",
            hint="run `sustain restore` again; it goes on where it ended",
        )
