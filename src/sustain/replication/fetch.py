"""Bring a store here from a peer that holds a whole copy: at once, or while the application already uses it.

Used by `sustain restore` and, through `begin` and `Fetch`, by whoever takes a workload over on a host that has no
copy:

    begun = begin("tcp://10.0.0.2:7411", "app.sus", credentials, epoch=5)   # PATH can be opened from now on
    subprocess.Popen(command("app.sus", ["tcp://10.0.0.2:7411"], files))   # until all is here

A fetch has two connections. One asks for the pages that somebody waits for, one page at a time; the other
streams the rest, goes on behind the page that was asked for last, and steps back while somebody waits. The
engine (`_native.Fetcher`) verifies, writes, and notes what is here; that survives every process. The fetch must
not run in the application's own process: an application that waits for a page may hold the interpreter's lock.
"""

import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sustain._native import Control, Fetcher, Replica, create_arriving
from sustain.errors import (
    AuthenticationFailed,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    StoreArriving,
    StoreCorrupt,
    StoreError,
    SustainError,
)
from sustain.replication.auth import STORES, Refused
from sustain.replication.credentials import NO_FILES, CredentialFiles, Credentials
from sustain.replication.dial import challenge, dial
from sustain.replication.getter import Getter, hello_of, nobody
from sustain.replication.pins import Backoff
from sustain.replication.session import common_point
from sustain.replication.urls import parse_peer
from sustain.replication.wire import PAGE_BYTES, Challenge, Welcome, decode

LIMIT_S = 30.0
_SETTLE_BYTES = 64 << 20
_SETTLE_S = 1.0
_DEPTH = 3  # requests under way on the streaming connection
_PIECE_PAGES = 128
_STEP_BACK_S = 0.005  # the streaming one waits so long for the other, at most, before each piece
_IDLE_S = 0.5
_TRIES = 2
_TRANSIENT = ("busy", "failed", "behind")


def _silent(_: str) -> None:
    pass


def keeps_store(url: str, credentials: Credentials, timeout_s: float = 10.0) -> bool:
    """Whether the peer at `url` keeps a store (and not regions). Raises ReplicationError, ConfigError."""
    peer = parse_peer(url)
    channel = dial(peer, connect_timeout_s=timeout_s, timeout_s=timeout_s)
    try:
        payload = challenge(channel, peer, credentials, timeout_s)
        return decode(Challenge, payload).service == STORES.name
    except (AuthenticationFailed, ProtocolError) as error:
        raise type(error)(f"{peer.url}: {error}", hint=error.hint) from None
    finally:
        channel.release()


@dataclass(frozen=True)
class Begun:
    """A store that can be opened while its pages come."""

    path: str
    base: int  # LSN: the source holds everything before it
    epoch: int
    pages: int
    behind_bytes: (
        int | None
    )  # what its primary had committed beyond that, as the source last heard; None: unknown


def begin(
    url: str,
    path: str,
    credentials: Credentials,
    *,
    epoch: int | None = None,
    new_epoch: bool = True,
    at_least: int = 0,
    name: str = "",
    durability: str = "auto",
    limit_s: float = LIMIT_S,
    report: Callable[[str], None] = _silent,
) -> Begun:
    """Make a store at `path` whose pages are still with the peer at `url`.

    Opens `epoch` on it (None: the one after the newest that the peer has seen; not at all unless `new_epoch`): from
    then on the peer refuses an older primary. Waits up to `limit_s` for a peer that is not ready, because another
    primary is connected to it, or because its copy ends before position `at_least` (bytes).

    Raises PeerRefused, PeerUnreachable, AuthenticationFailed, StoreError, ConfigError.
    """
    peer = parse_peer(url)
    deadline = time.monotonic() + limit_s
    backoff = Backoff(0.02, 0.5, random.uniform)
    while True:
        try:
            with Getter(peer, credentials, nobody(name, epoch or 0, at_least)) as getter:
                return _begin(getter.welcome, path, epoch, new_epoch, durability, limit_s)
        except (PeerUnreachable, Refused) as error:
            lasting = isinstance(error, Refused) and error.refusal.code not in _TRANSIENT
            if lasting or time.monotonic() >= deadline:
                raise
            report(f"{url}: {error}")
        time.sleep(min(backoff.next(), max(0.0, deadline - time.monotonic())))


