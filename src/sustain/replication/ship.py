"""The shipper: tails the log of a store that another process writes, and brings it to every destination.

Used by `sustain ship` and, as a child process, by the supervisor:

    reason = Shipper(ShipperConfig(store="app.sus", peers=(parse_peer("tcp://127.0.0.1:7411"),))).run(stop)

A process of its own, so that the application's death does not stop it and its interpreter lock is not shared
with the application. It reads the log through the shared mapping and tells the application what it needs to
know (who holds what, how far the log is pinned, that a newer epoch exists) through the store's control words.

While somebody watches the power (`Control.set_power`), it also says how far commits may go, by what each
destination holds and how fast it has been seen to take the log: at every acknowledgement, and a few times a
second, because a link that says nothing has become slower. The arithmetic is in `powerfail.budget`.

When it ends, that stays, and the floor of the log stays where required destinations need it; snapshots and
others pin nothing any more, also when it is killed. What is known of destinations that it is not given any more goes
when it begins.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sustain._native import LogTail, boottime_ns
from sustain.errors import AuthenticationFailed, ConfigError, PeerUnreachable, StoreFenced, SustainError
from sustain.powerfail.budget import (
    ALONE,
    NO_LIMITS,
    POWER_STATES,
    BudgetPolicy,
    Limits,
    Reach,
    budget_bytes,
    limits,
    usable_now_s,
)
from sustain.powerfail.decide import Power
from sustain.replication import wire
from sustain.replication.accounts import Book
from sustain.replication.archive.destination import ArchiveDestination
from sustain.replication.credentials import HINT
from sustain.replication.destination import Destination
from sustain.replication.outlet import LinkConfig
from sustain.replication.pins import UNKNOWN, Pin, decide_pins
from sustain.replication.urls import DESTINATIONS_LIMIT, ArchiveUrl, Peer, is_loopback
from sustain.replication.wire import Hello

_TICK_S = 0.1


class End(StrEnum):
    """Why a shipper ended."""

    STOPPED = "stopped"  # as asked
    DRAINED = "drained"  # as asked, and everything committed had arrived
    UNDELIVERED = "undelivered"  # the time to drain ran out, or a destination will not take it
    FENCED = "fenced"  # a newer epoch exists
    FAILED = "failed"  # the store cannot be shipped


@dataclass(frozen=True)
class ExitReason:
    end: End
    error: SustainError | None = None
    target: int | None = None  # the position that had to arrive
    acked: dict[str, int | None] = field(default_factory=dict)  # by URL


@dataclass(frozen=True)
class ShipperConfig:
    """What to ship, and how. Sizes in bytes, times in seconds."""

    store: str
    peers: Sequence[Peer | ArchiveUrl]
    link: LinkConfig = field(default_factory=LinkConfig)
    pin_limit: float = 0.75  # share of the log that a destination which does not move may hold
    stall_s: float = 10.0  # without progress for this long is "does not move"
    budget: BudgetPolicy = field(
        default_factory=BudgetPolicy
    )  # thresholds and delay; the rest is the supervisor's
    until_drained: bool = False  # end when everything committed at the beginning has arrived
    drain_timeout_s: float | None = (
        None  # until_drained: give up; otherwise: how long to drain once asked to stop
    )


class Shipper:
    """One run of a shipper. The public face is `run`; the rest is for its destinations."""

    def __init__(self, config: ShipperConfig) -> None:
        if not config.peers:
            raise ConfigError(
                "nowhere to ship to", hint="name at least one --to tcp://HOST:PORT or file:///DIR"
            )
        if len(config.peers) > DESTINATIONS_LIMIT:
            raise ConfigError(
                f"{len(config.peers)} destinations, and a store has {DESTINATIONS_LIMIT} at most",
                hint="leave some out; those that are not named any more take no room",
            )
        urls = [peer.url for peer in config.peers]
        for url in urls:
            if urls.count(url) > 1:
                raise ConfigError(f"{url} is named twice", hint="name each destination once")
        for peer in config.peers:
            if isinstance(peer, ArchiveUrl):
                continue
            if config.link.credentials.none and peer.host[0].isdigit() and not is_loopback(peer.host):
                raise AuthenticationFailed(
                    f"{peer.url}: without a key or certificates only this host may be shipped to",
                    hint=HINT,
                )
        self.store = config.store
        self.halt = threading.Event()
        self.book = Book(config.store, config.link.report)
        self._config = config
        self._destinations: list[Destination | ArchiveDestination] = []
        self._stir = threading.Event()
        self._pin_lock = threading.Lock()
        self.power_watched = self.power_fails = self.commits_held = False
        self._limits_lock = threading.Lock()
        self._limits: Limits | None = None  # None: what lies in the words is another shipper's
        self._floors: tuple[int, int] | None = None  # of the log: all that is pinned, and by required ones
        self._end: tuple[End, SustainError] | None = None
        self._target: int | None = None

    def run(self, stop: threading.Event) -> ExitReason:
        """Ship until `stop` is set, or there is a reason to end. Raises StoreError when the store cannot be
        opened."""
        self._log = LogTail(self._config.store)
        try:
            return self._run(stop)
        finally:
            self._log.close()

    def status(self) -> list[dict[str, Any]]:
        """Each destination as it is now; positions None when unknown."""
        return [
            {
                "url": each.peer.url,
                "required": each.peer.required,
                "connected": each.connected,
                "acked": each.acked,
                "needs_snapshot": each.needs_snapshot,
                "paused_s": each.paused_s,
                "error": None if each.last_error is None or each.connected else str(each.last_error),
            }
            for each in self._destinations
        ]

    # what destinations call

    @property
    def draining(self) -> bool:
        """Whether this run ends when a position has arrived."""
        return self._target is not None

    def hello(self) -> Hello:
        block = self._log.superblock()
        return Hello(
            protocol=wire.PROTOCOL,
            store=block["store_uuid"],
            replica=block["replica_uuid"],
            name=self._config.link.name,
            epoch=block["epoch"],
            history=[(epoch, start) for epoch, start in block["history"]],
            log_size=block["log_size"],
            image_size=block["image_size"],
            durability=block["durability"],
            tail=self._log.tail(),
            committed=self._log.committed(),
            accounts=True,
        )

    def repin(self) -> None:
        with self._pin_lock:
            pins = [
                (each.pinned, each.peer.required) for each in self._destinations if each.pinned is not None
            ]
            # What only a snapshot needs goes with this process, also when it is killed.
            floor = min((lsn for lsn, _ in pins), default=UNKNOWN)
            required = min((lsn for lsn, needed in pins if needed), default=UNKNOWN)
            if (floor, required) != self._floors:
                self._floors = (floor, required)
                self._log.set_floor(floor, required)

    def moved(self) -> None:
        self._bound()
        if self._target is not None:
            self._stir.set()

    def _bound(self, again: bool = False) -> None:
        """Say how far commits may go; `again`: also if that is what was said last, should others have changed it
        (`Control.set_power` does)."""
        with self._limits_lock:
            seconds = self._usable_s()
            if seconds is None:
                found = NO_LIMITS
            else:
                found = limits(
                    seconds, [self._reach(each) for each in self._destinations], self._config.budget
                )
            self.commits_held = found.limit_lsn != 0 and self._log.committed() > found.delay_lsn
            if found == ALONE and self._limits != ALONE:
                self._config.link.report(
                    "no destination has a whole copy: no commit is held back for the battery"
                )
            if found != self._limits or (again and found != NO_LIMITS):
                self._limits = found
                self._log.set_limits(
                    found.budget_bytes, found.delay_lsn, found.limit_lsn, found.delay_limit_ns
                )

    def _usable_s(self) -> float | None:
        usable_ns, said_ns, state = self._log.power()
        self.power_watched = said_ns != 0
        power = POWER_STATES[state] if state < len(POWER_STATES) else Power.UNKNOWN
        self.power_fails = power.outage
        return usable_now_s(usable_ns, said_ns, power, boottime_ns())

    def _reach(self, destination: Destination | ArchiveDestination) -> Reach:
        with destination.metering as meter:
            bandwidth = meter.estimate(time.monotonic())
        return Reach(
            None if self._is_gone(destination) else destination.acked, bandwidth, destination.peer.required
        )

    def _is_gone(self, destination: Destination | ArchiveDestination) -> bool:
        """Away for so long that it must not keep the application from going on; on battery that does not count."""
        if destination.peer.required or destination.connected or self.power_fails:
            return False
        return time.monotonic() - destination.last_moved > self._config.stall_s

    def _show_bandwidths(self) -> None:
        seconds = self._usable_s()
        for each in self._destinations:
            bandwidth = self._reach(each).bandwidth
            if bandwidth is not None:
                budget = UNKNOWN if seconds is None else budget_bytes(seconds, bandwidth)
                self._log.update_slot(
                    each.slot, bandwidth_bytes_per_s=max(1, int(bandwidth)), budget_bytes=budget
                )

    def fenced(self, epoch: int, message: str) -> None:
        self._log.set_fence(epoch)
        self._finish(
            End.FENCED,
            StoreFenced(f"{self._config.store}: {message}", hint=f"epoch {epoch} is another host's"),
        )

    def fail(self, error: SustainError) -> None:
        self._finish(End.FAILED, error)

    # the main thread

    def _run(self, stop: threading.Event) -> ExitReason:
        self._log.release_others([peer.url for peer in self._config.peers])
        for peer in self._config.peers:
            slot = self._log.claim_slot(peer.url, peer.required)
            if isinstance(peer, ArchiveUrl):
                archive = ArchiveDestination(peer, slot, self._log, self._config.link, self)
                self._destinations.append(archive)
            else:
                self._destinations.append(Destination(peer, slot, self._log, self._config.link, self))
        self.repin()
        self._bound()
        try:
            for destination in self._destinations:
                destination.start()
            return self._until_end(stop)
        finally:
            self.halt.set()
            for destination in self._destinations:
                destination.close()
            for destination in self._destinations:
                destination.join()
            self.repin()

    def _until_end(self, stop: threading.Event) -> ExitReason:
        config = self._config
        if config.until_drained:
            return self._drain(stop, config.drain_timeout_s)
        while self._end is None and not stop.wait(_TICK_S):
            self._tick()
        if self._end is None and config.drain_timeout_s:
            return self._drain(threading.Event(), config.drain_timeout_s)
        return self._reason(End.STOPPED)

    def _drain(self, stop: threading.Event, timeout_s: float | None) -> ExitReason:
        """Go on until everything that is committed now has arrived, at most `timeout_s` (None: as long as it
        takes)."""
        self._target = self._log.committed()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        wanted = [each for each in self._destinations if each.peer.required] or self._destinations
        while self._end is None:
            if all(each.acked is not None and each.acked >= self._target for each in wanted):
                return self._reason(End.DRAINED)
            if stop.is_set():
                return self._reason(End.STOPPED)
            for each in wanted:
                if each.hopeless is not None:
                    return self._reason(End.UNDELIVERED, each.hopeless)
            if deadline is not None and time.monotonic() >= deadline:
                return self._reason(End.UNDELIVERED, self._undelivered(wanted, timeout_s))
            self._tick()
            self._stir.wait(_TICK_S)
            self._stir.clear()
        return self._reason(End.STOPPED)

    def _undelivered(
        self, wanted: Sequence[Destination | ArchiveDestination], timeout_s: float | None
    ) -> SustainError:
        behind = [each for each in wanted if each.acked is None or each.acked < (self._target or 0)]
        why = next(
            (str(each.last_error) for each in behind if each.last_error is not None), "it is still behind"
        )
        names = ", ".join(each.peer.url for each in behind)
        return PeerUnreachable(
            f"position {self._target} did not reach {names} within {timeout_s:g} s: {why}",
            hint="check the destination, or give a longer --drain-timeout",
        )

    def _reason(self, end: End, error: SustainError | None = None) -> ExitReason:
        if self._end is not None:
            end, error = self._end
        return ExitReason(
            end, error, self._target, {each.peer.url: each.acked for each in self._destinations}
        )

    def _finish(self, end: End, error: SustainError) -> None:
        if self._end is None:
            self._end = (end, error)
        self._stir.set()

    def _tick(self) -> None:
        self._bound(again=True)
        self._show_bandwidths()
        self._let_go()

    def _let_go(self) -> None:
        """Drop the destinations that hold too much of the log and do not move."""
        committed, now = self._log.committed(), time.monotonic()
        stall_s, limit_bytes = self._config.stall_s, self._config.pin_limit * self._log_size()
        pins = []
        for each in self._destinations:
            lsn = each.pinned
            if lsn is None or committed - lsn <= limit_bytes:
                each.crowding_since = None
            elif each.crowding_since is None:
                each.crowding_since = now
            if lsn is None:
                continue
            if each.connected and (lsn >= committed or each.verifying):
                each.last_moved = now
            moving = each.connected and now - each.last_moved < stall_s
            # One that is not required may hold others up for a while, so that its snapshot can end, and no longer.
            crowding = each.crowding_since is not None and now - each.crowding_since >= stall_s
            pins.append(Pin(each.slot, lsn, moving and (each.peer.required or not crowding)))
        verdict = decide_pins(pins, committed, self._log_size(), self._config.pin_limit)
        for each in self._destinations:
            if each.slot in verdict.dropped or each.overrun_by(self._log.tail()):
                each.drop()
        if verdict.dropped:
            self.repin()

    def _log_size(self) -> int:
        if not hasattr(self, "_log_bytes"):
            self._log_bytes = self._log.superblock()["log_size"]
        return self._log_bytes
