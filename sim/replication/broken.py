"""Variants that are wrong on purpose, to see that the checker catches them.

Each replaces a few names of the product for one run: `changes` gives (owner, name, what is there instead). What a
variant breaks is often held by something else as well (the engine refuses log that does not continue what it has);
then it is the end of the run that catches it, when a standby never arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sim.replication.disk import SimLogTail
from sustain._native import UNKNOWN
from sustain.failover import supervise
from sustain.failover.decide import decide
from sustain.failover.door import Door
from sustain.failover.lease.record import LeaseGrant, LeaseRecord
from sustain.failover.lease.worker import LeaseWorker
from sustain.failover.types import Observation, Plan, Policy, Role, State
from sustain.replication import outlet
from sustain.replication.intake import Intake
from sustain.replication.outlet import Outlet
from sustain.replication.session import Resume
from sustain.replication.ship import Shipper
from sustain.replication.snapshot import send_snapshot
from sustain.replication.standby import Standby
from sustain.replication.wire import Hello, Kind
from sustain.testing import MemoryLease

Changes = list[tuple[Any, str, Any]]
_APART = ("cut-link", "one-way", "power-cut")


@dataclass(frozen=True)
class Variant:
    """How a run differs from what is right."""

    name: str
    why: str = ""
    changes: Callable[[], Changes] = list
    engine_fences: bool = True
    busy: bool = False  # commits come fast, links are slow, faults come for long
    hosts: int | None = None  # only runs in which it can show, to find it soon
    kinds: tuple[str, ...] = ()  # of faults; some or all, when empty
    within: int = 50  # seeds in which it must be caught


CORRECT = Variant("correct")


def _lets_in_older() -> Changes:
    whole = Standby.objection

    def objection(self: Standby, hello: Hello) -> tuple[str, str, str] | None:
        found = whole(self, hello)
        return None if found is not None and found[0] == "fenced" else found

    def accept_epoch(self: Standby, epoch: int) -> None:
        self.known_epoch = epoch

    # With a door at each primary a former one would seldom get as far as to a standby.
    no_door = (Door, "open", lambda self, epoch: None)
    return [(Standby, "objection", objection), (Standby, "accept_epoch", accept_epoch), no_door]


def _acknowledges_early() -> Changes:
    whole = Intake._apply

    def apply(self: Intake, length: int) -> None:
        self.channel.send(Kind.ACK, self._received, self.progress.received)
        whole(self, length)

    return [(Intake, "_apply", apply)]


def _counts_incomplete() -> Changes:
    whole = Outlet._acknowledged

    def acknowledged(self: Outlet, lsn: int, received: int) -> None:
        self.in_snapshot = False
        whole(self, lsn, received)

    return [(Outlet, "_acknowledged", acknowledged)]


def _pins_nothing() -> Changes:
    return [(Shipper, "repin", lambda self: self._log.set_floor(UNKNOWN))]


def _pins_what_was_sent() -> Changes:
    whole = Outlet.ship_log

    def ship_log(self: Outlet, lsn: int, until: int) -> int:
        sent = whole(self, lsn, until)
        if not self.in_snapshot and self._destination.pinned is not None:
            self._destination.pinned = sent
            self._owner.repin()
        return sent

    return [(Outlet, "ship_log", ship_log)]


class _Early:
    """A log tail that knows of no commit after its beginning."""

    def __init__(self, log: SimLogTail) -> None:
        self._log = log
        self._end = log.committed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def committed(self) -> int:
        return int(self._end)


def _no_tail() -> Changes:
    def send(link: Any, log: Any, *args: Any) -> int:
        return send_snapshot(link, _Early(log), *args)  # type: ignore[arg-type]

    return [(outlet, "send_snapshot", send)]


def _old_pages() -> Changes:
    whole = SimLogTail.image_view

    def image_view(self: SimLogTail, first_page: int, pages: int) -> memoryview:
        held: dict[tuple[int, int], bytes] = self.__dict__.setdefault("_held", {})
        with whole(self, first_page, pages) as view:
            return memoryview(held.setdefault((first_page, pages), bytes(view)))

    return [(SimLogTail, "image_view", image_view)]


def _leaves_a_gap() -> Changes:
    whole = Outlet.decide

    def course(self: Outlet, hello: Any, welcome: Any) -> Any:
        found = whole(self, hello, welcome)
        if isinstance(found, Resume):
            self.channel.send(Kind.RESUME, found.lsn, found.lsn, 0)
            self._stream(self._log.committed())
        return found

    return [(Outlet, "decide", course)]


def _keeps_no_orphans() -> Changes:
    return [(Standby, "_keep_orphan", lambda self, begin, hello: None)]


def _blind_swap() -> Changes:
    def swap(self: MemoryLease, old: LeaseRecord, new: LeaseRecord) -> bool:
        self._access("write")
        self._store.record = replace(new, version=self._store.record.version + 1)
        return True

    return [(MemoryLease, "_swap", swap)]


def _late_renewal() -> Changes:
    """As it once was: a lease that was given up comes back, and its command seems to have finished."""

    def keep(self: LeaseWorker, grant: LeaseGrant, renewed: LeaseGrant | None) -> None:
        if renewed is not None:
            self._note(grant=renewed, error="")

    def forgetful(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
        if observation.grant is not None and state.role is not Role.FENCED:
            observation = replace(observation, command=replace(observation.command, asked_ns=0))
        return decide(observation, state, policy, now_ns)

    return [(LeaseWorker, "_keep", keep), (supervise, "decide", forgetful)]


def _no_election() -> Changes:
    def alone(observation: Observation, state: State, policy: Policy, now_ns: int) -> Plan:
        return decide(replace(observation, candidates=()), state, policy, now_ns)

    return [(supervise, "decide", alone)]


VARIANTS = (
    Variant(
        "older-epoch",
        "a standby lets in a primary of an older epoch",
        _lets_in_older,
        busy=True,
        hosts=3,
        kinds=("orphan",),
    ),
    Variant("acks-early", "acknowledges what has arrived and is not flushed", _acknowledges_early),
    Variant("counts-incomplete", "takes half a snapshot for a copy", _counts_incomplete),
    Variant("trims-early", "the log is kept for nobody", _pins_nothing),
    Variant("pins-sent", "the log is kept for what was not sent only", _pins_what_was_sent, busy=True),
    Variant("no-tail", "a snapshot without the log of its time", _no_tail, busy=True),
    Variant("old-pages", "a snapshot of pages that are older than its log", _old_pages),
    Variant("gap", "goes on behind what the replica lacks", _leaves_a_gap),
    Variant("no-orphans", "a former primary's tail is not kept", _keeps_no_orphans),
    Variant(
        "past-deadline",
        "the engine commits past the lease's deadline",
        engine_fences=False,
        busy=True,
        kinds=("orphan",),
    ),
    Variant(
        "late-renewal",
        "a lease that was given up is held again",
        _late_renewal,
        kinds=("lease-down",),
        within=400,
    ),
    Variant("blind-swap", "the lease is written without comparing", _blind_swap),
    Variant(
        "no-election",
        "does not look at what other standbys hold",
        _no_election,
        busy=True,
        hosts=3,
        kinds=_APART,
    ),
)