def _begin(
    welcome: Welcome,
    path: str,
    epoch: int | None,
    new_epoch: bool,
    durability: str,
    limit_s: float,
) -> Begun:
    create_arriving(
        path,
        welcome.image_size,
        welcome.log_size,
        durability,
        welcome.store,
        welcome.epoch,
        [(each, start) for each, start in welcome.history],
        welcome.end,
        welcome.end_seq,
        welcome.end_chain,
        limit_s,
    )
    opened = welcome.epoch
    if new_epoch:
        opened = epoch if epoch is not None else welcome.epoch + 1
        promote(path, opened)
    heard = welcome.primary_committed
    behind = None if heard is None else max(0, heard - welcome.end)
    return Begun(path, welcome.end, opened, welcome.image_size // PAGE_BYTES, behind)


def promote(path: str, epoch: int) -> int:
    """Open `epoch` on the arriving store at `path`; the LSN where it begins. Raises StoreError.

    A store that was not closed in order needs its fetch to be running.
    """
    replica = Replica(path, arriving=True)
    try:
        return replica.promote(epoch)
    finally:
        replica.close()


def command(
    path: str, urls: Sequence[str], files: CredentialFiles = NO_FILES, limit_s: float = LIMIT_S
) -> list[str]:
    """The arguments of a process that fetches the arriving store at `path` until all is here; it may be started
    again whenever it has ended. The first of `urls` is tried first."""
    words = [
        sys.executable,
        "-m",
        "sustain.cli",
        "restore",
        urls[0],
        path,
        "--on-demand",
        "--limit",
        f"{limit_s:g}s",
    ]
    for url in urls[1:]:
        words += ["--also", url]
    return words + files.words()


@dataclass(frozen=True)
class Fetched:
    """What a fetch did. Times in seconds."""

    pages: int
    fetched: int  # by this fetch
    asked: int  # of all pages, because somebody waited for them
    seconds: float


class Fetch:
    """Brings pages until all are here. One process at a time fetches a store."""

    def __init__(
        self,
        path: str,
        urls: Sequence[str],
        credentials: Credentials,
        *,
        limit_s: float = LIMIT_S,
        name: str = "",
        timeout_s: float = 10.0,
        report: Callable[[str], None] = _silent,
    ) -> None:
        self._peers = [parse_peer(url) for url in urls]
        self._path = path
        self._credentials = credentials
        self._limit_s = limit_s
        self._name = name
        self._timeout_s = timeout_s
        self._report = report
        self._fetcher = Fetcher(path)
        self._fetcher.set_limit(limit_s)
        self._block = self._fetcher.superblock()
        self._near = 0  # where to stream on
        self._urgent_until = 0.0  # somebody waits, or is likely to in a moment (monotonic)
        self._fetched = 0
        self._moved = time.monotonic()  # when a page came last
        self._errors: dict[str, SustainError] = {}  # by URL, why that source is of no use now
        self._faults: dict[str, int] = {}  # by URL, how often it was of no use
        self._reported: dict[str, str] = {}
        self._halt = threading.Event()
        self._fatal: SustainError | None = None

    def status(self) -> dict[str, object]:
        """What is here. Sizes in pages of 4 KiB."""
        return dict(self._fetcher.status())

    def run(self, stop: threading.Event) -> Fetched:
        """Fetch until the store is an ordinary one, or `stop` is set (then StoreArriving).

        Raises StoreArriving when no source could be used for the limit: who waits for a page has then been told.
        Raises StoreError when the store cannot be written.
        """
        began = time.monotonic()
        asked = threading.Thread(target=self._serve_asked, name="sustain-fetch-asked", daemon=True)
        asked.start()
        try:
            self._stream(stop)
            self._finish(stop)
        except SustainError as error:
            if not stop.is_set():
                self._fetcher.fail(str(error))
            raise
        finally:
            self._halt.set()
            asked.join()
            self._fetcher.close()
        status = self._fetcher.status()
        return Fetched(status["pages"], self._fetched, status["asked"], time.monotonic() - began)

    # the rest, in order

    def _stream(self, stop: threading.Event) -> None:
        backoff = Backoff(0.02, 1.0, random.uniform)
        while self._fetcher.next_missing(0, 1) is not None:
            if stop.is_set():
                raise StoreArriving(f"{self._path}: stopped, {self.missing()}", hint=_GO_ON)
            if self._fatal is not None:
                raise self._fatal
            fetched = self._fetched
            try:
                with self._connect() as getter:
                    self._stream_from(getter, stop)
            except SustainError as error:
                self._note(error)
            if self._fetched > fetched:
                backoff.reset()
            if time.monotonic() - self._moved > self._limit_s and not stop.is_set():
                raise self._lost()
            stop.wait(0 if self._fetcher.next_missing(0, 1) is None else backoff.next())

    def _stream_from(self, getter: Getter, stop: threading.Event) -> None:
        pending: list[tuple[int, int]] = []
        unsettled, settled_at = 0, time.monotonic()
        at = self._near = 0
        while not stop.is_set() and self._fatal is None:
            if self._near:
                at, self._near = self._near, 0
            while len(pending) < _DEPTH:
                run = self._fetcher.next_missing(at, _PIECE_PAGES)
                if run is None or run in pending:
                    break
                getter.ask(*run)
                pending.append(run)
                at = run[0] + run[1]
            if not pending:
                if at == 0:
                    break
                at = 0
                continue
            if time.monotonic() < self._urgent_until:
                stop.wait(_STEP_BACK_S)
            first, count = pending.pop(0)
            unsettled += self._put(getter, first, count) * PAGE_BYTES
            if unsettled >= _SETTLE_BYTES or (unsettled and time.monotonic() - settled_at > _SETTLE_S):
                self._fetcher.settle()
                unsettled, settled_at = 0, time.monotonic()

    def _put(self, getter: Getter, first: int, count: int) -> int:
        data = getter.take(first, count)
        try:
            new = self._fetcher.put(first, count, data)
        except StoreCorrupt as error:
            raise _Bad(getter.url, str(error), hint="that copy is damaged: name another source") from None
        except StoreError as error:
            self._fatal = error
            raise
        self._fetched += new
        if new:
            self._moved = time.monotonic()
            self._errors.clear()
        return new

    # what somebody waits for

    def _serve_asked(self) -> None:
        getter: Getter | None = None
        backoff = Backoff(0.02, 0.5, random.uniform)
        said = time.monotonic()
        while not self._halt.is_set():
            try:
                if getter is None:
                    getter = self._connect()
                    backoff.reset()
                pages = self._fetcher.wanted(_IDLE_S)
                if pages:
                    self._give_asked(getter, pages)
                elif time.monotonic() - said > _IDLE_S:
                    getter.heartbeat()
                else:
                    continue
                said = time.monotonic()
            except SustainError as error:
                self._note(error)
                if getter is not None:
                    getter.close()
                    getter = None
                self._halt.wait(backoff.next())
        if getter is not None:
            getter.close()

    def _give_asked(self, getter: Getter, pages: list[int]) -> None:
        self._urgent_until = time.monotonic() + _STEP_BACK_S
        for page in pages:
            getter.ask(page, 1)
        for page in pages:
            self._put(getter, page, 1)
            self._near = page + 1

    # sources

    def _connect(self) -> Getter:
        """A connection to the first source that holds what is needed. Raises the last one's error."""
        last: SustainError = StoreArriving(f"{self._path}: no source is named")
        hello = hello_of(self._block, self._name)
        for peer in self._peers:
            if self._faults.get(peer.url, 0) >= _TRIES:
                continue
            try:
                getter = Getter(peer, self._credentials, hello, timeout_s=self._timeout_s)
                why = self.objection(getter.welcome)
                if why is None:
                    return getter
                getter.close()
                raise _Bad(peer.url, why, hint="name a source that holds this store as it was then")
            except SustainError as error:
                self._errors[peer.url] = last = error
        raise last

    def objection(self, welcome: Welcome) -> str | None:
        """Why a copy cannot give the pages that are missing here; None: it can.

        It must hold everything before the base, and after it nothing but what this store has committed itself.
        """
        block = self._block
        if welcome.store != block["store_uuid"] or welcome.image_size != block["image_size"]:
            return "it holds another store"
        if welcome.incomplete:
            return "its copy is not complete"
        base, _, _ = self._fetcher.point()
        if welcome.end < base:
            return f"its copy ends at {welcome.end}, before {base}, where this one began"
        here = self._fetcher.boundary(welcome.end)
        if here is not None:
            fits = here == (welcome.end_seq, welcome.end_chain)
            return None if fits else f"its commit that ends at {welcome.end} is not the one here"
        # Our log does not reach back to there any more: the epochs have to tell.
        now = self._fetcher.superblock()
        control = Control(self._path)
        try:
            words = control.words()
        finally:
            control.close()
        committed = words["committed"] if words is not None else now["end"]
        common = common_point(now["history"], committed, welcome.history, welcome.end)
        if welcome.end > min(common, now["tail"]):
            return f"it holds commits up to {welcome.end} that are not of this store"
        return None

    def _note(self, error: SustainError) -> None:
        key = type(error).__name__
        if self._reported.get(key) != str(error):
            self._reported[key] = str(error)
            self._report(str(error) + (f" ({error.hint})" if error.hint else ""))
        if isinstance(error, _Bad):
            self._faults[error.url] = self._faults.get(error.url, 0) + 1
            # A second try is for what the network did. Without a source that is sound, who waits shall know at once.
            if all(self._faults.get(peer.url, 0) >= _TRIES for peer in self._peers):
                self._fatal = error

    def _lost(self) -> StoreArriving:
        why = "; ".join(str(error) for error in self._errors.values()) or "no source sends anything"
        return StoreArriving(
            f"{self._path}: {self.missing()}, and none came for {self._limit_s:g} s: {why}", hint=_GO_ON
        )

    def missing(self) -> str:
        """Which pages are not here, in words."""
        status = self._fetcher.status()
        ranges: list[str] = []
        at = 0
        while len(ranges) < 4 and (run := self._fetcher.next_missing(at, status["pages"])) is not None:
            ranges.append(f"{run[0]}…{run[0] + run[1] - 1}" if run[1] > 1 else str(run[0]))
            at = run[0] + run[1]
        more = ", …" if at and self._fetcher.next_missing(at, 1) is not None else ""
        left = status["pages"] - status["here"]
        return f"{left} of {status['pages']} pages are missing ({', '.join(ranges)}{more})"

    # the end

    def _finish(self, stop: threading.Event) -> None:
        self._fetcher.complete()
        while not self._fetcher.try_finish():
            if stop.wait(0.02):
                with contextlib.suppress(SustainError):
                    self._fetcher.try_finish()
                return


class _Bad(PeerRefused):
    """A source that is of no use."""

    def __init__(self, url: str, why: str, *, hint: str) -> None:
        super().__init__(f"{url}: {why}", hint=hint)
        self.url = url


_GO_ON = "`sustain restore` with a source that can be reached goes on where it stopped"
