"""What a supervisor does with a workload's persistent state on this host: a store, or a region."""

from sustain.failover.keeper.base import Keeper
from sustain.failover.keeper.store import StoreKeeper

__all__ = ["Keeper", "StoreKeeper"]
