"""Seeded simulations of the parts that decide. `python -m sim failover --seeds 1000`."""
