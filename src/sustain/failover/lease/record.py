"""The record of a lease, and what one host may conclude from it. Pure.

Used by `lease.base` (where the model is explained), by `decide` and by the simulation.
"""

from dataclasses import dataclass
from enum import StrEnum

from sustain.units import to_ns

RATE_MARGIN = 0.02
"""How far two hosts' clocks may differ in rate, with room: quartz and NTP slewing stay below 0.001."""


class LeaseState(StrEnum):
    """What its owner does with the workload. The record is the workload's owner record: changed by swap only."""

    ABSENT = "absent"  # no record was ever written here, or it has been deleted
    CLAIMED = "claimed"  # taken; the state is being put in place, the command does not run yet
    HELD = "held"  # the command runs
    SAVING = "saving"  # still held; the owner's power fails, and it brings the state away
    SAVED = "saved"  # free at once: the state is away, up to `position`
    RELEASED = "released"  # given up in good order; free at once
    DONE = "done"  # the work is finished; nobody need start it again

    @property
    def owned(self) -> bool:
        """Somebody has the lease, until it runs out."""
        return self in (LeaseState.CLAIMED, LeaseState.HELD, LeaseState.SAVING)

    @property
    def left(self) -> bool:
        """The last owner gave it back, and noted where the state ends."""
        return self in (LeaseState.SAVED, LeaseState.RELEASED, LeaseState.DONE)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What is stored. `version` counts changes and is what a swap compares."""

    version: int = 0
    epoch: int = 0
    holder: str = ""  # the host's name
    instance: str = ""  # this run of that host's supervisor
    counter: int = 0
    ttl_s: float = 0.0
    state: LeaseState = LeaseState.ABSENT
    store_uuid: str = ""  # "" until the workload's first store exists
    position: int | None = None  # where the last holder that released it left the store
    position_epoch: int = 0  # the epoch in which it did
    reason: str = ""  # of a release, for people
    successor: str = ""  # of a release: who may take it first


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A record, and from when on this host's clock it may be taken (None: not while it stays as it is)."""

    record: LeaseRecord
    takeable_at_ns: int | None  # CLOCK_BOOTTIME
    read_ns: int
    since_ns: int = 0  # since when it has been seen as it is
    before_ns: int = 0  # a look that began then had still seen something else


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The right to write, until `deadline_ns` of this host's CLOCK_BOOTTIME."""

    record: LeaseRecord
    renewed_ns: int  # just before the last successful write began
    deadline_ns: int

    @property
    def epoch(self) -> int:
        return self.record.epoch


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """How much of the history a store holds: the epoch of its last record, then its end. More is better."""

    log_epoch: int
    end: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a member says of itself. `round` is the record version for which `rank` was read after the lease ran out.

    `role` and `realtime_ns` (its wall clock) are for people, and nothing is decided by them.
    """

    name: str
    instance: str
    rank: Rank
    usable: bool
    round: int = 0
    beat: int = 0
    role: str = ""
    realtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class CandidateView:
    candidate: Candidate
    changed_ns: int  # when this host first saw this beat


class Watch:
    """How long this host has seen a record (or its absence) unchanged. Pure but for the times handed in."""

    def __init__(self, ttl_s: float, margin: float = RATE_MARGIN) -> None:
        self._ttl_s = ttl_s  # for an absent record, which names none
        self._margin = margin
        self._record: LeaseRecord | None = None
        self._since_ns = self._before_ns = self._began_ns = 0

    def see(self, record: LeaseRecord, read_ns: int, began_ns: int) -> LeaseView:
        """`read_ns`: when the reading had *returned*; what it shows was written before. It `began_ns`."""
        if self._record is None or _life_sign(self._record) != _life_sign(record):
            self._since_ns, self._before_ns = read_ns, self._began_ns
        self._record, self._began_ns = record, began_ns
        return LeaseView(record, self._takeable_at_ns(record), read_ns, self._since_ns, self._before_ns)

    def _takeable_at_ns(self, record: LeaseRecord) -> int:
        if record.state.left:
            return 0
        ttl_s = record.ttl_s if record.state.owned else self._ttl_s
        return self._since_ns + to_ns(ttl_s * (1 + self._margin))


def _life_sign(record: LeaseRecord) -> tuple[int, int, int, LeaseState]:
    return (record.version, record.epoch, record.counter, record.state)
