"""A store as its supervisor handles it: control words, epochs, the verbs that ship and receive it."""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sustain._native import UNKNOWN, Control, Engine, Replica
from sustain.clock import Clock
from sustain.errors import ReplicationError, StoreFenced, StoreIOError, StoreUntrusted, SustainError
from sustain.failover.custodian.base import Custodian, Opened, budget_words
from sustain.failover.lease.record import LeaseGrant
from sustain.failover.observe import StoreWatch
from sustain.failover.types import DestinationView, PowerView, StoreView
from sustain.powerfail.budget import BudgetPolicy
from sustain.powerfail.decide import Power
from sustain.replication import fetch
from sustain.replication.accounts import Book
from sustain.replication.credentials import CredentialFiles
from sustain.replication.orphan import commit_time, unresolved
from sustain.units import to_ns

_CLOSED_NS = 1  # a deadline in the past: no commit in this epoch any more
_POWER_WORD = {
    Power.UNKNOWN: 0,
    Power.ON_AC: 1,
    Power.FLAPPING: 2,
    Power.ON_BATTERY: 3,
    Power.LOW: 4,
    Power.FORCED_SHUTDOWN: 5,
}
_POWER_EVERY_NS = to_ns(0.2)


@dataclass(frozen=True, slots=True)
class NewStore:
    """How the workload's first store is made. Sizes in bytes."""

    size: int
    log_size: int
    durability: str


