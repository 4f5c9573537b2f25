"""The store of this host, read into plain values for `decide`.

Used by `supervise`. It opens the store's control page, never its data, and takes no lock that a writer
wants. A store may be replaced by another file at the same path (a snapshot that was completed), so the
file's identity is checked at each look.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from sustain._native import Control
from sustain.errors import SustainError
from sustain.failover.types import DestinationView, StoreView
from sustain.replication.orphan import unresolved

if TYPE_CHECKING:
    from sustain._native import ControlWords, Superblock


class StoreWatch:
    """Looks at the store at `path`; holds the supervisor's lock on it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._control: Control | None = None
        self._file: tuple[int, int] | None = None

    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        """The store and its destinations; None when there is no file."""
        try:
            control = self.control()
            if control is None:
                return None, ()
            block, words = control.superblock(), control.words()
            destinations = control.destinations()
        except SustainError as error:
            self.close()
            return StoreView("", 0, 0, None, problem=str(error)), ()
        return _view(self._path, block, words), tuple(
            DestinationView(
                each["url"], each["state"], each["acked"], each["required"], each["bandwidth_bytes_per_s"]
            )
            for each in destinations
        )

    def words(self) -> ControlWords | None:
        control = self.control()
        return None if control is None else control.words()

    def control(self) -> Control | None:
        """The control page of the file that is there now. Raises StoreError."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self.close()
            return None
        if self._control is None or self._file != (found.st_dev, found.st_ino):
            self.close()
            self._control = Control(self._path, writable=True)
            self._control.lock_supervisor()  # for others to see; PATH.run.lock is what keeps a second one out
            self._file = (found.st_dev, found.st_ino)
        return self._control

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None


def _view(path: str, block: Superblock, words: ControlWords | None) -> StoreView:
    if words is not None:
        end: int | None = words["committed"]
    else:
        end = block["end"] if block["clean"] else None
    problem = ""
    if block["incomplete"]:
        problem = "a snapshot is being received"
    elif block["durability"] == "memory" and not block["same_boot"] and not block["clean"]:
        problem = "the store is of `memory` durability and this host was not shut down cleanly"
    elif end is not None and (orphan := unresolved(path, block["replica_uuid"], end)) is not None:
        problem = f"it holds commits that a newer primary does not know ({orphan})"
    return StoreView(
        uuid=str(uuid.UUID(bytes=block["store_uuid"])),
        epoch=block["epoch"],
        log_epoch=block["history"][-1][0] if block["history"] else block["epoch"],
        end=end,
        fence_epoch=0 if words is None else words["fence_epoch"],
        problem=problem,
        # One group made the store, and one opened each further epoch; any other is somebody's commit.
        arriving=block["arriving"],
        empty=words is not None and words["commit_seq"] == len(block["history"]),
    )
