"""The keeper: listens, and keeps the regions that others save, each in a directory of its own.

Used by `sustain receive --region-dir` and the supervisor of a standby:

    keeper = Keeper(KeeperConfig(listen=("127.0.0.1", 0)), open_sink, open_source)
    keeper.start()
    keeper.status()
    keeper.stop()

What is on disk, and which epoch may write, is the directory's business (`directory`); here is who may use it now.
One session saves a region at a time. A connection of the same or a newer epoch ends the one before, which may be
half-open and must not keep its own successor out. Whatever a client does, memory is bounded: so many sessions,
so many frames each.

Rejected: letting a session write while the one before finishes its last pages. Two savers of one image make a
mixture that no digest table describes.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sustain.errors import (
    PeerRefused,
    PeerUnreachable,
    RegionBusy,
    RegionError,
    RegionFull,
    RegionIOError,
    SustainError,
)
from sustain.powerfail.regions.frames import REGIONS, SAVE, RegionHello, RegionWelcome, failed
from sustain.powerfail.regions.session import RestoreSession, SaveSession, Session
from sustain.powerfail.regions.sink import Sink, Source
from sustain.replication.auth import ReceiverHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.listener import Listener, refuse
from sustain.replication.urls import join
from sustain.replication.wire import Refuse

SESSIONS_LIMIT = 32
_HANDOVER_S = 5.0  # how long a new connection waits for a session that must let go
_GRACE_S = 1.0  # and for one that may be over already


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class KeeperConfig:
    """How to keep. Sizes in bytes, times in seconds."""

    listen: tuple[str, int]
    credentials: Credentials = NO_CREDENTIALS
    only: str = ""  # the one region that is kept; "": any
    size_limit: Callable[[], int | None] = lambda: None  # of a region; asked at each save
    heartbeat_s: float = 1.0
    timeout_s: float = 10.0
    handshake_timeout_s: float = 10.0
    report: Callable[[str], None] = field(default=_silent)  # a line for the operator


class Keeper:
    """Listens between `start` and `stop`; every method may be called from any thread.

    `open_sink(name)` and `open_source(name)` give the place of a region. Names are checked before.
    """

    def __init__(
        self,
        config: KeeperConfig,
        open_sink: Callable[[str], Sink],
        open_source: Callable[[str], Source],
    ) -> None:
        self._config = config
        self._open_sink, self._open_source = open_sink, open_source
        self._listener = Listener(
            config.listen,
            config.credentials,
            REGIONS,
            self._serve,
            timeout_s=config.timeout_s,
            handshake_timeout_s=config.handshake_timeout_s,
            rejected=self._rejected,
        )
        self._changed = threading.Condition()
        self._sessions: set[Session] = set()
        self._served = 0
        self._last_error: str | None = None
        self._stopping = False

    def start(self) -> None:
        """Listen. Raises ConfigError."""
        self._listener.start()

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) where it listens."""
        return self._listener.address

    def stop(self) -> None:
        """End every session; what they wrote stays, unsealed unless it was sealed. Raises RegionIOError."""
        with self._changed:
            self._stopping = True
            sessions = list(self._sessions)
        for session in sessions:
            session.end("stopping", "the keeper was asked to end")
        self._listener.stop()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._sessions, _HANDOVER_S):
                raise RegionIOError("a session does not end", hint="a disk that hangs? end the process")

    def status(self) -> dict[str, Any]:
        """What the keeper does now. None is "unknown"; times in seconds, sizes in bytes."""
        with self._changed:
            sessions = [session.status() for session in self._sessions]
        return {
            "state": "stopping" if self._stopping else "listening",
            "listen": join(*self.address),
            "sessions": sessions,
            "served": self._served,
            "last_error": self._last_error,
        }

    # connections

    def _serve(
        self,
        channel: Channel,
        handshake: ReceiverHandshake[RegionHello, RegionWelcome],
        hello: RegionHello,
    ) -> None:
        make = SaveSession if hello.purpose == SAVE else RestoreSession
        session = make(channel, hello, self._config.heartbeat_s)
        try:
            self._admit(session)
        except Exception as error:  # noqa: BLE001 - told and noted
            self._refuse(session, handshake, error)
            return
        try:
            try:
                welcome = self._begin(session)
            except Exception as error:  # noqa: BLE001 - told and noted
                self._refuse(session, handshake, error)
                return
            self._config.report(f"{session.describe()} has begun")
            channel.send_raw([handshake.welcome(welcome)])
            session.run()
            self._config.report(f"{session.describe()} has ended: {session.outcome}")
        except Exception as error:  # noqa: BLE001 - whatever ends a session, the others go on
            self._last_error = str(error)
            if not self._stopping:
                kind = "" if isinstance(error, SustainError) else f"{type(error).__name__}: "
                self._config.report(f"{session.describe()} has failed: {kind}{error}")
        finally:
            try:
                session.close()
            finally:
                with self._changed:
                    self._sessions.discard(session)
                    self._changed.notify_all()

    def _begin(self, session: Session) -> RegionWelcome:
        session.start_heartbeat()
        if isinstance(session, SaveSession):
            return session.begin(self._open_sink(session.hello.name))
        assert isinstance(session, RestoreSession)
        return session.begin(self._open_source(session.hello.name))

    def _admit(self, session: Session) -> None:
        """Make room for `session`: whoever saves the same region in the same or an older epoch gives way.

        Raises PeerRefused, RegionBusy, RegionFull.
        """
        hello = session.hello
        if self._config.only and hello.name != self._config.only:
            raise PeerRefused(
                f"region {hello.name} is not kept here, only {self._config.only}",
                hint="check --name, and --region-name there",
            )
        limit = self._config.size_limit() if hello.purpose == SAVE else None
        if limit is not None and hello.size_bytes > limit:
            raise RegionFull(
                f"region {hello.name} of {hello.size_bytes} bytes is above the limit of {limit}",
                hint="a larger disk, or --size-limit, at the keeper",
            )
        began = time.monotonic()
        with self._changed:
            while (old := self._in_the_way(hello)) is not None:
                if hello.purpose == SAVE and old.hello.epoch > hello.epoch:
                    raise PeerRefused(
                        f"epoch {hello.epoch} is over: epoch {old.hello.epoch} saves region {hello.name}",
                        hint="this host is not the primary any more",
                    )
                gives_way = isinstance(old, SaveSession) and (hello.purpose == SAVE or old.sealed)
                left_s = began + (_HANDOVER_S if gives_way or old.over else _GRACE_S) - time.monotonic()
                if left_s <= 0:
                    raise RegionBusy(f"{old.describe()} has not ended", hint="try again when it has")
                if gives_way:
                    old.end("replaced", f"a newer connection took over, from {session.channel.peer}")
                self._changed.wait(left_s)
            if self._stopping:
                raise RegionError("the keeper is stopping", hint="start `sustain receive` there again")
            if len(self._sessions) >= SESSIONS_LIMIT:
                raise RegionBusy(f"{SESSIONS_LIMIT} sessions are open here", hint="try again later")
            self._sessions.add(session)
            self._served += 1

    def _in_the_way(self, hello: RegionHello) -> Session | None:
        """A session that must end first: any for a save, a save for a restore.

        A save gives way to a newer one; to a restore when it has sealed, since its host may be cut off and
        whoever restores what was sealed does not wait for its time-out. All others are only given the moment
        that a client that has hung up takes to be noticed.
        """
        for each in self._sessions:
            if each.hello.name == hello.name and SAVE in (each.hello.purpose, hello.purpose):
                return each
        return None

    def _refuse(
        self,
        session: Session,
        handshake: ReceiverHandshake[RegionHello, RegionWelcome],
        error: Exception,
    ) -> None:
        self._last_error = f"{session.channel.peer} refused: {error}"
        self._config.report(f"{session.describe()} was refused: {error}")
        told = failed(error)
        with contextlib.suppress(PeerUnreachable):
            refuse(session.channel, handshake, Refuse(told.code, told.message, told.hint))

    def _rejected(self, peer: str, error: SustainError) -> None:
        self._last_error = f"{peer}: {error}"
        if not isinstance(error, PeerUnreachable):  # a port scan is not worth a line
            self._config.report(f"{peer} was turned away: {error}")
