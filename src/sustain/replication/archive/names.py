"""Names of an archive's objects <-> what they are. Pure.

Used by everything here. A name alone says of a segment whose it is and what it covers, so that one listing tells what
can be restored, and says of a snapshot from where on it is whole.
"""

import re
from dataclasses import dataclass

_DIGITS = 20  # of a position: enough for 2**63, so that names sort as positions do
EPOCH = re.compile(r"e[1-9][0-9]{0,18}", re.ASCII)
_SEGMENT = re.compile(r"e([1-9][0-9]{0,18})/([0-9]{20})-([0-9]{20})")
_SNAPSHOT = re.compile(r"e([1-9][0-9]{0,18})/([0-9]{20})-([0-9]{20})\.snapshot")
_PART = re.compile(r"e([1-9][0-9]{0,18})/pages-([0-9a-f]{16})-([0-9]{6})")
_MANIFEST = re.compile(r"e([1-9][0-9]{0,18})/manifest")

PROOF = "proof"
HOLDS = "holds"


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """Log bytes [first, last), written by the primary of `epoch`."""

    epoch: int
    first: int
    last: int

    @property
    def path(self) -> str:
        return f"e{self.epoch}/{self.first:0{_DIGITS}}-{self.last:0{_DIGITS}}"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """A copy of the image, whole with the log from `start` to `usable` and any more."""

    epoch: int
    start: int
    usable: int

    @property
    def path(self) -> str:
        return f"e{self.epoch}/{self.start:0{_DIGITS}}-{self.usable:0{_DIGITS}}.snapshot"


def part_path(epoch: int, copy: str, number: int) -> str:
    """Of one object of pages of the copy named `copy`, 16 hexadecimal digits."""
    return f"e{epoch}/pages-{copy}-{number:06}"


def manifest_path(epoch: int) -> str:
    return f"e{epoch}/manifest"


def segment_name(path: str) -> SegmentName | None:
    """What `path` is; None when it is no segment."""
    found = _SEGMENT.fullmatch(path)
    if found is None:
        return None
    name = SegmentName(*map(int, found.groups()))
    return name if name.first < name.last else None


def snapshot_name(path: str) -> SnapshotName | None:
    found = _SNAPSHOT.fullmatch(path)
    if found is None:
        return None
    name = SnapshotName(*map(int, found.groups()))
    return name if name.start <= name.usable else None


def part_name(path: str) -> tuple[int, str] | None:
    """(epoch, copy) of an object of pages."""
    found = _PART.fullmatch(path)
    return (int(found[1]), found[2]) if found else None


def manifest_epoch(path: str) -> int | None:
    found = _MANIFEST.fullmatch(path)
    return int(found[1]) if found else None
