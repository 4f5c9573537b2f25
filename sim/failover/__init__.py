"""Failover in simulation: the real `decide` and the real lease rules for two or three simulated hosts.

`world` has time, faults and the network; `power` the mains, the batteries and what is heard of them; `host` carries out
what `decide` asks for; `checker` knows what must never happen and what must happen in the end; `broken` holds variants
that are wrong on purpose, each of which the checker must catch. Everything follows from one seed. Simulated are: clocks
of different rates, hosts, processes, stores, links, power and the lease's storage; nothing here touches a file, a
process or a clock. Judged by the product's own code are the readings of power, too, and how long a battery may be
counted on.
"""

from sim.failover.broken import CORRECT, VARIANTS, Variant
from sim.failover.world import Outcome, run_seed

__all__ = ["CORRECT", "VARIANTS", "Outcome", "Variant", "run_seed"]
