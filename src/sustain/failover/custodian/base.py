"""The persistent state of a workload on this host, as its supervisor handles it.

Used by `supervise`; everything that differs between a store and a region is behind this, so that lease, fencing,
epochs, power and reports are written once. Methods are called from the supervisor's loop and must not block, but
for `create` and `promote`, which run in a thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from sustain.errors import StoreError
from sustain.failover.lease.record import LeaseGrant
from sustain.failover.types import DestinationView, PowerView, StoreView
from sustain.host.processes import Identity
from sustain.powerfail.budget import BudgetPolicy


@dataclass(frozen=True, slots=True)
class Opened:
    """What was found when the state was opened in a new epoch. Positions as `StoreView` counts them."""

    held: int | None  # the end of what this host had
    commits: int | None
    start: int  # where the new epoch begins
    primary_committed: int | None  # as the receiver last heard it
    primary_heard_ns: int | None  # when, CLOCK_BOOTTIME
    log_epoch: int | None = None  # the newest epoch of what this host had
    commit_time_ns: int | None = None  # of the last commit that this host had, ns since 1970
    primary_commit_time_ns: int | None = None  # of the last one of the primary, as heard
    own: bool = False  # this host wrote that epoch itself: nobody has more of it


class Custodian(ABC):
    """One workload's state on one host."""

    path: str  # what the supervisor's own files lie beside
    has_door: bool  # whether a primary answers former ones on its own address
    follows_command: bool  # whether what ships must be started anew with the command

    @abstractmethod
    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        """The state and its destinations, now; None when there is none here."""

    @abstractmethod
    def set_deadline(self, grant: LeaseGrant) -> None:
        """The data path obeys `grant` from now on, as far as it can."""

    @abstractmethod
    def close_epoch(self, epoch: int) -> None:
        """Nobody changes the state in `epoch` here any more."""

    def last_commit_ns(self) -> int | None:
        """When the last commit was made here, CLOCK_BOOTTIME; None: unknown."""
        return None

    @abstractmethod
    def set_power(self, power: PowerView | None) -> None:
        """Tell whoever ships how long the battery lasts; None: no power source is watched."""

    @abstractmethod
    def create(self) -> None:
        """Make the workload's first state. Raises SustainError."""

    def fetch(self, epoch: int, store_uuid: str, at_least: int, still_ours: Callable[[], bool]) -> Opened:
        """Make the state here from what another host has, and open `epoch` on it. Raises SustainError."""
        raise StoreError(f"{self.path}: it cannot be fetched", hint="wait until a primary has sent it")

    def fetcher(self) -> list[str]:
        """Words for `sustain` that bring what is still elsewhere."""
        raise AssertionError("nothing is ever fetched")

    @abstractmethod
    def set_aside(self) -> str:
        """Rename it; the new name. Raises SustainError."""

    @abstractmethod
    def promote(self, epoch: int, still_ours: Callable[[], bool]) -> Opened:
        """Open `epoch` here, if the lease is `still_ours` when all is ready for it. Raises SustainError."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the command is told, beside its own environment."""

    @abstractmethod
    def shipper(self, epoch: int, command_pid: int | None) -> list[str]:
        """Words for `sustain` that ship the state."""

    @abstractmethod
    def receiver(self) -> list[str]:
        """Words for `sustain` that receive it."""

    def evacuate(self, shipper: Identity | None) -> None:  # noqa: B027 - only regions are frozen
        """Have the program frozen and the rest saved and sealed. Asked again until that is done."""

    def thaw(self, shipper: Identity | None, command: Identity | None) -> None:  # noqa: B027 - likewise
        """Let the program go on."""

    @abstractmethod
    def close(self) -> None:
        """The supervisor ends."""


def budget_words(budget: BudgetPolicy | None) -> list[str]:
    """Options of `sustain ship` for where delays and waits begin."""
    if budget is None:
        return []
    first, second = str(budget.first_threshold), str(budget.second_threshold)
    return ["--budget-first", first, "--budget-second", second]
