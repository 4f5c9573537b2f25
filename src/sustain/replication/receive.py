"""The receiver: a standby's end of replication, from listening to handing the store over.

Used by `sustain receive` and the supervisor:

    receiver = Receiver(ReceiverConfig(store="app.sus", listen=("127.0.0.1", 0)))
    receiver.start()
    receiver.status()
    receiver.promote(epoch)     # or receiver.stop()

One session at a time holds the store. A connection of a newer epoch, or a newer connection of the same
primary, ends the session before: a half-open connection must not keep its own successor out. An epoch older
than the newest seen is refused with "fenced", which is what makes the primary of that epoch stop.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sustain.errors import PeerUnreachable, ReplicationError, StoreError, SustainError
from sustain.replication.auth import STORES, ReceiverHandshake
from sustain.replication.channel import Channel
from sustain.replication.credentials import NO_CREDENTIALS, Credentials
from sustain.replication.giver import Giver
from sustain.replication.intake import Intake
from sustain.replication.listener import Listener
from sustain.replication.standby import Standby, no_room
from sustain.replication.urls import join
from sustain.replication.wire import Hello, Refuse, Welcome

ANY_STORE = bytes(16)  # in a HELLO that fetches: whatever is there
_HANDOVER_S = 5.0  # how long a new connection waits for the session before it to let go


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class ReceiverConfig:
    """How to receive. Sizes in bytes, times in seconds."""

    store: str
    listen: tuple[str, int]
    credentials: Credentials = NO_CREDENTIALS
    name: str = ""
    size_limit: int | None = None  # of the whole store file
    durability: str = "auto"  # of a store that is created here
    heartbeat_s: float = 1.0
    timeout_s: float = 10.0
    handshake_timeout_s: float = 10.0
    report: Callable[[str], None] = field(default=_silent)  # a line for the operator


def fetch_objection(standby: Standby, hello: Hello) -> Refuse | None:
    """Why the copy here cannot be fetched from by `hello`'s side."""
    if 0 < hello.epoch < standby.known_epoch:
        return Refuse(
            "fenced",
            f"epoch {hello.epoch} is over: this host has seen epoch {standby.known_epoch}",
            "another host is the primary now",
            standby.known_epoch,
        )
    if standby.replica is None:
        why = f" ({standby.unusable})" if standby.unusable else ""
        return Refuse("no-copy", f"there is no complete copy here{why}", "fetch from another host")
    if standby.rewinding:
        return Refuse("no-copy", "the copy here is not the newest primary's", "fetch from another host")
    if standby.end < hello.committed:
        return Refuse(
            "behind",
            f"the copy here reaches position {standby.end}, not {hello.committed}: "
            f"{hello.committed - standby.end} bytes are missing",
            "wait until its primary has sent them, or fetch from another host",
        )
    if hello.store != ANY_STORE and standby.replica.superblock()["store_uuid"] != hello.store:
        return Refuse("other-store", f"{standby.path} holds another store", "check the address")
    return None


