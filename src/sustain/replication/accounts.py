"""What hosts that returned have said of the logs that they had: `PATH.accounts.json`, beside each store of a workload.

Used by the receiver, which says what its own store held when it met a newer primary; by the shipper, which hears that,
keeps it, and passes it on to every other standby; and by the supervisor, which completes the reports of takeovers
from it (`failover.completion`). So whoever took over learns of it, also where somebody else is the primary by then.

The model: each account is a fact about a log that is over, and never changes. Both ends of a connection tell each
other all that they know; what is known already is dropped. Nothing has to be acknowledged, and a crash anywhere only
means that it is said again. At most `LIMIT` are kept, those of the newest epochs.

A log's writer alone knows where it ended, and the store says only until a receiver opens it who wrote last. So that is
noted here before, as `wrote`: the replica UUID of such a store, until its account is given.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from sustain import wholefile
from sustain.replication.wire import Account

LIMIT = 64


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    wrote: bytes | None = None
    accounts: list[Account] = []


def path_of(store: str) -> Path:
    return Path(f"{store}.accounts.json")


def _silent(_: str) -> None:
    pass


class Book:
    """The accounts beside the store at `store`; may be used by any thread, and by several processes."""

    def __init__(self, store: str, tell: Callable[[str], None] = _silent) -> None:
        self._path = path_of(store)
        self._tell = tell
        self._lock = threading.Lock()
        self._unwritten: list[Account] = []  # the disk did not take them
        self.version = 0  # grows with each account that this process has added

    def accounts(self, store_uuid: bytes) -> list[Account]:
        """Those of this store, oldest epoch first."""
        with self._lock:
            held = merged(self._load().accounts, self._unwritten)
        return [each for each in held if each.store == store_uuid]

    def of(self, store_uuid: str) -> list[Account]:
        """As `accounts`, by the UUID as text. Raises ValueError when it is none."""
        return self.accounts(UUID(store_uuid).bytes)

    def wrote(self) -> bytes | None:
        """The replica UUID of the store that an application wrote last and that no account was given of yet."""
        with self._lock:
            return self._load().wrote

    def note_writer(self, replica_uuid: bytes | None) -> None:
        """Keep, durably, that an application wrote that store last; None: that is settled, or not certain."""
        with self._lock, self._changing():
            held = self._load()
            if held.wrote != replica_uuid:
                self._save(msgspec.structs.replace(held, wrote=replica_uuid))

    def add(self, accounts: Iterable[Account], *, settled: bool = False) -> list[Account]:
        """Keep, durably, those that are new, which are returned; `settled`: also that the writer's own is among them.

        An account that the disk does not take stays in this process's memory, and is said.
        """
        with self._lock, self._changing():
            held = self._load()
            known = {_key(each) for each in (*held.accounts, *self._unwritten)}
            kept = merged((*held.accounts, *self._unwritten), accounts)
            fresh = [each for each in kept if _key(each) not in known]
            if fresh or self._unwritten or (settled and held.wrote):
                saved = self._save(_Held(wrote=None if settled else held.wrote, accounts=kept))
                self._unwritten = [] if saved else [*self._unwritten, *fresh]
            self.version += len(fresh)
            return fresh

    def _load(self) -> _Held:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return _Held()
        if not data:
            return _Held()
        try:
            return msgspec.json.decode(data, type=_Held)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            aside = f"{self._path}.damaged-{time.time_ns()}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path, aside)
            self._tell(f"{self._path} cannot be read ({error}) and is kept as {aside}; hosts say it again")
            return _Held()

    def _save(self, held: _Held) -> bool:
        data = msgspec.json.format(msgspec.json.encode(held), indent=2) + b"\n"
        try:
            wholefile.replace(self._path, data, durable=True)
        except OSError as error:
            self._tell(f"{self._path} cannot be written: {error.strerror}")
            return False
        return True

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """No other process changes the file meanwhile. Where it cannot be locked, there is nothing to write either."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield


def merged(one: Iterable[Account], other: Iterable[Account]) -> list[Account]:
    """All of both, each once, the newest `LIMIT`; oldest epoch first."""
    found = {_key(each): each for each in (*one, *other)}
    return sorted(found.values(), key=lambda each: (each.epoch, each.noted_ns, each.replica))[-LIMIT:]


def _key(account: Account) -> tuple[bytes, bytes, int, int]:
    return account.store, account.replica, account.epoch, account.end


def as_dict(account: Account) -> dict[str, Any]:
    """For a report's JSON."""
    data = {name: getattr(account, name) for name in account.__struct_fields__}
    return data | {name: str(UUID(bytes=data[name])) for name in ("store", "replica")}


def from_dict(data: dict[str, Any]) -> Account:
    """The reverse. Raises KeyError, TypeError, ValueError, AttributeError for what is none."""
    said = {name: data[name] for name in Account.__struct_fields__}
    return Account(**said | {name: UUID(said[name]).bytes for name in ("store", "replica")})
