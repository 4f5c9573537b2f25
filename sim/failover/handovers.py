"""The operator of a simulated workload, who wants it elsewhere now and then, and what must hold of that.

- A command is told to stop for a handover only when one was asked for in this very epoch, once for each request, and
  only when the successor lacks little.
- The lease is given only to a successor that holds everything.
- For the time that it is reserved, nobody else takes it.
- When nothing else goes wrong, the successor has opened its epoch soon after.

Requests are never withdrawn, so that old ones lie about.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from sim.failover.checker import ELECTORATE_S, Violation
from sustain.errors import LeaseError
from sustain.failover.lease.record import LeaseRecord
from sustain.failover.lease.request import HandoverRequest, RequestState, parse_request
from sustain.testing import MemoryLease

if TYPE_CHECKING:
    from sim.failover.host import Host
    from sim.failover.world import World

LITTLE = 4  # commits that a successor may lack when the command is told to stop
SLACK = 3  # committed since that was seen
RATES = 0.04  # how far apart clocks may be
SOON_S = 0.6


class Handovers:
    """Told by hosts what they do; raises Violation."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self.rng = random.Random(f"handover {seed}")  # apart, so that runs without them stay what they were
        self._wanted = self.rng.random() < 0.5 or world.variant.handovers
        self._every_s = self.rng.choice((0.5, 1.5, 4.0))
        self._asked = 0
        self._stopped: set[str] = set()
        self._released_s = 0.0
        self.done = 0

    def begin(self) -> None:
        if self._wanted:
            self._world.after(1.5 + self.rng.expovariate(1 / self._every_s), self._ask)

    def _ask(self) -> None:
        world, rng = self._world, self.rng
        world.after(rng.expovariate(1 / self._every_s), self._ask)
        if world.calm:
            return
        lease = MemoryLease(world.lease_store, "operator", world.hosts[0].clock, 1.0)
        record, before = world.lease_store.record, lease.request()
        if not record.state.owned:
            return
        if before is not None and before.epoch == record.epoch and not before.state.over:
            return
        to = rng.choice(["", *(each.name for each in world.hosts)])
        self._asked += 1
        request = HandoverRequest(
            f"{self._asked}", record.epoch, record.holder, to, rng.choice((0.3, 1.0, 3.0))
        )
        try:
            lease.ask(request, before)
        except LeaseError:
            return
        world.tell(
            world.host(record.holder),
            f"is asked to hand over to {to or 'anybody'}, within {request.limit_s} s",
        )

    # what hosts do

    def stops(self, host: Host, to: str) -> None:
        """It tells its command to stop, for a handover."""
        request = self._request()
        if request is None or request.epoch != host.command_epoch or request.holder != host.name:
            raise Violation(
                f"{host.name} stops its command for a handover that nobody asked for in epoch {host.command_epoch}"
            )
        if request.id in self._stopped or request.state is not RequestState.ACCEPTED:
            raise Violation(f"{host.name} stops its command for the request {request.id} ({request.state})")
        self._stopped.add(request.id)
        lacks = self._lacks(host, to)
        if self._quiet(to) and (lacks is None or lacks > LITTLE + SLACK):
            raise Violation(f"{host.name} stops its command although {to} lacks {lacks} commits")

    def released(self, host: Host, successor: str) -> None:
        """It gave the lease back, and named who may take it."""
        world = self._world
        self._released_s = world.now_s
        if not successor:
            return
        lacks = self._lacks(host, successor)
        if self._quiet(successor) and lacks != 0:
            raise Violation(f"{host.name} gives the lease to {successor}, which lacks {lacks} commits")
        since_s, epoch = world.now_s, host.granted_epoch
        world.after(SOON_S, lambda: self._look_after(successor, epoch, since_s))

    def acquired(self, host: Host, previous: LeaseRecord) -> None:
        waited_s = self._world.now_s - self._released_s
        if not previous.state.left or previous.successor in ("", host.name):
            return
        if waited_s < host.policy.reserve_ns / 1e9 * (1 - RATES):
            raise Violation(
                f"{host.name} takes the lease {waited_s:.3f} s after it was given to {previous.successor}"
            )

    def _look_after(self, successor: str, epoch: int, since_s: float) -> None:
        world, host = self._world, self._world.host(successor)
        taken = host.store is not None and host.store.epochs[-1] > epoch
        self.done += taken
        disturbed = world.powered or world.calm or world.faults.lost_answers or not self._quiet(successor)
        disturbed = disturbed or host.disturbed_s > since_s - ELECTORATE_S or host.store is None
        if not taken and not disturbed and host.supervised and not host.paused and not host.cut_off:
            raise Violation(f"{successor} was given the lease {SOON_S} s ago, and does nothing")

    def _request(self) -> HandoverRequest | None:
        stored = self._world.lease_store.request
        return None if stored is None else parse_request(stored.text)

    def _lacks(self, host: Host, other: str) -> int | None:
        mine, theirs = host.store, self._world.host(other).store
        if mine is None or theirs is None or not theirs.complete:
            return None
        return len(set(mine.log) - set(theirs.log))

    def _quiet(self, name: str) -> bool:
        host, world = self._world.host(name), self._world
        if host.feed is not None and world.now_s - host.feed.troubled_s < ELECTORATE_S:
            return False
        return world.now_s - host.disturbed_s > ELECTORATE_S