class Receiver:
    """Listens between `start` and `stop`; every method may be called from any thread."""

    def __init__(self, config: ReceiverConfig) -> None:
        self._config = config
        self._standby = Standby(
            config.store, config.name, config.durability, config.size_limit, config.report
        )
        self._listener = Listener(
            config.listen,
            config.credentials,
            STORES,
            self._serve,
            timeout_s=config.timeout_s,
            handshake_timeout_s=config.handshake_timeout_s,
            rejected=self._rejected,
        )
        self._admission = threading.Lock()  # who may use the store next
        self._session: Intake | None = None
        self._sessions = 0
        self._givers: set[Giver] = set()  # connections that fetch from the copy here
        self._last_error: str | None = None
        self._stopping = False
        self._ended = threading.Event()
        self.failure: StoreError | None = None  # the store has failed; nothing more is received

    def start(self) -> None:
        """Open the store, if there is one, and listen. Raises StoreError, ConfigError."""
        self._standby.open()
        if self._standby.unusable:
            self._config.report(
                f"{self._config.store} is not used ({self._standby.unusable}): a snapshot is needed"
            )
        try:
            self._listener.start()
        except SustainError:
            self._standby.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) where it listens."""
        return self._listener.address

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the receiver has ended (`stop`, or `failure`); whether it has."""
        return self._ended.wait(timeout_s)

    def stop(self, drain_s: float = 0.2) -> None:
        """Take in what has already arrived, for at most `drain_s`; end every session; close the store."""
        if not self._end_sessions(drain_s):
            raise StoreError(
                f"{self._config.store}: a session does not end", hint="a disk that hangs? end the process"
            )
        self._standby.close()
        self._ended.set()

    def promote(self, epoch: int, drain_s: float = 0.2) -> int:
        """Stop receiving and open `epoch` on what is here; the LSN where it begins. Raises StoreError.

        The store is closed then, whether this succeeded or not.
        """
        try:
            if not self._end_sessions(drain_s):
                raise StoreError(f"{self._config.store}: a session does not end", hint="a disk that hangs?")
            return self._standby.promote(epoch)
        finally:
            self._standby.close()
            self._ended.set()

    def status(self) -> dict[str, Any]:
        """What the receiver knows now. None is "unknown"; times in seconds, sizes in bytes."""
        session = self._session
        data: dict[str, Any] = {
            **self._standby.status(),
            "state": "failed" if self.failure else "listening",
            "listen": join(*self.address),
            "primary": None,
            "fetches": [
                {"name": each.hello.name, "address": each.channel.peer, "pages_given": each.pages_given}
                for each in list(self._givers)
            ],
            "sessions": self._sessions,
            "last_error": self._last_error,
        }
        if session is not None:
            progress = session.progress
            data["state"] = progress.state
            data["primary"] = {
                "name": session.hello.name,
                "address": session.channel.peer,
                "epoch": session.hello.epoch,
                "committed": progress.primary_committed,
                "behind_bytes": max(0, progress.primary_committed - progress.end),
                "heard_s_ago": time.monotonic() - progress.heard_monotonic,
                "snapshot_done_bytes": progress.snapshot_done_bytes,
                "snapshot_total_bytes": progress.snapshot_total_bytes,
            }
        return data

    # connections

    def _serve(self, channel: Channel, handshake: ReceiverHandshake[Hello, Welcome], hello: Hello) -> None:
        if hello.purpose == "fetch":
            self._give(channel, handshake, hello)
            return
        with self._admission:
            refusal = self._admit(hello)
            if refusal is not None:
                self._last_error = f"{channel.peer} refused: {refusal.message}"
                channel.send_raw([handshake.refuse(refusal)])
                return
            session = Intake(channel, hello, self._standby, self._config.heartbeat_s, self._config.report)
            self._session = session
            self._sessions += 1
            try:
                channel.send_raw([handshake.welcome(self._standby.welcome())])
            except SustainError:
                self._session = None
                raise
        try:
            session.run()
        except ReplicationError as error:
            self._note(channel, error)
        except StoreError as error:
            # Where there was no room it can be tried again; a copy in service that failed otherwise cannot.
            self._note(channel, error)
            if session.progress.state == "streaming" and not no_room(error):
                self._fail(error)
        finally:
            self._session = None if self._session is session else self._session

    def _give(self, channel: Channel, handshake: ReceiverHandshake[Hello, Welcome], hello: Hello) -> None:
        """Let the copy here be fetched from."""
        with self._admission:
            refusal = self._admit_fetch(hello)
            if refusal is not None:
                self._last_error = f"{channel.peer} may not fetch: {refusal.message}"
                channel.send_raw([handshake.refuse(refusal)])
                return
            giver = Giver(channel, hello, self._config.store)
            welcome = self._standby.welcome()
            self._givers.add(giver)
        try:
            channel.send_raw([handshake.welcome(welcome)])
            giver.run(welcome.image_size)
        except ReplicationError as error:
            self._note(channel, error)
        finally:
            giver.ended.set()
            self._givers.discard(giver)

    def _admit_fetch(self, hello: Hello) -> Refuse | None:
        """See that only the store that fetches may change the copy from now on; the objection, if there is any."""
        refusal = self._unfit() or self._still_full() or fetch_objection(self._standby, hello)
        if refusal is not None:
            return refusal
        old = self._session
        if old is not None and not old.done.is_set() and old.hello.replica != hello.replica:
            who = old.hello.name or "a primary"
            if hello.epoch <= old.hello.epoch:
                return Refuse("busy", f"{who} is connected: the copy changes", "stop that primary first")
            old.channel.bye("replaced", "a newer epoch fetches this copy")
            old.channel.close()
            if not old.ended.wait(_HANDOVER_S):
                return Refuse("busy", "the session before has not ended yet", "it is tried again")
        try:
            if hello.epoch > self._standby.known_epoch:
                self._standby.accept_epoch(hello.epoch)
        except StoreError as error:
            self._fail(error)
            return Refuse("failed", str(error), error.hint)
        return None

    def _unfit(self) -> Refuse | None:
        if self._stopping or self.failure is not None:
            text = f"the receiver has failed: {self.failure}" if self.failure else "the receiver is stopping"
            return Refuse("failed", text, "restart `sustain receive` there")
        return None

    def _still_full(self) -> Refuse | None:
        """Open the copy again whose disk was full; the objection when that does not work."""
        if not self._standby.full:
            return None
        old = self._session
        if old is not None and not old.ended.wait(_HANDOVER_S):
            return Refuse("busy", "the session before has not ended yet", "it is tried again")
        try:
            self._standby.reopen()
        except StoreError as error:
            self._fail(error)
            return Refuse("failed", str(error), error.hint)
        return None

    def _end_fetches(self, hello: Hello) -> Refuse | None:
        """A log is to come that need not be the fetching store's: a newer epoch ends the fetches, others wait."""
        for giver in [each for each in list(self._givers) if each.hello.replica != hello.replica]:
            if hello.epoch <= self._standby.known_epoch:
                return Refuse(
                    "busy", f"{giver.hello.name or giver.channel.peer} fetches this copy", "tried again"
                )
            giver.channel.close()
            if not giver.ended.wait(_HANDOVER_S):
                return Refuse("busy", "a fetch has not ended yet", "it is tried again")
        return None

    def _admit(self, hello: Hello) -> Refuse | None:
        """End the session before, if it must give way; the objection to this one, if there is any."""
        refusal = self._unfit() or self._still_full()
        if refusal is not None:
            return refusal
        objection = self._standby.objection(hello)
        if objection is not None:
            code, message, hint = objection
            return Refuse(code, message, hint, self._standby.known_epoch if code == "fenced" else 0)
        refusal = self._end_fetches(hello)
        if refusal is not None:
            return refusal
        old = self._session
        if old is not None and not old.done.is_set():
            if old.hello.epoch == hello.epoch and old.hello.replica != hello.replica:
                return Refuse(
                    "busy", f"{old.hello.name or 'another primary'} of the same epoch is connected", ""
                )
            old.channel.bye("replaced", "a newer connection took over")
            old.channel.close()
        if old is not None and not old.ended.wait(_HANDOVER_S):
            return Refuse("busy", "the session before has not ended yet", "it is tried again")
        try:
            self._standby.accept_epoch(hello.epoch)
            self._standby.note_primary(hello)
        except StoreError as error:
            self._fail(error)
            return Refuse("failed", str(error), error.hint)
        return None

    def _rejected(self, peer: str, error: SustainError) -> None:
        if not isinstance(error, PeerUnreachable):  # a port scan is not worth a line
            self._config.report(f"{peer} was turned away: {error}")
        self._last_error = f"{peer}: {error}"

    def _note(self, channel: Channel, error: SustainError) -> None:
        self._last_error = str(error)
        if not self._stopping:
            hint = f" ({error.hint})" if error.hint else ""
            self._config.report(f"session with {channel.peer} ended: {error}{hint}")

    def _fail(self, error: StoreError) -> None:
        """The copy is of no use any more; where only its disk is full, until it is opened again."""
        if no_room(error):
            self._standby.full = True
            return
        self.failure = error
        self._ended.set()

    def _end_sessions(self, drain_s: float) -> bool:
        self._stopping = True
        session = self._session
        if session is not None:
            session.finish()
            session.ended.wait(drain_s)
            session.channel.close()
        self._listener.stop()
        return session is None or session.ended.wait(_HANDOVER_S)
