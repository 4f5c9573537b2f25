"""Orphan tails as an operator handles them: finds, checks, exports and discards what `orphan` has kept.

Used by `sustain orphan`. A tail is two files beside a store, the log bytes and the report on them; each is checked
against the other, and either alone still says something. Nothing here is believed because of its name: what is
discarded must be a tail by its content, too.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain._native import Control, digest
from sustain.errors import StoreCorrupt, StoreError, StoreIOError, SustainError
from sustain.replication.orphan import mapped, unresolved
from sustain.replication.records import Change, Group, changes, groups, record_at

_NAME = re.compile(r"(?P<store>.+)\.orphan-e(?P<epoch>\d{1,19})-(?P<common>\d{1,19})-(?P<end>\d{1,19})")
_HINT = "`sustain orphan list DIRECTORY` names the tails there"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Tail:
    """One tail. Positions are LSNs; None is unknown."""

    path: Path  # of the log bytes; the report is `path`.json
    store: str
    epoch: int
    common: int
    end: int
    report: dict[str, Any] | None  # None: there is none that can be read
    kept_from: int | None
    kept_bytes: int | None  # None: there are none
    found: tuple[Group, ...]  # the whole groups among them
    problems: tuple[str, ...]  # what is damaged or missing

    @property
    def whole(self) -> bool:
        """All of the tail is here and undamaged."""
        return not self.problems and self.kept_from == self.common

    @property
    def commits(self) -> list[Group]:
        """Those of an application."""
        return [each for each in self.found if each.opens_epoch is None]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: docs/json.md."""
        made = self.commits
        held = self.report or {}
        before = held.get("before_commit_time_ns")
        last = made[-1].commit.time_ns if made else None
        forward = isinstance(before, int) and last is not None and last >= before
        return {
            "file": str(self.path),
            "store": self.store,
            "store_uuid": held.get("store_uuid"),
            "replica_uuid": held.get("replica_uuid"),
            "host": held.get("host") or None,
            "epoch": self.epoch,
            "newer_epoch": held.get("newer_epoch"),
            "common": self.common,
            "end": self.end,
            "bytes": self.end - self.common,
            "kept_from": self.kept_from,
            "kept_bytes": self.kept_bytes,
            "forgotten_bytes": None if self.kept_from is None else self.kept_from - self.common,
            "commits": len(made),
            "first_commit": made[0].commit.number if made else None,
            "last_commit": made[-1].commit.number if made else None,
            "before_commit_time_ns": before,
            "first_commit_time_ns": made[0].commit.time_ns if made else None,
            "last_commit_time_ns": last,
            "seconds": (last - before) / 1e9
            if forward and last is not None and isinstance(before, int)
            else None,
            "whole": self.whole,
            "problems": list(self.problems),
            "kept_ns": held.get("written_at_ns"),
        }


def find(path: str) -> list[Tail]:
    """The tails in a directory, beside a store, or the one whose file `path` is. Raises StoreError."""
    place = Path(path)
    if _NAME.fullmatch(_base(place).name):
        return [read(place)]
    directory, prefix = (place, "") if place.is_dir() else (place.parent, f"{place.name}.orphan-")
    try:
        names = {_base(directory / name).name for name in os.listdir(directory) if name.startswith(prefix)}
    except OSError as error:
        raise StoreIOError(f"{directory}: {error.strerror}", hint=_HINT, errno=error.errno) from error
    tails = [directory / name for name in names if _NAME.fullmatch(name)]
    if not tails and not place.exists():
        raise StoreError(f"{path}: there is neither a store nor a tail of one", hint=_HINT)
    found = [read(each) for each in tails]
    return sorted(found, key=lambda each: (each.store, each.epoch, each.common, each.end))


def read(path: Path) -> Tail:
    """The tail at `path`, its log bytes or its report, and all that is wrong with it. Raises StoreError when it is
    none."""
    base = _base(path)
    named = _NAME.fullmatch(base.name)
    if named is None:
        raise StoreError(f"{path} is not an orphan tail: it has another name", hint=_HINT)
    epoch, common, end = (int(named[name]) for name in ("epoch", "common", "end"))
    report, problems = _report(base)
    size = _size(base)
    if report is None and size is None:
        raise StoreError(f"{path} is not an orphan tail: {'; '.join(problems)}", hint=_HINT)
    kept_from: int | None = None if report is None else report["kept_from"]
    if report is not None and (report["epoch"], report["common"], report["end"]) != (epoch, common, end):
        problems.append("the report is of another tail")
    if size is None:
        if report is not None and report["kept_bytes"]:
            problems.append("the log bytes are missing")
        return Tail(base, named["store"], epoch, common, end, report, kept_from, None, (), tuple(problems))
    if kept_from is None:
        kept_from = end - size
    found = _check(base, size, kept_from, end, report, problems)
    return Tail(base, named["store"], epoch, common, end, report, kept_from, size, found, tuple(problems))


