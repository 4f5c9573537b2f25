"""Measurements, one file per question; each figure stands beside a peer measured in the same run.

For whoever changes the engine, and for whoever doubts a number in the documentation. `python -m bench`
lists the questions, `python -m bench NAME` answers one, `python -m bench --all` answers them all.

The model: a *contender* is a callable that does a fixed amount of work once and returns a figure. A
question names its contenders, ours among them, and the harness runs them in turns, round after round,
in an order that moves on each round, and takes the median of each. So a noisy neighbour, a warm cache
or a slow minute falls on all of them alike, and only ratios are judged.

Rejected: pytest-benchmark and asv. Both measure one thing after the other, and both keep absolute times
of one machine to compare with another day; neither is worth anything on a machine that is shared.
"""
