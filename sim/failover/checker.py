"""What must hold in every simulated run. Sees everything, unlike the hosts.

- At most one host accepts commits at any instant, by what the engine would decide from deadline and fence.
- A lease is taken only when its holder's deadline has passed on the holder's clock, or when it was given back.
- The lease's epoch never falls.
- Every promotion is in a newer epoch than all before, of a store that is whole.
- A commit that a standby acknowledged before its primary's deadline is in every later primary's store, unless each
  standby that held it was down, stopped or cut off around the takeover.
- When a primary left in good order, its successor has all that it had committed.
- A supervisor that runs ends its command before the deadline.
- What was finished is not started again.
- No host sheds or stops anything for an outage that it did not have: not on a flap, not because its source is lost.
- When a battery that is as good as its word is empty, another host holds all that was committed, unless something else
  went wrong at that time.
- A host says that its power may be cut only when all that it had committed in its epoch is elsewhere, or when it said
  that this could not be done.
- A command does not run on for long on a battery that is called low.
- When faults have ended, there is one primary that commits, and the others follow it (or all have ended, if the work
  is finished).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.failover.power import POLL_S
from sustain.failover.lease.record import LeaseRecord, LeaseState

if TYPE_CHECKING:
    from sim.failover.host import Host
    from sim.failover.world import World

ELECTORATE_S = 2.0  # a standby counts as present when nothing happened to it for so long before the takeover
OUTLIVES_S = 0.05
LOW_S = 2 * POLL_S + 0.3 + 0.8 + 0.3  # to see it twice, to shed, to stop, and to be late


class Violation(AssertionError):
    """Something happened that must not."""


class Checker:
    """Told of everything; raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._epochs: list[int] = [1]
        self._acks: dict[int, set[str]] = {}  # commit -> standbys that acknowledged it in time
        self._released: tuple[int, list[int]] | None = (
            None  # (epoch, log) of a primary that left in good order
        )
        self._finished = False
        self._lease_epoch = 0
        self._deadlines: dict[int, tuple[Host, int]] = {}
        self.promotions = 0
        self.kept = 0

    def accepting(self) -> None:
        """After every event."""
        epoch = self._world.lease_store.record.epoch
        if epoch < self._lease_epoch:
            raise Violation(f"the lease goes back from epoch {self._lease_epoch} to {epoch}")
        self._lease_epoch = epoch
        hosts = [host for host in self._world.hosts if host.accepts()]
        if len(hosts) > 1:
            raise Violation(f"{' and '.join(host.name for host in hosts)} accept commits at the same time")
        for host in self._world.hosts:
            late_s = host.command_outlives_s()
            if late_s > OUTLIVES_S:
                raise Violation(f"{host.name}'s command runs {late_s:.2f} s after its deadline")
            low = host.feed is not None and host.command.running and host.feed.low_for_s() > LOW_S
            if low and host.supervised and not host.paused and self._quiet(host, LOW_S):
                raise Violation(f"{host.name}'s command runs on a battery that is called low")

    def _quiet(self, host: Host, since_s: float) -> bool:
        """Whether nothing but outages has happened to it for so long."""
        return self._world.now_s - host.disturbed_s > since_s

    def acknowledged(self, commits: list[int], by: str) -> None:
        for commit in commits:
            self._acks.setdefault(commit, set()).add(by)

    def promoted(self, host: Host, epoch: int) -> None:
        self.promotions += 1
        store = host.store
        assert store is not None
        if epoch <= self._epochs[-1]:
            raise Violation(f"{host.name} opens epoch {epoch} after epoch {self._epochs[-1]}")
        self._epochs.append(epoch)
        if not store.complete:
            raise Violation(f"{host.name} opens epoch {epoch} on a store that is not whole")
        held = set(store.log)
        if self._released is not None:
            missing = [commit for commit in self._released[1] if commit not in held]
            if missing:
                raise Violation(
                    f"{host.name} lacks {len(missing)} commits of epoch {self._released[0]}, whose primary left in "
                    f"good order"
                )
            self._released = None
        for commit, holders in list(self._acks.items()):
            if commit in held:
                continue
            present = [name for name in holders if name == host.name or self._present(name, commit)]
            if present:
                raise Violation(
                    f"{host.name} opens epoch {epoch} without commit {commit}, which {present[0]} acknowledged"
                )
            del self._acks[commit]  # every host that had it is away: that is what more copies are for

    def _present(self, name: str, commit: int) -> bool:
        other = self._world.host(name)
        store = other.store
        quiet_s = self._world.now_s - other.disturbed_s
        if other.feed is not None and self._world.now_s - other.feed.troubled_s < ELECTORATE_S:
            return False
        if other.feed is not None and not other.feed.mains:
            return False  # on battery it takes nothing over
        return (
            quiet_s > ELECTORATE_S
            and other.standing_by
            and store is not None
            and store.complete
            and commit in store.log
        )

    def released(self, host: Host, state: LeaseState) -> None:
        if host.store is not None and host.store.epochs[-1] == host.granted_epoch:
            self._released = (host.granted_epoch, list(host.store.log))
        if state is LeaseState.DONE:
            self._finished = True

    def granted(self, host: Host, epoch: int, deadline_ns: int) -> None:
        """A lease was taken or renewed, and its holder knows it."""
        self._deadlines[epoch] = (host, deadline_ns)

    def acquired(self, host: Host, previous: LeaseRecord) -> None:
        if not previous.state.owned:
            return
        self._released = None
        holder, deadline_ns = self._deadlines.get(previous.epoch, (host, 0))
        left_s = (deadline_ns - holder.clock.now_ns()) / 1e9
        if left_s > 0:
            raise Violation(
                f"{host.name} takes the lease of {holder.name}, which has it for {left_s:.3f} s more"
            )

    def started(self, host: Host) -> None:
        if self._finished:
            raise Violation(f"{host.name} starts work that was finished")

    def outage_acted_on(self, host: Host, what: str) -> None:
        feed = host.feed
        assert feed is not None
        if not feed.deserves_an_outage() and self._quiet(host, 1.5):
            raise Violation(f"{host.name} {what} for an outage that it does not have")

    def ready(self, host: Host) -> None:
        outage, store = host.state.outage, host.store
        if outage is None or outage.outcome != "saved" or store is None or store.epochs[-1] != outage.epoch:
            return
        others = [each for each in self._world.hosts if each is not host]
        if all(self._quiet(each, ELECTORATE_S) for each in others) and not self._elsewhere(host):
            raise Violation(f"{host.name} lets its power be cut with commits that nobody else holds")

    def _is_gone(self) -> bool:
        """Whether what the last primary noted was only in the memory of hosts that lost their power: then nobody
        takes over by himself, and should not."""
        record, stores = self._world.lease_store.record, [host.store for host in self._world.hosts]
        whole = [store for store in stores if store is not None and store.complete]
        if not record.state.left or record.position is None:
            return self._world.volatile and not whole
        noted = (record.position_epoch, record.position)
        return self._world.volatile and all((store.epochs[-1], len(store.log)) < noted for store in whole)

    def _elsewhere(self, host: Host) -> bool:
        assert host.store is not None
        held = set(host.store.log)
        others = (each.store for each in self._world.hosts if each is not host)
        return any(store is not None and store.complete and held <= set(store.log) for store in others)

    def battery_died(self, host: Host, promised_since_s: float | None) -> None:
        """Just before everything of `host` is lost."""
        store, now_s = host.store, self._world.now_s
        if promised_since_s is None or store is None or store.epochs[-1] != host.granted_epoch:
            return
        since_s = now_s - promised_since_s + 1.0
        for each in self._world.hosts:
            feed = each.feed
            assert feed is not None
            if not self._quiet(each, since_s):
                return
            if each is not host and not (feed.mains and now_s - feed.troubled_s > since_s):
                return
        self.kept += 1
        if not self._elsewhere(host):
            raise Violation(f"{host.name}'s battery lasted as promised, and commits are missing")

    def at_the_end(self) -> None:
        world = self._world
        if self._finished:
            left = [host.name for host in world.hosts if host.supervised]
            if left:
                raise Violation(f"the work is finished, but {', '.join(left)} still runs")
            return
        if self._is_gone():
            return
        writers = [host for host in world.hosts if host.accepts()]
        if not writers:
            raise Violation("no host accepts commits although all faults have ended")
        primary = writers[0]
        if world.now_s - primary.last_commit_s > 1.0:
            raise Violation(f"{primary.name} is the primary but commits nothing")
        assert primary.store is not None
        for host in world.hosts:
            if host is primary:
                continue
            lag = len(primary.store.log) - (len(host.store.log) if host.store else 0)
            if host.store is None or not host.store.complete or lag > 100:
                raise Violation(f"{host.name} does not follow {primary.name}: {lag} commits behind")
