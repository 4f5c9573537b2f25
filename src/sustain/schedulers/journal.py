"""What a scheduler has changed, and what it was before: so that all of it can be put back, also after SIGKILL.

Used by the `act` of each scheduler, which notes a change before it makes it; by the agent when it ends and when it
starts; by `sustain agent restore`.

    with Journal("/run/sustain/guest-memory.journal") as journal:
        journal.note("balloon:vm1", "balloon", {"guest": "vm1", "life": "4242:9917"}, prior=4 << 30, new=3 << 30)
        ...                                                       # now change it
        report = journal.restore({"balloon": put_balloon_back})

A key's first prior value stays until the key is forgotten; of what was set the last two are kept, since the process may
have died between noting the last and setting it. Whoever puts back compares: a value that is neither of those was
set by somebody else, and is left alone. What was changed in another boot of the host is gone: then the journal is void.

A file of lines of JSON (docs/formats/journal.md), only ever appended to; a line without its end was being written when
the process died, before its change was made. Each line is flushed before the change, so that a disk that takes no
writes is found out in time. Rejected: values in memory, put back by a signal handler: nothing handles SIGKILL.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from sustain.errors import JournalBusy, JournalError, SustainError
from sustain.host.processes import boot_id

Value = int | float | str
Outcome = Literal["restored", "changed", "gone", "failed"]

VERSION = 1
_ROOM_BYTES = 256 << 10  # a journal that has grown by so much is written anew
_AT_ONCE = 32  # a guest that hangs must not keep the others from being put back


class Entry(msgspec.Struct, frozen=True):
    """One thing that was changed. `target` is what an undo needs to find it again, and to know it for the same."""

    key: str
    kind: str
    target: dict[str, Value]
    prior: Value
    sets: tuple[Value, ...]  # the last that was set, and the one before


Undo = Callable[
    [Entry], Outcome
]  # may raise SustainError or OSError: "failed", and tried again the next time


class Undone(msgspec.Struct, frozen=True):
    """What came of one entry. restored: it is what it was; changed: somebody else has set it since, and it was left
    alone; gone: there is no such thing any more; failed: `problem` says why, and the journal keeps it."""

    entry: Entry
    outcome: Outcome
    problem: str = ""


class Report(msgspec.Struct, frozen=True):
    """What putting back came to."""

    undone: tuple[Undone, ...] = ()

    @property
    def failed(self) -> tuple[Undone, ...]:
        return tuple(each for each in self.undone if each.outcome == "failed")


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    journal: int | None = None
    boot_id: str = ""
    entry: Entry | None = None
    forget: str | None = None


class Journal:
    """The journal in the file `path`, of one process at a time. Its methods may be called from any thread."""

    def __init__(self, path: str | os.PathLike[str], root: str = "/") -> None:
        """Open or create. Raises JournalBusy when another process has it, JournalError when it cannot be used."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._boot_id = boot_id(root)
        self._fd = -1
        self._guard = self._take()
        try:
            self._entries = read(self.path, self._boot_id)
            self._rewrite()
        except BaseException:
            self.close()
            raise

    def note(
        self,
        key: str,
        kind: str,
        target: Mapping[str, Value],
        prior: Value,
        new: Value,
        aside: Callable[[Entry], str | None] = lambda _: None,
    ) -> None:
        """Put down that `key`, which is `prior` now, is about to be set to `new`. `aside`: under which key an entry of
        another target stays that has had this one until now; None: that target is gone. Raises JournalError: don't
        set it."""
        entry = Entry(key, kind, dict(target), prior, (new,))
        with self._lock:
            held = self._entries.get(key)
            if held is not None and held.target == target:
                if held.sets[0] == new:
                    # Noted anew: who is putting back the one that was held must not forget this one.
                    self._entries[key] = msgspec.structs.replace(held)
                else:
                    self._put(msgspec.structs.replace(held, sets=(new, held.sets[0])))
                return
            if held is not None and (other := aside(held)) is not None:
                self._put(msgspec.structs.replace(held, key=other))
            before = self._entries.get(aside(entry) or key)
            if before is None or before.target != target:
                self._put(entry)
            else:  # it was put aside, and has its key again
                self._put(msgspec.structs.replace(before, key=key, sets=(new, before.sets[0])))
                self._drop(before.key)

    def _put(self, entry: Entry) -> None:
        self._append(_Line(entry=entry))
        self._entries[entry.key] = entry

    def _drop(self, key: str) -> None:
        self._append(_Line(forget=key))
        del self._entries[key]

    def forget(self, key: str, entry: Entry | None = None) -> None:
        """`key` is what it was, or is gone. With an `entry`, one of `entries()`: unless it was noted again since.
        Raises JournalError."""
        with self._lock:
            held = self._entries.get(key)
            if held is not None and (entry is None or held is entry):
                self._drop(key)

    def entries(self) -> tuple[Entry, ...]:
        """What is changed now, in the order in which it was first noted."""
        with self._lock:
            return tuple(self._entries.values())

    def restore(self, undo: Mapping[str, Undo], leave: Collection[str] = ()) -> Report:
        """Put everything back by the undo of its kind, several at once; forget each that needs no undoing any more,
        unless it is noted again meanwhile. `leave`: kinds that are neither put back nor forgotten."""
        entries = tuple(each for each in self.entries() if each.kind not in leave)
        if not entries:
            return Report()
        with ThreadPoolExecutor(min(_AT_ONCE, len(entries)), "restore") as pool:
            return Report(tuple(pool.map(lambda entry: self._undo(entry, undo.get(entry.kind)), entries)))

    def _undo(self, entry: Entry, undo: Undo | None) -> Undone:
        undone = _undo(entry, undo)
        if undone.outcome == "failed":
            return undone
        try:
            self.forget(entry.key, entry)
        except JournalError as error:
            return Undone(entry, "failed", f"{undone.outcome}, and cannot be forgotten: {error}")
        return undone

    def close(self) -> None:
        for fd in (self._fd, self._guard):
            if fd >= 0:
                os.close(fd)
        self._fd = self._guard = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _take(self) -> int:
        """The lock is a file beside the journal, which is itself replaced."""
        path = self.path.with_name(self.path.name + ".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(
                f"{path}: {error.strerror}", hint="the journal's directory must exist and be writable"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise JournalBusy(
                f"{self.path}: another process has it",
                hint="an agent is running; it puts back what it changed when it stops",
            ) from error
        return fd

    def _rewrite(self) -> None:
        lines = [_Line(journal=VERSION, boot_id=self._boot_id)]
        lines += [_Line(entry=entry) for entry in self._entries.values()]
        draft = self.path.with_name(self.path.name + ".new")
        fd = -1
        try:
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            end = _write(fd, b"".join(msgspec.json.encode(line) + b"\n" for line in lines), 0)
            os.replace(draft, self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise self._unwritten(error) from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._room = fd, end, end + _ROOM_BYTES

    def _append(self, line: _Line) -> None:
        if self._end > self._room:
            self._rewrite()
        try:
            # At the known end: what a failed write has left there is written over.
            self._end = _write(self._fd, msgspec.json.encode(line) + b"\n", self._end)
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot be written: {error.strerror}",
            hint="make room there; until then nothing is changed, since it could not be put back",
        )


def read(path: str | os.PathLike[str], this_boot: str) -> dict[str, Entry]:
    """The entries of the journal by key, {} when there is none or it is of another boot. Raises JournalError."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise JournalError(
            f"{path}: {error.strerror}", hint="the journal must be readable by the agent's user"
        ) from error
    lines = data.split(b"\n")[:-1]  # what follows the last end of line was being written
    entries: dict[str, Entry] = {}
    for number, text in enumerate(lines, 1):
        line = _parse(path, number, text)
        if number == 1:
            _check_header(path, line)
            if line.boot_id != this_boot:
                return {}
        elif line.entry is not None:
            entries[line.entry.key] = line.entry
        elif line.forget is not None:
            entries.pop(line.forget, None)
    return entries


def _write(fd: int, data: bytes, at: int) -> int:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        at, rest = at + written, rest[written:]
    os.ftruncate(fd, at)
    os.fdatasync(fd)
    return at


def put_back(entry: Entry, read: Callable[[], Value | None], write: Callable[[Value], object]) -> Outcome:
    """The undo of a plain value: written only where it is what was last set. `read` returns None for "gone"."""
    now = read()
    if now is None:
        return "gone"
    if now == entry.prior:
        return "restored"
    if now not in entry.sets:
        return "changed"
    write(entry.prior)
    return "restored"


def failed(entry: Entry, error: SustainError | OSError) -> Undone:
    """An entry that stays, for `error`, with its hint."""
    hint = f" ({error.hint})" if isinstance(error, SustainError) and error.hint else ""
    return Undone(entry, "failed", f"{error}{hint}")


def _undo(entry: Entry, undo: Undo | None) -> Undone:
    if undo is None:
        return Undone(entry, "failed", f"nothing here puts back a {entry.kind}")
    try:
        return Undone(entry, undo(entry))
    except (SustainError, OSError) as error:
        return failed(entry, error)
    except Exception as error:  # noqa: BLE001 - a defect in one must not keep the others from being put back
        return Undone(entry, "failed", f"unexpected {type(error).__name__}: {error}")


def _parse(path: str | os.PathLike[str], number: int, text: bytes) -> _Line:
    try:
        return msgspec.json.decode(text, type=_Line)
    except msgspec.MsgspecError as error:
        raise JournalError(f"{path}: line {number} is damaged: {error}", hint=_DAMAGED) from None


def _check_header(path: str | os.PathLike[str], line: _Line) -> None:
    if line.journal is None:
        raise JournalError(f"{path}: is not a journal of Sustain", hint="name another file")
    if line.journal != VERSION:
        raise JournalError(
            f"{path}: is a journal of version {line.journal}, and this Sustain reads {VERSION}",
            hint="put back with the Sustain that wrote it: `sustain agent restore`",
        )


_DAMAGED = "look at the guests, put back by hand what the other lines say, and remove the file"


def restore_left(path: Path, restore: Callable[[Journal], tuple[Undone, ...]]) -> tuple[Undone, ...]:
    """What a verb that only looked has left at `path`, put back by `restore`; a journal that cannot be used is one
    thing that is not put back."""
    try:
        if not path.exists():
            return ()
        with Journal(path) as journal:
            return restore(journal)
    except JournalBusy:
        return ()  # it is looking now, and puts it back itself
    except (SustainError, OSError) as error:
        return (failed(Entry(f"journal:{path.name}", "journal", {}, "", ()), error),)
