"""What a supervisor does with a workload's persistent state on this host: a store, or a region."""

from sustain.failover.custodian.base import Custodian
from sustain.failover.custodian.store import StoreCustodian

__all__ = ["Custodian", "StoreCustodian"]
