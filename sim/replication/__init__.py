"""Replication in simulation: whole hosts of the product, with simulated machines under them.

Real are the supervisor and all it decides by, the lease's rules, the shipper with its destinations, the receiver, the
bytes between them, and the engine with its files. Simulated are threads and time (`tasks`), links (`network`), disks
(`disk`), processes and the user's command (`host`, `command`); `seams` says where the one meets the other. `world` has
the faults, `checker` knows what must never happen and what must happen in the end, and `broken` holds variants that
are wrong on purpose, each of which the checker must catch. Everything follows from one seed.
"""

from sim.replication.broken import CORRECT, VARIANTS, Variant
from sim.replication.world import Outcome, run_seed

__all__ = ["CORRECT", "VARIANTS", "Outcome", "Variant", "run_seed"]
