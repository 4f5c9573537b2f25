from sim.replication.broken import VARIANTS, Variant
from sim.replication.world import Outcome, run_seed

__all__ = ["VARIANTS", "Outcome", "Variant", "run_seed"]