class StoreCustodian(Custodian):
    """The store at `path`."""

    has_door = True
    follows_command = False

    def __init__(
        self,
        path: str,
        name: str,
        clock: Clock,
        *,
        new: NewStore,
        listen: str | None,
        peers: tuple[str, ...],
        files: CredentialFiles,
        budget: BudgetPolicy | None = None,
        sources: tuple[str, ...] = (),
        fetch_limit_s: float = 30.0,
    ) -> None:
        self.path = path
        self._name = name
        self._clock = clock
        self._new = new
        self._listen = listen
        self._peers = peers
        self._files = files
        self._budget = budget
        self._sources = sources  # peers that a copy may be fetched from
        self._fetch_limit_s = fetch_limit_s
        self._watch = StoreWatch(path)
        self._deadline = (0, 0)  # as written into the store: (epoch, deadline)
        self._power: tuple[int, int | None] | None = None
        self._power_ns = 0

    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        return self._watch.look()

    def set_deadline(self, grant: LeaseGrant) -> None:
        if self._deadline[0] == grant.epoch and self._deadline[1] >= grant.deadline_ns:
            return  # known already, or closed for good
        control = self._watch.control()
        if control is not None:
            control.set_lease(grant.epoch, grant.deadline_ns)
            self._deadline = (grant.epoch, grant.deadline_ns)

    def close_epoch(self, epoch: int) -> None:
        control = self._watch.control()
        if control is not None:
            control.set_lease(epoch, _CLOSED_NS)
            self._deadline = (epoch, 1 << 63)

    def last_commit_ns(self) -> int | None:
        words = self._watch.words()
        if words is None or not words["commit_time_ns"]:
            return None
        return self._clock.boottime_ns() - max(0, self._clock.realtime_ns() - words["commit_time_ns"])

    def set_power(self, power: PowerView | None) -> None:
        try:
            control = self._watch.control()
        except SustainError:
            control = None  # half made; what is wrong with it, `look` says
        if control is None:
            self._power = None
            return
        now_ns = self._clock.boottime_ns()
        if power is None:
            if self._power is None:
                control.clear_power()  # what an earlier supervisor left
                self._power = (0, None)
            return
        words = control.words()
        if words is not None and words["power_at_ns"] == 0:
            self._power = None  # another file, or its words were made anew
        usable_ns = None if power.usable_s is None else to_ns(power.usable_s)
        said = (_POWER_WORD[power.power], usable_ns)
        same = self._power is not None and self._power[0] == said[0]
        if same and said == self._power:
            return
        fell = same and self._power is not None and (usable_ns or 0) < (self._power[1] or 0)
        if same and not fell and now_ns - self._power_ns < _POWER_EVERY_NS:
            return
        control.set_power(*said)
        self._power, self._power_ns = said, now_ns

    def create(self) -> None:
        Engine.format(self.path, self._new.size, self._new.log_size, self._new.durability)

    def set_aside(self) -> str:
        aside = f"{self.path}.set-aside-{self._clock.realtime_ns()}"
        self._watch.close()
        try:
            os.rename(self.path, aside)
            if os.path.exists(f"{self.path}.arriving"):
                os.rename(f"{self.path}.arriving", f"{aside}.arriving")
        except OSError as error:
            raise StoreIOError(
                f"{self.path}: cannot be renamed: {error.strerror}", hint="move it away", errno=error.errno
            ) from error
        return aside

    def promote(self, epoch: int, still_ours: Callable[[], bool]) -> Opened:
        """The receiver has ended; nobody else may have the store."""
        heard_committed, heard_ns, heard_time_ns = self._heard()
        own = self._written_here()
        replica = Replica(self.path, arriving=True)  # then with its fetcher running
        try:
            held, commits = replica.end, replica.end_seq
            history = replica.superblock()["history"]
            log_epoch = history[-1][0] if history else None
            last_ns = commit_time(replica.read_log, held, replica.words()["tail"]) or replica.commit_time_ns
            orphan = unresolved(self.path, replica.superblock()["replica_uuid"], held)
            if orphan is not None:  # recovery may have shown an end that was not known before
                raise StoreUntrusted(
                    f"{self.path}: it holds commits that a newer primary does not know ({orphan})",
                    hint="start the host that was primary last, or restore from it; the file named is the report",
                )
            # Recovery may have taken long, or this host was stopped meanwhile: an epoch that others have gone
            # past would do no harm, but would only be an orphan.
            if not still_ours():
                raise StoreFenced(f"{self.path}: the lease ran out before epoch {epoch} could begin")
            start = replica.promote(epoch)
        finally:
            replica.close()
        return Opened(
            held,
            commits,
            start,
            heard_committed,
            heard_ns,
            log_epoch,
            last_ns or None,
            heard_time_ns,
            own,
        )

    def _written_here(self) -> bool:
        """Whether an application on this host wrote the store last; before anything else has it."""
        control = Control(self.path)
        try:
            block = control.superblock()
        finally:
            control.close()
        return not block["received"] or Book(self.path).wrote() == block["replica_uuid"]

    def fetch(self, epoch: int, store_uuid: str, at_least: int, still_ours: Callable[[], bool]) -> Opened:
        credentials = self._files.load()
        why: SustainError | None = None
        for url in self._sources:
            try:
                begun = fetch.begin(
                    url,
                    self.path,
                    credentials,
                    epoch=epoch,
                    new_epoch=False,
                    at_least=at_least,
                    name=self._name,
                    durability=self._new.durability,
                    limit_s=self._fetch_limit_s,
                )
            except ReplicationError as error:
                why = error
                continue
            control = Control(self.path)
            try:
                found = str(uuid.UUID(bytes=control.superblock()["store_uuid"]))
            finally:
                control.close()
            if found != store_uuid:
                raise StoreUntrusted(
                    f"{url} has the store {found}, this workload's is {store_uuid}",
                    hint=f"name another --fetch-from, and remove {self.path}, which holds nothing yet",
                )
            if not still_ours():
                raise StoreFenced(f"{self.path}: the lease ran out before epoch {epoch} could begin")
            start = fetch.promote(self.path, epoch)
            committed = None if begun.behind_bytes is None else begun.base + begun.behind_bytes
            return Opened(begun.base, None, start, committed, None)
        assert why is not None
        raise why

    def fetcher(self) -> list[str]:
        words = ["restore", self._sources[0], self.path, "--on-demand"]
        words += [word for url in self._sources[1:] for word in ("--also", url)]
        words += ["--limit", f"{self._fetch_limit_s}s"]
        return [*words, *self._files.words()]

    def _heard(self) -> tuple[int | None, int | None, int | None]:
        """(primary's position, when it was heard, time of that commit), as the receiver left it."""
        watch = StoreWatch(self.path)
        try:
            words = watch.words()
        finally:
            watch.close()
        if words is None or words["primary_heard_ns"] == 0 or words["primary_committed"] == UNKNOWN:
            return None, None, None
        time_ns = words["primary_commit_time_ns"] or None
        return words["primary_committed"], words["primary_heard_ns"], time_ns

    def environment(self) -> dict[str, str]:
        return {"SUSTAIN_STORE": self.path}

    def shipper(self, epoch: int, command_pid: int | None) -> list[str]:
        words = ["ship", *self._common(), *(word for peer in self._peers for word in ("--peer", peer))]
        words += budget_words(self._budget)
        return words if self._budget is None else [*words, "--delay-limit", f"{self._budget.delay_limit_s}s"]

    def receiver(self) -> list[str]:
        assert self._listen is not None
        return ["receive", *self._common(), "--listen", self._listen]

    def _common(self) -> list[str]:
        words = ["--store", self.path, "--name", self._name]
        return [*words, *self._files.words()]

    def close(self) -> None:
        self._watch.close()
