"""One destination of the log: connects, stays connected, and says what became of it. A thread.

Used by `ship`. What happens on a connection is in `outlet`; here is what outlives it: how far the replica is,
what is kept in the log for it while it is away, when to try again, and which answers are worth trying again.
"""

import random
import threading
import time
from types import TracebackType

from sustain._native import LogTail
from sustain.errors import (
    AuthenticationFailed,
    PeerRefused,
    ProtocolError,
    StoreError,
    SustainError,
)
from sustain.replication.auth import Refused
from sustain.replication.dial import dial
from sustain.replication.meter import DrainMeter
from sustain.replication.outlet import LinkConfig, Outlet, Owner
from sustain.replication.pins import Backoff, Overruns
from sustain.replication.urls import Peer, join

_SLOW_RETRY_S = 2.0  # at least, after an answer that will not change by itself
_TRANSIENT = ("busy", "primary", "failed")


class Metering:
    """`with metering as meter`: the meter, for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meter = DrainMeter()

    def __enter__(self) -> DrainMeter:
        self._lock.acquire()
        return self._meter

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class Destination(threading.Thread):
    """Ships to one peer until its owner halts. The attributes are read by the owner, under no lock."""

    def __init__(self, peer: Peer, slot: int, log: LogTail, config: LinkConfig, owner: Owner) -> None:
        super().__init__(name=f"sustain-ship-{join(peer.host, peer.port)}", daemon=True)
        self.peer = peer
        self.slot = slot
        self.acked: int | None = None  # durable there, in a complete copy
        self.pinned: int | None = log.tail() if peer.required else None
        self.connected = False
        self.verifying = False  # it is busy with a finished snapshot
        self.metering = Metering()
        self.needs_snapshot = False
        self.last_moved = time.monotonic()
        self.crowding_since: float | None = None  # it holds more of the log than it may; the owner's note
        self.paused_s: float | None = None  # it cannot keep up: how long it is left alone now
        self.hopeless: SustainError | None = None  # an answer that will not change by itself
        self.last_error: SustainError | None = None
        self._log = log
        self._config = config
        self._owner = owner
        self._session: Outlet | None = None
        self._connections = 0
        self._overruns = Overruns(config.overrun_first_s, config.overrun_limit_s)
        self._reported: str | None = None

    def run(self) -> None:
        backoff = Backoff(self._config.backoff_first_s, self._config.backoff_limit_s, random.uniform)
        while not self._owner.halt.is_set():
            at_least_s = 0.0
            try:
                self._connect()
            except StoreError as error:
                self._owner.fail(error)
                return
            except SustainError as error:
                at_least_s = self._failed(error)
            finally:
                session, self._session = self._session, None
                with self.metering as meter:
                    meter.disconnected(time.monotonic())
                self.connected = self.verifying = False
                if session is not None and session.in_snapshot and not self._owner.halt.is_set():
                    self.needs_snapshot = True
                    self.show("needs-snapshot")
                # A snapshot that was cut pins nothing: the next one begins at another point.
                self.pinned = self.pinned_without_session()
                self._owner.repin()
            if session is not None:
                self._pause(session)
                if session.delivered:
                    backoff.reset()
            self._leave_alone(backoff.next(at_least_s), str(self.last_error or "the connection ended"))
        self.show("stopped")

    def _pause(self, session: Outlet) -> None:
        """Leave a destination that could not keep up alone for a while: each snapshot costs both sides, and holds the
        log."""
        pause_s = self._overruns.ended(time.monotonic(), session.overrun, session.caught_up)
        if pause_s and not self._owner.halt.is_set():
            self.paused_s = pause_s
            why = self._overruns.why
            self._config.report(f"{self.peer.url} {why}; the next snapshot in {pause_s:.0f} s")
            self._leave_alone(pause_s, f"it {why}")
            self.paused_s = None

    def _leave_alone(self, wait_s: float, why: str) -> None:
        """Wait before the next try, and let `sustain status` say so."""
        self._log.leave_alone(self.slot, wait_s, why)
        self._owner.halt.wait(wait_s)

    def close(self) -> None:
        """End the connection, from another thread."""
        session = self._session
        if session is not None:
            session.channel.bye("stopping")
            session.channel.close()

    def drop(self) -> None:
        """Let go of the log: this destination is too far behind. From the owner's thread."""
        self.pinned = None
        self.needs_snapshot = True
        self.show("needs-snapshot")
        self._config.report(f"{self.peer.url} holds the log no longer: it will need a snapshot")
        session = self._session
        if session is not None and self.connected:
            session.overrun = True
            session.channel.bye("overrun", "the log is full of what this replica does not take")
            session.channel.close()

    def overrun_by(self, tail: int) -> bool:
        """Whether the log, which begins at `tail`, has gone on without it: what is being sent is not there any more, or
        what it needs next when it comes back. From the owner's thread."""
        session = self._session
        if self.needs_snapshot:
            return False
        if self.connected and session is not None:
            return session.overrun_by(tail)
        return self.acked is not None and self.acked < tail

    def pinned_without_session(self) -> int | None:
        """What is kept for it while it is away."""
        if not self.peer.required or self.needs_snapshot:
            return None
        return self.acked if self._connections else self.pinned

    def show(self, state: str) -> None:
        self._log.update_slot(self.slot, state=state)

    def _connect(self) -> None:
        self._overruns.begins(time.monotonic())
        if not self.needs_snapshot and self.hopeless is None:
            self.show("connecting")
        channel = dial(
            self.peer,
            connect_timeout_s=self._config.connect_timeout_s,
            timeout_s=self._config.timeout_s,
        )
        session = Outlet(channel, self, self._log, self._config, self._owner)
        self._session = session
        try:
            if self._owner.halt.is_set():
                return
            welcome, hello = session.shake_hands()
            decision = session.decide(hello, welcome)
            self._connections += 1
            self._log.update_slot(self.slot, connections=self._connections)
            self.hopeless = None
            self._reported = None
            session.run(hello, welcome, decision)
        finally:
            session.end()

    def _failed(self, error: SustainError) -> float:
        """Say what went wrong, once; the least time to wait before the next try."""
        if self._owner.halt.is_set():
            return 0.0
        self.last_error = error
        at_least_s = 0.0
        if isinstance(error, Refused) and error.refusal.code == "fenced":
            self.show("refused")
            self._owner.fenced(error.refusal.epoch, str(error))
        elif isinstance(error, AuthenticationFailed | ProtocolError | PeerRefused):
            transient = isinstance(error, Refused) and error.refusal.code in _TRANSIENT
            transient |= (
                isinstance(error, ProtocolError) and self._session is not None and self._session.accepted
            )
            if not transient:
                self.hopeless = error
                self.show("refused")
            at_least_s = _SLOW_RETRY_S
        if str(error) != self._reported:
            self._reported = str(error)
            self._config.report(str(error) + (f" ({error.hint})" if error.hint else ""))
        return at_least_s
