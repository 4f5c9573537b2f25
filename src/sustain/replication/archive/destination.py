"""An archive as a destination of the log: what outlives a failure. A thread.

Used by `ship` beside `replication.destination`, whose attributes it has. What is done while all goes well is in
`shipping`; here is when to try again, and what to say.
"""

import random
import threading
import time

from sustain._native import LogTail
from sustain.errors import (
    ArchiveCorrupt,
    ArchiveIOError,
    PeerRefused,
    StoreError,
    SustainError,
    unexpected,
)
from sustain.replication.archive.arrival import NewerEpoch, arrive
from sustain.replication.archive.place import open_place
from sustain.replication.archive.shipping import COPY_SHARE, Shipping
from sustain.replication.archive.upkeep import Upkeep
from sustain.replication.archive.upload import PutMeter
from sustain.replication.outlet import LinkConfig, Owner
from sustain.replication.pins import Backoff, Overruns
from sustain.replication.urls import ArchiveUrl

_SLOW_RETRY_S = 2.0


class _Metering:
    """`with metering as meter`, as `destination.Metering`."""

    def __init__(self, meter: PutMeter) -> None:
        self.meter = meter

    def __enter__(self) -> PutMeter:
        return self.meter

    def __exit__(self, *_: object) -> None:
        pass


class ArchiveDestination(threading.Thread):
    """Ships to one archive until its owner halts. The attributes are read by the owner, under no lock."""

    def __init__(self, peer: ArchiveUrl, slot: int, log: LogTail, config: LinkConfig, owner: Owner) -> None:
        super().__init__(name=f"sustain-archive-{peer.url}", daemon=True)
        self.peer = peer
        self.slot = slot
        self.acked: int | None = None
        self.pinned: int | None = log.tail() if peer.required else None
        self.connected = False
        self.verifying = False
        self.meter = PutMeter()
        self.metering = _Metering(self.meter)
        self.needs_snapshot = False
        self.last_moved = time.monotonic()
        self.crowding_since: float | None = None
        self.paused_s: float | None = None
        self.hopeless: SustainError | None = None
        self.last_error: SustainError | None = None
        self.delivered = False
        self.copied_s = 0.0  # how long the last copy took
        self.overrun = False
        self.whole = False  # a copy there has become usable in this session
        self._overruns = Overruns(config.overrun_first_s, config.overrun_limit_s)
        self.log = log
        self.config = config
        self.owner = owner
        self.dropped = threading.Event()
        self._reported: str | None = None

    def run(self) -> None:
        backoff = Backoff(self.config.backoff_first_s, self.config.backoff_limit_s, random.uniform)
        while not self.owner.halt.is_set():
            at_least_s, self.delivered, self.whole = 0.0, False, False
            self._overruns.begins(time.monotonic())
            try:
                self._session()
            except StoreError as error:
                self.owner.fail(error)
                return
            except SustainError as error:
                at_least_s = self._failed(error)
            except Exception as error:  # noqa: BLE001 - a defect is told, and other destinations go on
                at_least_s = self._failed(ArchiveIOError(f"{self.peer.url}: {unexpected(error)}"))
            finally:
                self.connected = False
                self.pinned = self.acked if self.peer.required and not self.needs_snapshot else None
                self.owner.repin()
            if self.delivered:
                backoff.reset()
            self._pause()
            self._leave_alone(backoff.next(at_least_s), str(self.last_error or "the session ended"))
        self.show("stopped")

    def _pause(self) -> None:
        """Leave an archive that could not keep up alone for a while: each copy costs both sides, and holds the log."""
        # It may have ended for another reason, when it had just been dropped.
        overrun, self.overrun = self.overrun or self.dropped.is_set(), False
        pause_s = self._overruns.ended(time.monotonic(), overrun, self.whole)
        if overrun:
            pause_s = max(pause_s, min(self.copied_s * (COPY_SHARE - 1), self.config.overrun_limit_s))
        if pause_s and not self.owner.halt.is_set():
            self.paused_s = pause_s
            why = self._overruns.why
            self.config.report(f"{self.peer.url} {why}; the next snapshot in {pause_s:.0f} s")
            self._leave_alone(pause_s, f"it {why}")
            self.paused_s = None

    def _leave_alone(self, wait_s: float, why: str) -> None:
        """Wait before the next try, and let `sustain status` say so."""
        self.log.leave_alone(self.slot, wait_s, why)
        self.owner.halt.wait(wait_s)

    def close(self) -> None:
        """Nothing to do: the owner's halt is seen."""

    def drop(self) -> None:
        """Let go of the log: this destination is too far behind. From the owner's thread."""
        self.pinned = None
        self.needs_snapshot = True
        self.dropped.set()
        self.show("needs-snapshot")
        self.config.report(f"{self.peer.url} holds the log no longer: it will need a snapshot")

    def overrun_by(self, tail: int) -> bool:
        """It finds that out by itself, in `shipping`."""
        return False

    def show(self, state: str) -> None:
        self.log.update_slot(self.slot, state=state)

    def _session(self) -> None:
        if not self.needs_snapshot and self.hopeless is None:
            self.show("connecting")
        self.dropped.clear()
        place = open_place(self.peer)
        place.sweep()
        hello = self.owner.hello()
        if self.peer.required and self.acked is None and not self.needs_snapshot:
            self.pinned = self.log.tail()
            self.owner.repin()
        arrival = arrive(place, hello, self.log)
        self.hopeless = self._reported = None
        self.connected, self.last_moved = True, time.monotonic()
        session = Shipping(self, place, hello, arrival)
        upkeep = Upkeep(self.peer, place, session, self.config.report)
        upkeep.start()
        try:
            session.run()
        finally:
            upkeep.end()
            session.give_up()

    def _failed(self, error: SustainError) -> float:
        """Say what went wrong, once; the least time to wait before the next try."""
        if self.owner.halt.is_set():
            return 0.0
        self.last_error = error
        at_least_s = 0.0
        if isinstance(error, NewerEpoch):
            self.show("refused")
            self.owner.fenced(error.epoch, str(error))
        elif isinstance(error, PeerRefused | ArchiveCorrupt):
            self.hopeless = error
            self.show("refused")
            at_least_s = _SLOW_RETRY_S
        if str(error) != self._reported:
            self._reported = str(error)
            self.config.report(str(error) + (f" ({error.hint})" if error.hint else ""))
        return at_least_s