def _check(
    base: Path, size: int, kept_from: int, end: int, report: dict[str, Any] | None, problems: list[str]
) -> tuple[Group, ...]:
    """The whole groups in the log bytes; what is wrong is added to `problems`. Raises StoreError when these are no
    log bytes at all."""
    if size == 0:
        problems.append("the log bytes are missing: the file is empty")
        return ()
    try:
        with mapped(str(base)) as data:
            found = tuple(groups(data, kept_from))
            summed = digest(data).hex() if report is not None and report.get("digest") else None
            begins = record_at(data, 0, kept_from) is not None
    except OSError as error:
        problems.append(f"the log bytes cannot be read: {error.strerror}")
        return ()
    if not begins and report is None:
        raise StoreError(f"{base} is not an orphan tail: no log begins there", hint=_HINT)
    if size != end - kept_from:
        problems.append(f"there are {size} log bytes, not {end - kept_from}")
    elif summed is not None and report is not None and summed != report["digest"]:
        problems.append("the log bytes are not those that were kept: their digest is another")
    reached = found[-1].commit.end if found else kept_from
    if reached != end:
        problems.append(f"whole commits end at position {reached}, not at {end}")
    return found


def _report(base: Path) -> tuple[dict[str, Any] | None, list[str]]:
    name = Path(f"{base}.json")
    try:
        with open(name, "rb") as file:
            held = json.loads(file.read(_COPY_BYTES))
        numbers = ("epoch", "common", "end", "kept_from", "kept_bytes")
        if not all(type(held[each]) is int for each in numbers):
            raise ValueError("its numbers are none")
    except FileNotFoundError:
        return None, ["its report is missing"]
    except OSError as error:
        return None, [f"its report cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return None, [f"its report is damaged ({error})"]
    return held, []


def export_raw(tail: Tail, to: Path) -> None:
    """Copy the log bytes to the new file `to`, durably. Raises StoreError."""
    if tail.kept_bytes is None:
        raise StoreCorrupt(
            f"{tail.path}: there are no log bytes", hint="`sustain orphan show` tells what there is"
        )
    try:
        with open(tail.path, "rb") as source, open(to, "xb") as sink:
            while piece := source.read(_COPY_BYTES):
                sink.write(piece)
            sink.flush()
            os.fsync(sink.fileno())
        wholefile.sync_directory(to.parent)
    except FileExistsError:
        raise StoreIOError(f"{to} exists", hint="name a new file") from None
    except OSError as error:
        raise StoreIOError(
            f"{to}: {error.strerror}", hint="name a file that can be made", errno=error.errno
        ) from error


def commits(tail: Tail, with_data: bool) -> Iterator[dict[str, Any]]:
    """What each commit changed, in their order, for JSON lines. Raises StoreCorrupt where a record is damaged."""
    if not tail.kept_bytes:
        return
    with mapped(str(tail.path)) as data:
        for group in tail.found:
            try:
                done = [_change(each, with_data) for each in changes(data, group)]
            except ValueError as error:
                raise StoreCorrupt(
                    f"{tail.path}: {error}", hint="what was written before is whole; the rest cannot be read"
                ) from None
            yield {
                "number": group.commit.number,
                "epoch": group.commit.epoch,
                "position": group.commit.end,
                "first": group.commit.first_lsn,
                "time_ns": group.commit.time_ns,
                "opens_epoch": group.opens_epoch,
                "changes": done,
            }


def _change(change: Change, with_data: bool) -> dict[str, Any]:
    said = {"offset": change.offset, "length": change.length, "zero": change.data is None}
    return said | {"data": change.data.hex()} if with_data and change.data is not None else said


def objection(tail: Tail) -> str | None:
    """Why it must not be discarded now; None when it may."""
    store = tail.path.with_name(tail.store)
    with contextlib.suppress(SustainError):
        control = Control(str(store))
        try:
            block, words = control.superblock(), control.words()
        finally:
            control.close()
        ends = {tail.end, block["end"], 0 if words is None else words["committed"]}
        if any(unresolved(str(store), block["replica_uuid"], end) == f"{tail.path}.json" for end in ends):
            return f"{store} itself still holds those commits: its snapshot is not complete"
    return None


def discard(tail: Tail) -> list[str]:
    """Remove it, durably: the log bytes, then the report. What was removed. Raises StoreError."""
    why = objection(tail)
    if why is not None:
        raise StoreError(
            f"{tail.path} is still needed: {why}", hint="wait until the host follows the primary again"
        )
    removed = []
    try:
        for name in (tail.path, Path(f"{tail.path}.json")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
                wholefile.sync_directory(name.parent)
                removed.append(str(name))
    except OSError as error:
        raise StoreIOError(
            f"{tail.path}: {error.strerror}", hint="remove it as its owner", errno=error.errno
        ) from error
    return removed


def _size(base: Path) -> int | None:
    """Of the log bytes; None when there are none. Raises StoreError for what is no file."""
    try:
        found = os.lstat(base)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{base} is not an orphan tail: it is no file", hint=_HINT)
    return found.st_size


def _base(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json")) if path.name.endswith(".json") else path
